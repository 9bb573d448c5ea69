-- Add a batch of counts to a day's usage, once: whoever got no answer may send the batch again.
-- KEYS: the day's counts (hash), the batch's mark
-- ARGV: seconds to keep the day, then field and count by turns
if not redis.call('SET', KEYS[2], 1, 'NX', 'EX', 86400) then return 0 end
for i = 2, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1

-- The end of a request: give its lease back, and count its tokens.
-- KEYS: state (hash), "time:tokens" of answers (list), leases (sorted set)
-- ARGV: the request's lease, its tokens, 1 if tokens are limited by the minute, 1 if by the day
redis.call('ZREM', KEYS[3], ARGV[1])
local tokens = tonumber(ARGV[2])
if tokens == 0 then return end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local MINUTE, DAY = 60000, 86400000
if ARGV[3] == '1' then
  if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('HSET', KEYS[1], 'recent_tokens', 0) end
  redis.call('RPUSH', KEYS[2], string.format('%.0f:%.0f', now, tokens))
  redis.call('PEXPIRE', KEYS[2], MINUTE)
  redis.call('HINCRBY', KEYS[1], 'recent_tokens', tokens)
end
if ARGV[4] == '1' then
  local today = math.floor(now / DAY)
  if tonumber(redis.call('HGET', KEYS[1], 'day')) ~= today then
    redis.call('HSET', KEYS[1], 'day', today, 'requests', 0, 'tokens', 0)
  end
  redis.call('HINCRBY', KEYS[1], 'tokens', tokens)
end
redis.call('PEXPIRE', KEYS[1], DAY + MINUTE)

-- Take a place among the calls of an account's last minute, if one is free.
-- KEYS: times of calls (list, ms), refusal (string, there if the request is refused already)
-- ARGV: how many a minute
-- Answers 0 for a place, else the ms until one is free. The server's clock counts.
if redis.call('EXISTS', KEYS[2]) == 1 then return 60000 end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local MINUTE, limit = 60000, tonumber(ARGV[1])
local first = redis.call('LINDEX', KEYS[1], 0)
while first and tonumber(first) <= now - MINUTE do
  redis.call('LPOP', KEYS[1])
  first = redis.call('LINDEX', KEYS[1], 0)
end
local taken = redis.call('LLEN', KEYS[1])
if taken >= limit then return redis.call('LINDEX', KEYS[1], taken - limit) + MINUTE - now end
redis.call('RPUSH', KEYS[1], now)
redis.call('PEXPIRE', KEYS[1], MINUTE)
return 0

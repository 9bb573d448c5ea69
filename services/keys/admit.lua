-- Read a key's record, check all its limits, and count the request only if every one has room.
-- KEYS: record (hash), state (hash), times of requests (list), "time:tokens" of answers (list),
--       leases (sorted set by expiry), refusal (string, set for a moment if the request is not let
--       in, for the scripts that follow in the same round trip); all with one hash tag
-- ARGV: the request's lease, its length in ms
-- Answers nil for no such key, else {record, refused, retry_ms, then seven numbers: see below}.
-- The server's clock counts, so that machines need not agree on the time.
local fields = redis.call('HMGET', KEYS[1], 'record', 'revoked', 'requests_per_minute',
  'tokens_per_minute', 'requests_per_day', 'tokens_per_day', 'concurrent_streams')
local record, revoked = fields[1], fields[2]
if not record or revoked then redis.call('SET', KEYS[6], 1, 'PX', 2000) end
if not record then return false end
if revoked then return {record, '', 0, 0, 0, 0, 0, 0, 0, 0} end
local minute_limit, minute_tokens_limit = tonumber(fields[3]), tonumber(fields[4])
local day_limit, day_tokens_limit = tonumber(fields[5]), tonumber(fields[6])
local streams_limit = tonumber(fields[7])

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local MINUTE, DAY = 60000, 86400000
local today = math.floor(now / DAY)
local day_left = (today + 1) * DAY - now

local state = redis.call('HMGET', KEYS[2], 'day', 'requests', 'tokens', 'recent_tokens')
local day_requests, day_tokens = 0, 0
if tonumber(state[1]) == today then
  day_requests, day_tokens = tonumber(state[2]) or 0, tonumber(state[3]) or 0
end

local minute_requests, requests_reset, requests_retry = 0, 0, 0
if minute_limit then
  local first = redis.call('LINDEX', KEYS[3], 0)
  while first and tonumber(first) <= now - MINUTE do
    redis.call('LPOP', KEYS[3])
    first = redis.call('LINDEX', KEYS[3], 0)
  end
  minute_requests = redis.call('LLEN', KEYS[3])
  if minute_requests > 0 then
    requests_reset = redis.call('LINDEX', KEYS[3], -1) + MINUTE - now
  end
  if minute_requests >= minute_limit then
    -- more than one has to leave if the limit was lowered meanwhile
    requests_retry = redis.call('LINDEX', KEYS[3], minute_requests - minute_limit) + MINUTE - now
  end
end

local minute_tokens, tokens_reset, tokens_retry = 0, 0, 0
if minute_tokens_limit then
  local known = tonumber(state[4]) or 0
  minute_tokens = known
  local first = redis.call('LINDEX', KEYS[4], 0)
  while first do
    local at, count = string.match(first, '(%d+):(%d+)')
    if tonumber(at) > now - MINUTE then break end
    redis.call('LPOP', KEYS[4])
    minute_tokens = minute_tokens - count
    first = redis.call('LINDEX', KEYS[4], 0)
  end
  if not first then minute_tokens = 0 end
  if minute_tokens ~= known then redis.call('HSET', KEYS[2], 'recent_tokens', minute_tokens) end
  if first then
    tokens_reset = string.match(redis.call('LINDEX', KEYS[4], -1), '%d+') + MINUTE - now
  end
  if minute_tokens >= minute_tokens_limit then
    local left = minute_tokens
    -- a hundred are enough to look at: a caller who comes too early is only sent away again
    for _, entry in ipairs(redis.call('LRANGE', KEYS[4], 0, 99)) do
      local at, count = string.match(entry, '(%d+):(%d+)')
      left = left - count
      tokens_retry = at + MINUTE - now
      if left < minute_tokens_limit then break end
    end
  end
end

local streams = 0
if streams_limit then
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now)
  streams = redis.call('ZCARD', KEYS[5])
end

local refused, retry = '', 0
if day_limit and day_requests >= day_limit then
  refused, retry = 'requests_per_day', day_left
elseif day_tokens_limit and day_tokens >= day_tokens_limit then
  refused, retry = 'tokens_per_day', day_left
elseif minute_limit and minute_requests >= minute_limit then
  refused, retry = 'requests_per_minute', requests_retry
elseif minute_tokens_limit and minute_tokens >= minute_tokens_limit then
  refused, retry = 'tokens_per_minute', tokens_retry
elseif streams_limit and streams >= streams_limit then
  refused, retry = 'concurrent_streams', 1000
else
  if minute_limit then
    redis.call('RPUSH', KEYS[3], now)
    redis.call('PEXPIRE', KEYS[3], MINUTE)
    minute_requests = minute_requests + 1
    requests_reset = MINUTE
  end
  if day_limit or day_tokens_limit then
    day_requests = day_requests + 1
    redis.call('HSET', KEYS[2], 'day', today, 'requests', day_requests, 'tokens', day_tokens)
    redis.call('PEXPIRE', KEYS[2], DAY + MINUTE)
  end
  if streams_limit then
    redis.call('ZADD', KEYS[5], now + ARGV[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[5], ARGV[2])
  end
end
if refused ~= '' then redis.call('SET', KEYS[6], 1, 'PX', 2000) end
return {record, refused, retry, minute_requests, day_requests, minute_tokens, day_tokens,
  requests_reset, tokens_reset, day_left}

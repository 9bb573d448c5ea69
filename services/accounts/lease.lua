-- Choose an account, and count that it was chosen.
-- KEYS: states (hash id -> JSON), passes (hash id -> number), sticky (string, may be unused),
--       refusal (string, there if the request is refused already), then two for each account that
--       is offered: its open leases by expiry (sorted set), the times of its calls (list, ms)
-- ARGV: now (s), lease id, lease length (s), sticky length (s, 0: not sticky), calls a minute (0:
--       any number), then id, weight, bound of open leases for each account that is offered
-- Answers {id, strikes, paid}: the id is empty where nobody is free; paid is 1 if a place among the
-- calls of the account's minute is taken.
-- An account's pass grows by 1/weight with each choice; the lowest pass comes next, which for
-- equal weights is the least recently used. One that was away comes back without a claim to
-- catch up. An account without a place among its calls comes after those with one.
if redis.call('EXISTS', KEYS[4]) == 1 then return {'', 0, 0} end
local now, lease, lease_length = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local sticky_length, calls_limit = tonumber(ARGV[4]), tonumber(ARGV[5])
local offered = (#ARGV - 5) / 3
local ids = {}
for i = 1, offered do ids[i] = ARGV[3 + 3 * i] end
local states = redis.call('HMGET', KEYS[1], unpack(ids))
local passes = redis.call('HMGET', KEYS[2], '', unpack(ids))
local floor = tonumber(passes[1]) or 0
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local MINUTE = 60000

-- The ms until account i has a place among its calls.
local function wait_of(i)
  if calls_limit == 0 then return 0 end
  local calls = KEYS[4 + 2 * i]
  local first = redis.call('LINDEX', calls, 0)
  while first and tonumber(first) <= now_ms - MINUTE do
    redis.call('LPOP', calls)
    first = redis.call('LINDEX', calls, 0)
  end
  local taken = redis.call('LLEN', calls)
  if taken < calls_limit then return 0 end
  return redis.call('LINDEX', calls, taken - calls_limit) + MINUTE - now_ms
end

local kept = sticky_length > 0 and redis.call('GET', KEYS[3])
local free = {}
for i = 1, offered do
  local state = states[i] and cjson.decode(states[i])
  local rests = state and (state.state == 'disabled' or state.free_at > now)
  local bound = tonumber(ARGV[5 + 3 * i])
  if not rests and bound > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[3 + 2 * i], '-inf', now)
    rests = redis.call('ZCARD', KEYS[3 + 2 * i]) >= bound
  end
  if not rests then
    local pass = math.max(tonumber(passes[1 + i]) or floor, floor)
    free[#free + 1] = {place = i, pass = kept == ids[i] and -1 or pass,
      strikes = state and state.strikes or 0}
  end
end
if #free == 0 then return {'', 0, 0} end

table.sort(free, function(a, b)
  if a.pass == b.pass then return a.place < b.place end
  return a.pass < b.pass
end)
local best, best_wait
for _, account in ipairs(free) do
  local wait = wait_of(account.place)
  if not best or wait < best_wait then best, best_wait = account, wait end
  if best_wait == 0 or best.pass == -1 then break end
end

local i = best.place
local pass = math.max(tonumber(passes[1 + i]) or floor, floor)
redis.call('HSET', KEYS[2], ids[i], pass + 1 / tonumber(ARGV[4 + 3 * i]), '', pass)
if tonumber(ARGV[5 + 3 * i]) > 0 then
  redis.call('ZADD', KEYS[3 + 2 * i], now + lease_length, lease)
  redis.call('PEXPIRE', KEYS[3 + 2 * i], math.ceil(lease_length * 1000))
end
if sticky_length > 0 then redis.call('SET', KEYS[3], ids[i], 'EX', sticky_length) end
local paid = 0
if calls_limit > 0 and best_wait == 0 then
  paid = 1
  redis.call('RPUSH', KEYS[4 + 2 * i], now_ms)
  redis.call('PEXPIRE', KEYS[4 + 2 * i], MINUTE)
end
return {ids[i], best.strikes, paid}

-- Choose an account, and count that it was chosen.
-- KEYS: states (hash id -> JSON), passes (hash id -> number), sticky (string, may be unused),
--       then one sorted set of open leases by expiry for each account that is offered
-- ARGV: now (s), lease id, lease length (s), sticky length (s, 0: not sticky),
--       then id, weight, bound of open leases for each account that is offered
-- Answers {id, strikes}; the id is empty where nobody is free.
-- An account's pass grows by 1/weight with each choice; the lowest pass comes next, which for
-- equal weights is the least recently used. One that was away comes back without a claim to
-- catch up.
local now, lease, lease_length = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local sticky_length = tonumber(ARGV[4])
local offered = (#ARGV - 4) / 3
local ids = {}
for i = 1, offered do ids[i] = ARGV[2 + 3 * i] end
local states = redis.call('HMGET', KEYS[1], unpack(ids))
local passes = redis.call('HMGET', KEYS[2], '', unpack(ids))
local floor = tonumber(passes[1]) or 0

local kept = sticky_length > 0 and redis.call('GET', KEYS[3])
local best, best_pass, best_strikes
for i = 1, offered do
  local state = states[i] and cjson.decode(states[i])
  local rests = state and (state.state == 'disabled' or state.free_at > now)
  local bound = tonumber(ARGV[4 + 3 * i])
  if not rests and bound > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[3 + i], '-inf', now)
    rests = redis.call('ZCARD', KEYS[3 + i]) >= bound
  end
  if not rests then
    local pass = math.max(tonumber(passes[1 + i]) or floor, floor)
    if kept == ids[i] then pass = -1 end
    if not best or pass < best_pass then
      best, best_pass, best_strikes = i, pass, state and state.strikes or 0
    end
  end
end
if not best then return {'', 0} end

best_pass = math.max(tonumber(passes[1 + best]) or floor, floor)
local step = 1 / tonumber(ARGV[3 + 3 * best])
redis.call('HSET', KEYS[2], ids[best], best_pass + step, '', best_pass)
if tonumber(ARGV[4 + 3 * best]) > 0 then
  redis.call('ZADD', KEYS[3 + best], now + lease_length, lease)
  redis.call('PEXPIRE', KEYS[3 + best], math.ceil(lease_length * 1000))
end
if sticky_length > 0 then redis.call('SET', KEYS[3], ids[best], 'EX', sticky_length) end
return {ids[best], best_strikes}

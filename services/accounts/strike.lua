-- Note a fault of an account: it rests, each time in a row for longer.
-- KEYS: states (hash id -> JSON)
-- ARGV: id, state, now (s), when its lease began (s), the upstream's own wait (s, '' if none),
--       the first rung (from 1), then the rungs of the ladder (s)
-- Faults of requests that began before the last one was known are no news.
local id, name, now, began = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local wait, first, rungs = tonumber(ARGV[5]), tonumber(ARGV[6]), #ARGV - 6
local known = redis.call('HGET', KEYS[1], id)
local state = known and cjson.decode(known) or {strikes = 0, since = 0, free_at = 0, state = ''}
if state.state == 'disabled' then return end
if began > state.since or state.strikes == 0 then
  local strikes = state.strikes + 1
  local rung = math.min(first + strikes - 1, rungs)
  state = {state = name, strikes = strikes, since = now,
    free_at = now + (wait or tonumber(ARGV[6 + rung]))}
  redis.call('HSET', KEYS[1], id, cjson.encode(state))
end

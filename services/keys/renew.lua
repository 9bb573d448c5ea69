-- Lengthen the lease of a request that is still under way. One that has lapsed stays lapsed.
-- KEYS: leases (sorted set). ARGV: the lease, its length in ms
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZADD', KEYS[1], 'XX', now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])

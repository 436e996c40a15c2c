-- Move the generation pointer, if it is where the caller saw it.
-- KEYS[1]  the pointer
-- ARGV[1]  its bytes as the caller read them, empty where there was none      ARGV[2]  its bytes to be
-- Returns 1 where it was moved, 0 where somebody else moved it first.

if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[2])
return 1

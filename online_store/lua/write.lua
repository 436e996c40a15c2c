-- Write records of one shard that were merged by the caller, if nobody wrote to the shard since it read them.
-- KEYS[1]    guard hash of the shard: source -> next offset
-- KEYS[2..]  records, those first that there were none of
-- ARGV[1]    how many there were none of      ARGV[2] how many guards stood before the records were read      ARGV[3] how many guards move
-- ARGV[4..]  the guards that stood, then those that move: a source, its offset; then the records; then each one's time to live, milliseconds
-- Returns 1 where all was written, 0 where a guard is not as it stood and nothing was.
-- Whoever writes to a shard moves a guard of it, and guards say which events its records hold: as they stood, so did the records.

local call, unpack_all = redis.call, unpack
-- What Lua's stack holds in one call (LUAI_MAXCSTACK is 8000).
local ARGUMENTS_MAX = 4000
local missing, stood, moves = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local count, moves_at = #KEYS - 1, 3 + 2 * stood
local values_at = moves_at + 2 * moves
if moves < 1 or missing > count or #ARGV ~= values_at + 2 * count then
  return redis.error_reply('ERR ' .. #ARGV .. ' arguments do not fit ' .. count .. ' records, ' .. stood .. ' and ' .. moves .. ' guards')
end

local guards, standing = {}, call('HGETALL', KEYS[1])
for at = 1, #standing, 2 do guards[standing[at]] = standing[at + 1] end
local is_expected = #standing == 2 * stood
for at = 4, moves_at, 2 do is_expected = is_expected and guards[ARGV[at]] == ARGV[at + 1] end
if not is_expected then return 0 end

-- MGET takes what is no string for nothing.
for from = 2, missing + 1, ARGUMENTS_MAX do
  if call('EXISTS', unpack_all(KEYS, from, math.min(from + ARGUMENTS_MAX - 1, missing + 1))) > 0 then
    return redis.error_reply('WRONGTYPE among ' .. missing .. ' keys from ' .. KEYS[2] .. ' on is one that holds no record')
  end
end
for i = 1, count do
  call('SET', KEYS[i + 1], ARGV[values_at + i], 'PX', ARGV[values_at + count + i])
end
call('HSET', KEYS[1], unpack_all(ARGV, moves_at + 1, values_at))
return 1

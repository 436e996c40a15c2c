-- Apply one batch of deltas to one shard, exactly once.
-- KEYS[1]    guard hash of the shard: source -> next offset
-- KEYS[2..]  records touched
-- ARGV[1]    kind of each record, one byte: its place in LAYOUTS, from 1
-- ARGV[2]    rows, 36 bytes each (online_store/record.py, ROW): what to add to one tile of the record at that place in KEYS[2..]
-- ARGV[3]    static sections, each behind the place of its record (u32): what a content or user record writes
-- ARGV[4..]  by threes: a source, "topic/partition", its expected offset, its following offset
-- Returns the sources' guards after the call: `following` if applied, else what stands there and nothing was changed.
-- All input is checked and all new records are made before the first write: Redis does not undo a script that fails half way.
-- LAYOUTS is put in front of this file by online_store/redis.py, from the registry: head (for struct), head_bytes, front_bytes,
-- static_bytes, tile_ms, ttl_ms, blank, and a ring a window {slots, hop_ms}, in the order in which they stand in the record.

local ROW, TILE = '<I4I4I4I4I4I8i8', '<I4I4I4I4I8'
local ROW_BYTES, TILE_BYTES, VERSION = 36, 24, 2
-- What Lua's stack holds in one call (LUAI_MAXCSTACK is 8000).
local ARGUMENTS_MAX = 4000
local LAST, FLOOR = 2, 3
local unpack_all, unpack, pack, sub, byte, concat = unpack, struct.unpack, struct.pack, string.sub, string.byte, table.concat
local call, floor_of = redis.call, math.floor

local kinds, rows, statics = ARGV[1], ARGV[2], ARGV[3]
if #ARGV < 6 then return redis.error_reply('ERR a step moves no guard: what it adds would be added again') end
local guards, standing, is_expected = {}, {}, true
for at = 4, #ARGV, 3 do
  local guard = tonumber(call('HGET', KEYS[1], ARGV[at]) or '0')
  guards[#guards + 1], guards[#guards + 2] = ARGV[at], ARGV[at + 2]
  standing[#standing + 1] = guard
  is_expected = is_expected and guard == tonumber(ARGV[at + 1])
end
if not is_expected then return standing end

local count = #KEYS - 1
if #kinds ~= count or #rows % ROW_BYTES ~= 0 then
  return redis.error_reply('ERR deltas do not fit: ' .. count .. ' keys, ' .. #kinds .. ' kinds, ' .. #rows .. ' bytes of rows')
end

-- A record under way: numbers (of its head; a ring's six stand from ring_at on: closed, tile, four counters), static, closed (a string
-- a ring, nil while nothing in it changes). A change of the head alone is written in place and leaves the time to live as it is.
local layouts, raws, numbers, closed, static, whole = {}, {}, {}, {}, {}, {}
local function ring_at(r) return FLOOR + 6 * (r - 1) end

-- MGET takes what is no string for nothing; EXISTS tells the two apart.
local function read(from, to)
  local found, missing = call('MGET', unpack_all(KEYS, from, to)), {}
  for place = 1, to - from + 1 do
    local raw = found[place]
    raws[from + place - 2] = raw
    if not raw then missing[#missing + 1] = KEYS[from + place - 1] end
  end
  return #missing == 0 or call('EXISTS', unpack_all(missing)) == 0
end
for from = 2, count + 1, ARGUMENTS_MAX do
  if not read(from, math.min(from + ARGUMENTS_MAX - 1, count + 1)) then
    return redis.error_reply('WRONGTYPE among ' .. count .. ' keys from ' .. KEYS[2] .. ' on is one that holds no record')
  end
end

for i = 1, count do
  local layout, raw = LAYOUTS[byte(kinds, i)], raws[i]
  if not layout then return redis.error_reply('ERR no such kind: ' .. byte(kinds, i)) end
  if not raw then raw, raws[i], whole[i] = layout.blank, layout.blank, true end
  local bytes, found = layout.front_bytes, nil
  if #raw >= bytes and byte(raw, 1) == VERSION then
    found = {unpack(layout.head, raw)}
    for b = FLOOR + 1, FLOOR + 6 * #layout, 6 do bytes = bytes + found[b] * TILE_BYTES end
  end
  if not found or #raw ~= bytes then
    return redis.error_reply('ERR ' .. KEYS[i + 1] .. ' is not a record of this registry: ' .. #raw .. ' bytes, not ' .. bytes)
  end
  layouts[i], numbers[i] = layout, found
end

local function open_up(i)
  local layout, raw, at = layouts[i], raws[i], layouts[i].front_bytes + 1
  local found = {}
  for r = 1, #layout do
    local bytes = numbers[i][ring_at(r) + 1] * TILE_BYTES
    found[r] = sub(raw, at, at + bytes - 1)
    at = at + bytes
  end
  closed[i], whole[i] = found, true
  return found
end

local function newer(a, b)
  local _, a_partition, a_ts, a_offset = unpack('<BI4i8i8', a)
  local _, b_partition, b_ts, b_offset = unpack('<BI4i8i8', b)
  if a_ts ~= b_ts then return a_ts > b_ts end
  if a_offset ~= b_offset then return a_offset > b_offset end
  return a_partition > b_partition
end

-- The tiles of a ring from this one on; they stand oldest first.
local function from_tile(tiles, first)
  local at = 1
  while at <= #tiles and unpack('<I4', tiles, at) < first do at = at + TILE_BYTES end
  return at == 1 and tiles or sub(tiles, at)
end

local function forget(i, ts)
  local layout, n, tiles = layouts[i], numbers[i], closed[i] or open_up(i)
  if ts > n[FLOOR] then n[FLOOR] = ts end
  if n[LAST] < n[FLOOR] then n[LAST] = 0 end
  for r = 1, #layout do
    local b, hop = ring_at(r), layout[r].hop_ms
    tiles[r] = from_tile(tiles[r], math.ceil(n[FLOOR] / hop))
    if n[b + 2] * hop < n[FLOOR] then n[b + 2], n[b + 3], n[b + 4], n[b + 5], n[b + 6] = 0, 0, 0, 0, 0 end
  end
end

-- A newer tile: the open one is closed, those that no window can want any more are dropped.
local function advance(n, b, tiles, slots, tile)
  if n[b + 3] + n[b + 4] + n[b + 5] + n[b + 6] > 0 then
    tiles = tiles .. pack(TILE, n[b + 2], n[b + 3], n[b + 4], n[b + 5], n[b + 6])
  end
  n[b + 2], n[b + 3], n[b + 4], n[b + 5], n[b + 6] = tile, 0, 0, 0, 0
  return from_tile(tiles, tile - slots + 1)
end

-- A late event: into its closed tile, which may have to be made.
local function add_late(tiles, tile, impressions, clicks, dwell_count, dwell_sum)
  local at, behind = #tiles + 1, #tiles + 1
  while at > 1 do
    local held, i, c, d, s = unpack(TILE, tiles, at - TILE_BYTES)
    if held < tile then break end
    at = at - TILE_BYTES
    if held == tile then
      impressions, clicks, dwell_count, dwell_sum = i + impressions, c + clicks, d + dwell_count, s + dwell_sum
      break
    end
    behind = at
  end
  return sub(tiles, 1, at - 1) .. pack(TILE, tile, impressions, clicks, dwell_count, dwell_sum) .. sub(tiles, behind)
end

-- One ring of a row whose tile is not the open one.
local function add_elsewhere(i, r, b, tile, impressions, clicks, dwell_count, dwell_sum)
  local n = numbers[i]
  if tile > n[b + 2] and n[b + 1] + n[b + 3] + n[b + 4] + n[b + 5] + n[b + 6] == 0 and not closed[i] then
    -- Nothing to close, nothing to drop: a new record, mostly.
    n[b + 2], n[b + 3], n[b + 4], n[b + 5], n[b + 6], whole[i] = tile, impressions, clicks, dwell_count, dwell_sum, true
    return
  end
  local slots, tiles = layouts[i][r].slots, closed[i] or open_up(i)
  if tile > n[b + 2] then
    tiles[r] = advance(n, b, tiles[r], slots, tile)
    n[b + 3], n[b + 4], n[b + 5], n[b + 6] = impressions, clicks, dwell_count, dwell_sum
  elseif tile > n[b + 2] - slots then
    tiles[r] = add_late(tiles[r], tile, impressions, clicks, dwell_count, dwell_sum)
  end
end

local at = 1
while at <= #statics do
  local i = unpack('<I4', statics, at) + 1
  local layout = layouts[i]
  if not layout then return redis.error_reply('ERR a static section names record ' .. i .. ' of ' .. count) end
  local section = sub(statics, at + 4, at + 3 + layout.static_bytes)
  if #section ~= layout.static_bytes then return redis.error_reply('ERR a static section is cut short') end
  local standing = static[i] or sub(raws[i], layout.head_bytes + 1, layout.front_bytes)
  if newer(section, standing) then static[i], whole[i] = section, true end
  local removed, _, ts = unpack('<BI4i8', section)
  if removed == 1 then forget(i, ts) end
  at = at + 4 + layout.static_bytes
end

for at = 1, #rows, ROW_BYTES do
  local i, base, impressions, clicks, dwell_count, dwell_sum, newest = unpack(ROW, rows, at)
  i = i + 1
  local layout, n = layouts[i], numbers[i]
  if not layout then return redis.error_reply('ERR a row names record ' .. i - 1 .. ' of ' .. count) end
  local floor, start, b = n[FLOOR], base * layout.tile_ms, FLOOR
  if newest >= floor and newest > n[LAST] then n[LAST] = newest end
  for r = 1, #layout do
    local hop = layout[r].hop_ms
    local tile = (start - start % hop) / hop
    if tile * hop >= floor then
      if tile == n[b + 2] then
        n[b + 3], n[b + 4], n[b + 5], n[b + 6] = n[b + 3] + impressions, n[b + 4] + clicks, n[b + 5] + dwell_count, n[b + 6] + dwell_sum
      else
        add_elsewhere(i, r, b, tile, impressions, clicks, dwell_count, dwell_sum)
      end
    end
    b = b + 6
  end
end

for i = 1, count do
  local layout, n, tiles = layouts[i], numbers[i], closed[i]
  if tiles then
    for r = 1, #layout do n[ring_at(r) + 1] = #tiles[r] / TILE_BYTES end
  end
  local head = pack(layout.head, unpack_all(n, 1, FLOOR + 6 * #layout))
  if whole[i] then
    raws[i] = head .. (static[i] or sub(raws[i], layout.head_bytes + 1, layout.front_bytes)) ..
      (tiles and concat(tiles) or sub(raws[i], layout.front_bytes + 1))
  else
    raws[i] = head
  end
end

local following = tonumber(ARGV[6])
for i = 1, count do
  if whole[i] then
    -- 0.8 to 1.2 of the time to live, from the key's last bytes and the offset: records written together must not expire together.
    local a, b, c, d = byte(KEYS[i + 1], -4, -1)
    local spread = (a * 4099 + b * 16411 + c * 32771 + d * 40503 + following % 65536 * 30011 + i * 10007) % 65536 / 65536
    call('SET', KEYS[i + 1], raws[i], 'PX', floor_of(layouts[i].ttl_ms * (0.8 + 0.4 * spread)))
  else
    call('SETRANGE', KEYS[i + 1], '0', raws[i])
  end
end
call('HSET', KEYS[1], unpack_all(guards))
for place = 1, #standing do standing[place] = tonumber(guards[2 * place]) end
return standing

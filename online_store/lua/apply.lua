-- Apply one batch of deltas to one shard, exactly once.
-- KEYS[1]    guard hash of the shard: source -> next offset
-- KEYS[2..]  records touched
-- ARGV[1]    source, "topic/partition"     ARGV[2] expected offset     ARGV[3] following offset
-- ARGV[4]    kind of each record, one byte: its place in LAYOUTS, from 1
-- ARGV[5]    rows, 36 bytes each (online_store/record.py, ROW): what to add to one tile of the record at that place in KEYS[2..]
-- ARGV[6]    static sections, each behind the place of its record (u32): what a content or user record writes
-- Returns the guard after the call: `following` if applied, else what stands there and nothing was changed.
-- All input is checked and all new records are made before the first write: Redis does not undo a script that fails half way.
-- LAYOUTS is put in front of this file by online_store/redis.py, from the registry: bytes, static_bytes, tile_ms, ttl_ms, blank, and
-- a ring a window {at, slots, hop_ms}, in the order in which they stand in the record.

local ROW, TILE, STATIC_AT = '<I4I4I4I4I4I8i8', '<I4I4I4I4I8', 18
local ROW_BYTES, TILE_BYTES, EMPTY_TILE = 36, 24, string.rep('\0', 24)
local unpack, pack, sub, byte, concat = struct.unpack, struct.pack, string.sub, string.byte, table.concat

local guard = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if guard ~= tonumber(ARGV[2]) then return guard end

local kinds, rows, statics = ARGV[4], ARGV[5], ARGV[6]
local count = #KEYS - 1
if #kinds ~= count or #rows % ROW_BYTES ~= 0 then
  return redis.error_reply('ERR deltas do not fit: ' .. count .. ' keys, ' .. #kinds .. ' kinds, ' .. #rows .. ' bytes of rows')
end

local layouts, records = {}, {}
for i = 1, count do
  local layout = LAYOUTS[byte(kinds, i)]
  local record = redis.call('GET', KEYS[i + 1])
  if not layout then return redis.error_reply('ERR no such kind: ' .. byte(kinds, i)) end
  if not record then record = layout.blank .. string.rep('\0', layout.bytes - #layout.blank) end
  if #record ~= layout.bytes or byte(record, 1) ~= byte(layout.blank, 1) then
    return redis.error_reply('ERR ' .. KEYS[i + 1] .. ' is not a record of this registry: ' .. #record .. ' bytes, not ' .. layout.bytes)
  end
  layouts[i], records[i] = layout, record
end

local function newer(a, b)
  local _, a_partition, a_ts, a_offset = unpack('<BI4i8i8', a)
  local _, b_partition, b_ts, b_offset = unpack('<BI4i8i8', b)
  if a_ts ~= b_ts then return a_ts > b_ts end
  if a_offset ~= b_offset then return a_offset > b_offset end
  return a_partition > b_partition
end

local function forget(layout, record, ts)
  local version, last, floor = unpack('<Bi8i8', record)
  if ts > floor then floor = ts end
  if last < floor then last = 0 end
  local out = {pack('<Bi8i8', version, last, floor), sub(record, STATIC_AT, STATIC_AT + layout.static_bytes - 1)}
  for r = 1, #layout do
    local ring = layout[r]
    for at = ring.at, ring.at + (ring.slots - 1) * TILE_BYTES, TILE_BYTES do
      local kept = unpack('<I4', record, at) * ring.hop_ms >= floor
      out[#out + 1] = kept and sub(record, at, at + TILE_BYTES - 1) or EMPTY_TILE
    end
  end
  return concat(out)
end

local function add(layout, record, base, impressions, clicks, dwell_count, dwell_sum, newest)
  local version, last, floor = unpack('<Bi8i8', record)
  if newest >= floor and newest > last then last = newest end
  local out, n, from = {pack('<Bi8i8', version, last, floor)}, 1, STATIC_AT
  local start = base * layout.tile_ms
  for r = 1, #layout do
    local ring = layout[r]
    local tile = (start - start % ring.hop_ms) / ring.hop_ms
    local at = ring.at + tile % ring.slots * TILE_BYTES
    local held, i, c, d, s = unpack(TILE, record, at)
    if tile >= held and tile * ring.hop_ms >= floor then
      if tile > held then i, c, d, s = 0, 0, 0, 0 end
      out[n + 1] = sub(record, from, at - 1)
      out[n + 2] = pack(TILE, tile, i + impressions, c + clicks, d + dwell_count, s + dwell_sum)
      n, from = n + 2, at + TILE_BYTES
    end
  end
  out[n + 1] = sub(record, from)
  return concat(out)
end

local at = 1
while at <= #statics do
  local i = unpack('<I4', statics, at) + 1
  local layout = layouts[i]
  if not layout then return redis.error_reply('ERR a static section names record ' .. i .. ' of ' .. count) end
  local section = sub(statics, at + 4, at + 3 + layout.static_bytes)
  if #section ~= layout.static_bytes then return redis.error_reply('ERR a static section is cut short') end
  local record = records[i]
  if newer(section, sub(record, STATIC_AT)) then
    record = sub(record, 1, STATIC_AT - 1) .. section .. sub(record, STATIC_AT + layout.static_bytes)
  end
  local removed, _, ts = unpack('<BI4i8', section)
  if removed == 1 then record = forget(layout, record, ts) end
  records[i] = record
  at = at + 4 + layout.static_bytes
end

for at = 1, #rows, ROW_BYTES do
  local i, base, impressions, clicks, dwell_count, dwell_sum, newest = unpack(ROW, rows, at)
  i = i + 1
  if not layouts[i] then return redis.error_reply('ERR a row names record ' .. i .. ' of ' .. count) end
  records[i] = add(layouts[i], records[i], base, impressions, clicks, dwell_count, dwell_sum, newest)
end

local following = tonumber(ARGV[3])
for i = 1, count do
  -- 0.8 to 1.2 of the time to live, from the key's last bytes and the offset: records written together must not expire together.
  local a, b, c, d = byte(KEYS[i + 1], -4, -1)
  local spread = (a * 4099 + b * 16411 + c * 32771 + d * 40503 + following % 65536 * 30011 + i * 10007) % 65536 / 65536
  redis.call('SET', KEYS[i + 1], records[i], 'PX', math.floor(layouts[i].ttl_ms * (0.8 + 0.4 * spread)))
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return following

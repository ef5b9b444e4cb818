-- Strict JSON: scans a request body before the transcoder, which drops unknown fields, takes the last of two equal
-- names, reads unquoted JSON and rounds integers beyond 2^53 without a word.
--
-- `scan_json(text, message)` takes the body and a table of BODIES (body_table.py writes it) and returns
--   nil                    the body is sound,
--   { offset, reason }     it is not JSON: the byte (from 0) and what is wrong there, or
--   { faults = {...} }     it is JSON, but not of this message: { field, message, code } for each fault.
--
-- One loop with explicit stacks and string.byte, no recursion and no patterns on the way through: LuaJIT compiles
-- exactly this, and a body of 1 MB takes milliseconds.

local byte, sub, find, floor = string.byte, string.sub, string.find, math.floor

local MAX_DEPTH = 30             -- levels of a message, and levels of a payload within it
local MAX_FAULTS = 20
local MAX_PATH = 300             -- bytes of a fault's path
local EXACT = 9007199254740992   -- 2^53: the proxy reads numbers as doubles, and rounds integers from here on

-- Container kinds. FREE is below Struct, Value and ListValue, or below what was refused already.
local FREE, MESSAGE, MAP, ARRAY = 1, 2, 3, 4

local HEX = {}
for i = 0, 15 do
  HEX[byte(string.format("%x", i))] = i
  HEX[byte(string.format("%X", i))] = i
end
local ESCAPES = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }
local IS_ESCAPE = {}
for letter in pairs(ESCAPES) do IS_ESCAPE[byte(letter)] = true end

-- The state of the running scan. Nothing yields inside, so one set serves a whole worker thread.
local text, size = "", 0
local kind_at, spec_at, name_at, level_at, serial_at, seen_at = {}, {}, {}, {}, {}, {}
local depth, faults = 0, nil

-- The four hex digits from `i` as a number, or nil.
local function hex4(i)
  local a, b, c, d = HEX[byte(text, i) or 0], HEX[byte(text, i + 1) or 0], HEX[byte(text, i + 2) or 0],
    HEX[byte(text, i + 3) or 0]
  if a and b and c and d then return ((a * 16 + b) * 16 + c) * 16 + d end
  return nil
end

-- The index after the UTF-8 character that begins at `i` with `c` (>= 128), or nil. Table 3-7 of the Unicode standard.
local function after_utf8(i, c)
  local low, high, more = 128, 191, 0
  if c >= 194 and c <= 223 then more = 1
  elseif c == 224 then low, more = 160, 2
  elseif c == 237 then high, more = 159, 2
  elseif c >= 225 and c <= 239 then more = 2
  elseif c == 240 then low, more = 144, 3
  elseif c >= 241 and c <= 243 then more = 3
  elseif c == 244 then high, more = 143, 3
  else return nil end
  local d = byte(text, i + 1) or 0
  if d < low or d > high then return nil end
  for k = 2, more do
    d = byte(text, i + k) or 0
    if d < 128 or d > 191 then return nil end
  end
  return i + more + 1
end

-- The index after the escape at `i`, and whether it is a NUL; or nil and what is wrong.
local function after_escape(i)
  local c = byte(text, i + 1)
  if IS_ESCAPE[c] then return i + 2, false end
  if c ~= 117 then return nil, "unknown escape" end
  local code = hex4(i + 2)
  if not code then return nil, "\\u needs four hexadecimal digits" end
  if code < 0xD800 or code > 0xDFFF then return i + 6, code == 0 end
  local low = code < 0xDC00 and byte(text, i + 6) == 92 and byte(text, i + 7) == 117 and hex4(i + 8)
  if low and low >= 0xDC00 and low <= 0xDFFF then return i + 12, false end
  return nil, "half of a surrogate pair"
end

-- For the string whose first character is at `i`: the index of its closing quote, whether it has escapes, and
-- whether it has a NUL; or nil, the index and the reason.
local function string_end(i)
  local escaped, nul = false, false
  while true do
    local c = byte(text, i)
    if c == 34 then return i, escaped, nul end
    if c == 92 then
      local after, more = after_escape(i)
      if not after then return nil, i, more end
      escaped, nul, i = true, nul or more, after
    elseif c < 32 then
      return nil, i, i > size and "the text ends within a string" or "a control character within a string"
    elseif c < 128 then
      i = i + 1
    else
      local after = after_utf8(i, c)
      if not after then return nil, i, "not UTF-8" end
      i = after
    end
  end
end

-- Whether the bytes are UTF-8.
local function is_utf8(bytes)
  if not find(bytes, "[\128-\255]") then return true end
  text, size = bytes .. "\0", #bytes
  local i = 1
  while i and i <= size do
    local c = byte(text, i)
    i = c < 128 and i + 1 or after_utf8(i, c)
  end
  return i ~= nil
end

local function utf8_of(code)
  local char = string.char
  if code < 0x80 then return char(code) end
  if code < 0x800 then return char(0xC0 + floor(code / 64), 0x80 + code % 64) end
  if code < 0x10000 then
    return char(0xE0 + floor(code / 4096), 0x80 + floor(code / 64) % 64, 0x80 + code % 64)
  end
  return char(0xF0 + floor(code / 262144), 0x80 + floor(code / 4096) % 64, 0x80 + floor(code / 64) % 64,
    0x80 + code % 64)
end

-- What a string with escapes says: "\u0061" is the same name as "a".
local function unescaped(raw)
  local parts, i = {}, 1
  while i <= #raw do
    local from = find(raw, "\\", i, true)
    if not from then break end
    parts[#parts + 1] = sub(raw, i, from - 1)
    local letter = sub(raw, from + 1, from + 1)
    if letter == "u" then
      local code = tonumber(sub(raw, from + 2, from + 5), 16)
      i = from + 6
      if code >= 0xD800 and code <= 0xDBFF then
        code = 0x10000 + (code - 0xD800) * 1024 + tonumber(sub(raw, from + 8, from + 11), 16) - 0xDC00
        i = from + 12
      end
      parts[#parts + 1] = utf8_of(code)
    else
      parts[#parts + 1] = ESCAPES[letter]
      i = from + 2
    end
  end
  parts[#parts + 1] = sub(raw, i)
  return table.concat(parts)
end

-- For the number that begins at `i` with `c`: the index after it, and whether it is an integer literal; or nil, the
-- index and the reason.
local function number_end(i, c)
  local whole = true
  if c == 45 then
    i = i + 1
    c = byte(text, i)
  end
  if c == 48 then
    i = i + 1
    c = byte(text, i)
    if c >= 48 and c <= 57 then return nil, i - 1, "a number with a leading zero" end
  elseif c >= 49 and c <= 57 then
    repeat
      i = i + 1
      c = byte(text, i)
    until c < 48 or c > 57
  else
    return nil, i, "a number needs a digit here"
  end
  if c == 46 then
    whole = false
    local first = i + 1
    repeat
      i = i + 1
      c = byte(text, i)
    until c < 48 or c > 57
    if i == first then return nil, i, "a number needs a digit here" end
  end
  if c == 69 or c == 101 then
    whole = false
    i = i + 1
    c = byte(text, i)
    if c == 43 or c == 45 then i = i + 1 end
    local first = i
    c = byte(text, i)
    while c >= 48 and c <= 57 do
      i = i + 1
      c = byte(text, i)
    end
    if i == first then return nil, i, "a number needs a digit here" end
  end
  return i, whole
end

-- Path of the value being read, such as artifacts[3].payload.amount.
local function path(last)
  local parts = {}
  for level = 1, depth do
    local name = name_at[level]
    if last and level == depth then name = last end
    if type(name) == "number" then parts[#parts + 1] = "[" .. name .. "]"
    else parts[#parts + 1] = (#parts > 0 and "." or "") .. name end
  end
  local whole = table.concat(parts)
  if #whole <= MAX_PATH then return whole end
  -- Never cut within a character: the answer is UTF-8.
  local cut = MAX_PATH
  while byte(whole, cut + 1) >= 128 and byte(whole, cut + 1) < 192 do cut = cut - 1 end
  return sub(whole, 1, cut) .. "..."
end

local function fault(code, message, last)
  faults = faults or {}
  if #faults < MAX_FAULTS then faults[#faults + 1] = { field = path(last), message = message, code = code } end
end

local DAYS = { 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }

local function is_timestamp(value)
  local _, stop, year, month, day, hour, minute, second =
    find(value, "^(%d%d%d%d)%-(%d%d)%-(%d%d)[Tt](%d%d):(%d%d):(%d%d)")
  if not stop then return false end
  local rest = sub(value, stop + 1)
  local fraction = string.match(rest, "^%.(%d+)")
  if fraction then
    if #fraction > 9 then return false end
    rest = sub(rest, #fraction + 2)
  end
  local zone_hour, zone_minute = string.match(rest, "^[+-](%d%d):(%d%d)$")
  if rest ~= "Z" and rest ~= "z" and not (zone_hour and zone_hour + 0 <= 23 and zone_minute + 0 <= 59) then
    return false
  end
  year, month, day = year + 0, month + 0, day + 0
  if year < 1 or month < 1 or month > 12 or day < 1 or day > DAYS[month] then return false end
  local leap = year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)
  if month == 2 and day == 29 and not leap then return false end
  return hour + 0 <= 23 and minute + 0 <= 59 and second + 0 <= 59
end

local function is_duration(value)
  local whole, rest = string.match(value, "^%-?(%d+)(.*)s$")
  if not whole or #whole > 12 or whole + 0 > 315576000000 then return false end
  return rest == "" or (find(rest, "^%.%d+$") ~= nil and #rest <= 10)
end

local RANGES = {
  int32 = { -2147483648, 2147483647 },
  uint32 = { 0, 4294967295 },
  int64 = { -EXACT + 1, EXACT - 1 },
  uint64 = { 0, EXACT - 1 },
}
local EXPECTED = {
  number = "must be a number", int32 = "must be an integer", uint32 = "must be an integer",
  int64 = "must be an integer", uint64 = "must be an integer", bool = "must be true or false",
  string = "must be a string", bytes = "must be a string in base64", enum = "must be a name, as a string",
  timestamp = "must be a time, as a string such as 2026-01-31T12:00:00Z",
  duration = "must be a duration, as a string such as 1.5s", message = "must be an object",
  struct = "must be an object", map = "must be an object", list = "must be a list", list_value = "must be a list",
}

-- A sorted, short list of an enum's names, for the message.
local function names_of(values)
  local names = {}
  for name in pairs(values) do
    if name ~= "UNSPECIFIED" then names[#names + 1] = name end
  end
  table.sort(names)
  return table.concat(names, ", ")
end

-- Check a string against a field that is not free. `raw` stands between the quotes.
local function check_string(spec, raw, escaped, nul)
  local kind = spec.kind
  if nul and kind ~= "value" then return fault("INVALID", "must not contain the character NUL (\\u0000)") end
  if kind == "string" or kind == "value" then return end
  local value = escaped and unescaped(raw) or raw
  if kind == "enum" then
    if not spec.values[value:upper()] then fault("INVALID", "must be one of " .. names_of(spec.values)) end
  elseif kind == "timestamp" then
    if not is_timestamp(value) then
      fault("INVALID", "must be a time of the years 1 to 9999, such as 2026-01-31T12:00:00Z")
    end
  elseif kind == "duration" then
    if not is_duration(value) then fault("INVALID", "must be a duration in seconds, such as 1.5s") end
  elseif kind == "bytes" then
    if not find(value, "^[%w+/_-]*=?=?$") then fault("INVALID", "must be base64") end
  elseif kind == "int64" or kind == "uint64" then
    -- proto JSON writes 64-bit integers as strings; in a string they are exact.
    local digits = string.match(value, kind == "int64" and "^%-?(%d+)$" or "^(%d+)$")
    if not digits or #digits > 20 then fault("WRONG_TYPE", "must be an integer") end
  else
    fault("WRONG_TYPE", EXPECTED[kind])
  end
end

local function check_number(spec, raw)
  local kind = spec.kind
  if kind == "number" or kind == "value" then return end
  local range = RANGES[kind]
  if not range then return fault("WRONG_TYPE", EXPECTED[kind]) end
  local value = tonumber(raw)
  if value ~= floor(value) then return fault("WRONG_TYPE", EXPECTED[kind]) end
  if value < range[1] or value > range[2] then
    fault("OUT_OF_RANGE", string.format("must be between %.0f and %.0f", range[1], range[2]))
  end
end

-- Open a container for the value that `spec` expects (nil: anything); false where it is too deep.
local function open(spec, is_array, serial)
  local kind, inner = FREE, nil
  local wanted = spec and spec.kind
  if is_array then
    kind = ARRAY
    if wanted == "list" then inner = spec.item
    elseif wanted and wanted ~= "value" and wanted ~= "list_value" then fault("WRONG_TYPE", EXPECTED[wanted]) end
  elseif wanted == "message" then kind, inner = MESSAGE, spec.message
  elseif wanted == "map" then kind, inner = MAP, spec.item
  elseif wanted and wanted ~= "value" and wanted ~= "struct" then fault("WRONG_TYPE", EXPECTED[wanted]) end
  -- A payload counts its own levels from 1: what stands around it is the contract's business, not its writer's.
  local same = depth > 0 and (spec_at[depth] ~= nil) == (inner ~= nil)
  local level = same and level_at[depth] + 1 or 1
  depth = depth + 1
  kind_at[depth], spec_at[depth], level_at[depth], serial_at[depth] = kind, inner, level, serial
  name_at[depth] = is_array and 0 or ""
  return level <= MAX_DEPTH
end

-- Read `"name":` at `i`. Returns the index after the colon and what the value must be (nil: anything); or nil, the
-- index and the reason.
local function read_name(i)
  if byte(text, i) ~= 34 then return nil, i, "a name in double quotes is needed here" end
  local stop, escaped, nul = string_end(i + 1)
  if not stop then return nil, escaped, nul end
  local name = sub(text, i + 1, stop - 1)
  if escaped then name = unescaped(name) end
  i = stop + 1
  local c = byte(text, i)
  while c == 32 or c == 10 or c == 13 or c == 9 do
    i = i + 1
    c = byte(text, i)
  end
  if c ~= 58 then return nil, i, "a colon is needed here" end
  local kind, inner, spec = kind_at[depth], spec_at[depth], nil
  name_at[depth] = name
  if kind == MESSAGE then
    spec = inner[name]
    if not spec then fault("UNKNOWN_FIELD", "is not a field here")
    else name = spec.name end
  elseif kind == MAP then
    spec = inner
    if nul then fault("INVALID", "must not contain the character NUL (\\u0000)") end
  end
  local seen, serial = seen_at[depth], serial_at[depth]
  if not seen then
    seen = {}
    seen_at[depth] = seen
  end
  if seen[name] == serial then fault("DUPLICATE_FIELD", "is given twice") end
  seen[name] = serial
  return i + 1, spec
end

-- Read the scalar at `i` that begins with `c`. Returns the index after it; or nil, the index and the reason.
local function read_scalar(i, c, spec)
  if c == 34 then
    local stop, escaped, nul = string_end(i + 1)
    if not stop then return nil, escaped, nul end
    if spec then check_string(spec, sub(text, i + 1, stop - 1), escaped, nul) end
    return stop + 1
  elseif c == 45 or (c >= 48 and c <= 57) then
    local stop, whole, reason = number_end(i, c)
    if not stop then return nil, whole, reason end
    -- Fewer than 16 digits are below 2^53, and without an exponent nothing is infinite.
    if not whole or stop - i > 15 then
      local value = math.abs(tonumber(sub(text, i, stop - 1)))
      if whole and value >= EXACT then
        fault("OUT_OF_RANGE", "an integer of 2^53 or more would lose digits: send it as a string")
        return stop
      elseif value == math.huge then
        fault("OUT_OF_RANGE", "is beyond the range of a double")
        return stop
      end
    end
    if spec then check_number(spec, sub(text, i, stop - 1)) end
    return stop
  elseif c == 116 and sub(text, i, i + 3) == "true" then
    i = i + 4
  elseif c == 102 and sub(text, i, i + 4) == "false" then
    i = i + 5
  elseif c == 110 and sub(text, i, i + 3) == "null" then
    -- proto JSON: null is a field's default; an element of a list or a map cannot be null.
    if spec and not spec.name and spec.kind ~= "value" then fault("WRONG_TYPE", EXPECTED[spec.kind]) end
    return i + 4
  else
    return nil, i, i > size and "the text ends where a value is needed" or "no value can begin like this"
  end
  if spec and spec.kind ~= "bool" and spec.kind ~= "value" then fault("WRONG_TYPE", EXPECTED[spec.kind]) end
  return i
end

local function skip_space(i)
  local c = byte(text, i)
  while c == 32 or c == 10 or c == 13 or c == 9 do
    i = i + 1
    c = byte(text, i)
  end
  return i, c
end

-- Go through the text once. Returns nothing when it is JSON; else the index and the reason.
local function run(root)
  local i, c, spec, more, serial = 1, 0, root, nil, 0
  while true do
    -- A value, which `spec` describes.
    i, c = skip_space(i)
    local opened = false
    if c == 123 or c == 91 then
      serial = serial + 1
      if not open(spec, c == 91, serial) then
        depth = depth - 1
        return fault("TOO_DEEP", "is nested deeper than 30 levels")
      end
      opened = true
      i, c = skip_space(i + 1)
    else
      i, spec, more = read_scalar(i, c, spec)
      if not i then return spec, more end
    end
    -- What may follow it: the end, the ends of its containers, and then the next element or field.
    while true do
      if not opened then
        if depth == 0 then
          i = skip_space(i)
          if i <= size then return i, "something follows the end of the JSON value" end
          return nil
        end
        i, c = skip_space(i)
      end
      local kind = kind_at[depth]
      if kind == ARRAY then
        if c == 93 then
          depth, i, opened = depth - 1, i + 1, false
        elseif opened then
          spec = spec_at[depth]
          break
        elseif c == 44 then
          name_at[depth] = name_at[depth] + 1
          i, spec = i + 1, spec_at[depth]
          break
        else
          return i, "a comma or a closing bracket is needed here"
        end
      elseif c == 125 then
        depth, i, opened = depth - 1, i + 1, false
      elseif opened or c == 44 then
        if not opened then i = skip_space(i + 1) end
        i, spec, more = read_name(i)
        if not i then return spec, more end
        break
      else
        return i, "a comma or a closing brace is needed here"
      end
    end
  end
end

local function scan_json(body, message)
  -- The NUL behind the end lets every loop read one byte further without asking where the end is.
  text, size = body .. "\0", #body
  depth, faults, seen_at = 0, nil, {}
  local root = { kind = "message", message = message, name = "" }
  local at, reason
  if find(body, "^%s*{") then at, reason = run(root)
  else
    at, reason = run(nil)
    if not at then
      faults = { { field = "", message = "the body must be an object", code = "WRONG_TYPE" } }
    end
  end
  local found = faults
  text, faults, seen_at = "", nil, {}
  if at then return { offset = math.min(at - 1, size), reason = at > size and "the text ends too early" or reason } end
  if found then return { faults = found } end
  return nil
end

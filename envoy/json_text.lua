-- Characters, strings and numbers of JSON (RFC 8259), for strict_json.lua: where a token ends, and what is wrong in it.
--
-- string.byte and plain loops, no patterns on the way through: LuaJIT compiles exactly this.

local byte, sub, find, floor = string.byte, string.sub, string.find, math.floor

local HEX = {}
for i = 0, 15 do
  HEX[byte(string.format("%x", i))] = i
  HEX[byte(string.format("%X", i))] = i
end
local ESCAPES = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }
local IS_ESCAPE = {}
for letter in pairs(ESCAPES) do IS_ESCAPE[byte(letter)] = true end

-- The text being read, with a NUL behind its end, so that every loop may read one byte further without asking where
-- the end is. Nothing yields while it is read, so one variable serves a whole worker thread.
local text, size = "", 0

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

local function after_digits(i)
  local c = byte(text, i)
  while c >= 48 and c <= 57 do
    i = i + 1
    c = byte(text, i)
  end
  return i
end

-- For the number that begins at `i` with `c`: the index after it, and whether it is an integer literal; or nil, the
-- index and the reason.
local function number_end(i, c)
  local first, whole = c == 45 and i + 1 or i, true
  i = after_digits(first)
  if i == first then return nil, i, "a number needs a digit here" end
  if i > first + 1 and byte(text, first) == 48 then return nil, first, "a number with a leading zero" end
  if byte(text, i) == 46 then
    whole, first = false, i + 1
    i = after_digits(first)
    if i == first then return nil, i, "a number needs a digit here" end
  end
  c = byte(text, i)
  if c == 69 or c == 101 then
    c = byte(text, i + 1)
    whole, first = false, (c == 43 or c == 45) and i + 2 or i + 1
    i = after_digits(first)
    if i == first then return nil, i, "a number needs a digit here" end
  end
  return i, whole
end

-- The index of the next character that is no white space, and that character.
local function skip_space(i)
  local c = byte(text, i)
  while c == 32 or c == 10 or c == 13 or c == 9 do
    i = i + 1
    c = byte(text, i)
  end
  return i, c
end

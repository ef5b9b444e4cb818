-- The REST side of the proxy: requests before they are transcoded, answers after it.
--
-- Joined behind json_text.lua, strict_json.lua and generated constants: BODIES (the fields of every body),
-- PARAMETERS (proto name -> documented name, where they are two), REPEATED (names of lists), MAX_BODY_BYTES, PROXY_TOKEN
-- (a string, or nil).
-- What a route wants stands in its metadata: `request` (message of the RPC), `body` (message of its JSON body, "none", "raw", or "upload" for one of any
-- size that passes piece by piece), `stream` where the answer is a stream, and `head` where it is for HEAD; or `allow`
-- for a path whose methods are others; or `native` for gRPC; or nothing where there is no such
-- path.
--
-- What it takes from the server, as metadata of calls that carry x-envoy-original-path: `x-error-body` (the error as
-- JSON in ASCII), `x-http-status`, `x-correlation-id` and `retry-after` with an error, in the trailers whether or not
-- headers went before; `x-http-status` in the headers of a success that is not 200. x-error-body stays under 8 KiB:
-- metadata beyond that is refused at random, beyond 16 KiB always.
--
-- h:body() and h:trailers() suspend the function; header objects fetched before are dead afterwards.

local CODES = {
  ["400"] = "BAD_REQUEST", ["401"] = "UNAUTHENTICATED", ["403"] = "FORBIDDEN", ["404"] = "NOT_FOUND",
  ["405"] = "METHOD_NOT_ALLOWED", ["408"] = "TIMEOUT", ["409"] = "CONFLICT", ["412"] = "CONFLICT",
  ["413"] = "PAYLOAD_TOO_LARGE", ["415"] = "BAD_REQUEST", ["422"] = "VALIDATION_ERROR", ["429"] = "RATE_LIMITED",
  ["499"] = "CANCELLED", ["500"] = "INTERNAL", ["501"] = "NOT_IMPLEMENTED", ["502"] = "UNAVAILABLE",
  ["503"] = "UNAVAILABLE", ["504"] = "TIMEOUT",
}
local MESSAGES = {
  ["400"] = "the request could not be read", ["401"] = "no credentials, or none that are known",
  ["403"] = "the caller lacks a permission", ["404"] = "no such resource", ["409"] = "the resource's state forbids it",
  ["413"] = "the request is too large", ["422"] = "the request breaks a rule", ["429"] = "too many requests",
  ["499"] = "the caller went away", ["500"] = "a fault of the server; its log has it under the correlation id",
  ["501"] = "not implemented in this version", ["502"] = "the server cannot be reached",
  ["503"] = "the server cannot be reached", ["504"] = "the deadline passed first",
}
-- What a query parameter of the transcoder's type must be.
local VALUES = {
  TYPE_BOOL = "true or false", TYPE_UINT32 = "an integer between 0 and 4294967295",
  TYPE_INT32 = "an integer between -2147483648 and 2147483647", TYPE_DOUBLE = "a number", TYPE_FLOAT = "a number",
  ["type.googleapis.com/google.protobuf.Timestamp"] = "a time such as 2026-01-31T12:00:00Z",
  ["type.googleapis.com/google.protobuf.Duration"] = "a duration such as 1.5s",
}
local RETRYABLE = { RATE_LIMITED = true, UNAVAILABLE = true, TIMEOUT = true }
-- What gRPC and the server tell this file, and no REST client.
local INTERNAL_HEADERS = {
  "grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-accept-encoding", "grpc-encoding", "x-error-body",
  "x-http-status", "x-local-reply",
}

local function unescaped_url(text)
  return (text:gsub("%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

local function quoted(text)
  return '"' .. text:gsub('[%c"\\]', function(c) return string.format("\\u%04x", c:byte()) end) .. '"'
end

-- The one body of every error.
local function error_body(code, message, correlation_id, faults)
  local details = {}
  for i, fault in ipairs(faults or {}) do
    details[i] = string.format('{"field":%s,"message":%s,"code":%s}', quoted(fault.field), quoted(fault.message),
      quoted(fault.code))
  end
  return string.format('{"code":%s,"message":%s,"correlation_id":%s,"retryable":%s,"details":[%s]}', quoted(code),
    quoted(message), quoted(correlation_id), tostring(RETRYABLE[code] or false), table.concat(details, ","))
end

local function validation_body(correlation_id, faults)
  local first = faults[1]
  local message = first.field == "" and first.message or first.field .. ": " .. first.message
  if #faults > 1 then message = message .. string.format(" (and %d more)", #faults - 1) end
  return error_body("VALIDATION_ERROR", message, correlation_id, faults)
end

-- ---- requests

local function refuse(h, status, body, allow)
  -- Tells the local reply mappers that the body is made already.
  h:headers():replace("x-millstream-refused", "1")
  h:respond({ [":status"] = status, ["content-type"] = body and "application/json", allow = allow }, body)
end

-- A path or method that the contract does not have.
local function refuse_route(h, method, allow, id)
  if allow == nil then return refuse(h, "404", error_body("NOT_FOUND", "no such path", id)) end
  if method == "OPTIONS" then return refuse(h, "204", nil, allow) end
  local message = string.format("this path takes no %s: it takes %s", method, allow)
  refuse(h, "405", error_body("METHOD_NOT_ALLOWED", message, id), allow)
end

-- Let the request go to the server, which takes the token as the sign that this file has checked it. A script that
-- fails lets requests pass, but without the token.
local function pass(h)
  if PROXY_TOKEN then h:headers():replace("x-millstream-proxy", PROXY_TOKEN) end
end

-- The label of the request: the caller's where it is fit for logs, else the request id.
local function label(headers)
  local id = headers:get("x-correlation-id")
  if id == nil or id == "" or #id > 128 or id:find("[^%w._-]") then
    id = headers:get("x-request-id") or ""
    headers:replace("x-correlation-id", id)
  end
  return id
end

local function is_json(content_type)
  if content_type == nil then return true end
  local kind = content_type:lower():match("^%s*([^;%s]+)")
  return kind == nil or kind == "application/json" or kind:find("^application/[%w.-]+%+json$") ~= nil
end

-- Why a body with these headers cannot be read: status, code and message; nothing where it can.
local function unreadable(kind, content_type, encoding)
  if kind == "none" then
    return "400", "BAD_REQUEST", "this path takes no body"
  elseif kind == "raw" then
    return nil
  elseif encoding ~= nil and encoding:lower() ~= "identity" then
    return "415", "BAD_REQUEST", "a compressed body is not supported: send it without Content-Encoding"
  elseif not is_json(content_type) then
    return "415", "BAD_REQUEST", "the body must be JSON: send it with Content-Type: application/json"
  end
  return nil
end

-- A parameter that is given twice, as a fault: of two, the transcoder takes the last without a word.
local function fault_in_query(query)
  local seen = {}
  for part in query:gmatch("[^&]+") do
    local name = unescaped_url(part:match("^[^=]*")):gsub("%u", function(c) return "_" .. c:lower() end)
    name = PARAMETERS[name] or name
    if seen[name] and not REPEATED[name] then
      return { field = name, message = "is given twice", code = "DUPLICATE_FIELD" }
    end
    seen[name] = true
  end
  return nil
end

-- What is wrong with path and query, as a fault: they become fields of type string, which hold UTF-8, and text in
-- the database, which holds no NUL.
local function fault_in_path(path, kind)
  local from = path:find("?", 1, true)
  local takes_query = kind == "none" or kind == "upload"
  if from and from < #path and not takes_query and kind ~= "raw" then
    local name = unescaped_url(path:match("[^=&]+", from + 1) or "")
    if not is_utf8(name) then name = "" end
    return { field = name, message = "must stand in the body: this path takes no query", code = "UNKNOWN_FIELD" }
  end
  if path:find("[%%\128-\255]") then
    for part in path:gmatch("[^/?&]+") do
      local plain = unescaped_url(part)
      if not is_utf8(plain) or plain:find("%z") then
        local name = from and plain:match("^([%w_.]+)=") or ""
        return { field = name, message = "must be UTF-8 without the character NUL", code = "INVALID" }
      end
    end
  end
  return from and takes_query and fault_in_query(path:sub(from + 1)) or nil
end

-- HTTP knows names of headers that gRPC does not, and "-bin" promises it base64: a server would end the call over what
-- it does not even look at.
local function drop_unfit_headers(headers)
  local unfit = {}
  for name in pairs(headers) do
    local strange = name:find("[^%l%d_.-]") and name:byte(1) ~= 58
    if strange or name:find("%-bin$") or name:find("^grpc%-") then unfit[#unfit + 1] = name end
  end
  for i = 1, #unfit do headers:remove(unfit[i]) end
end

function envoy_on_request(h)
  local headers = h:headers()
  local id = label(headers)
  local route = h:metadata()
  local kind = route:get("body")
  if kind == nil then
    -- gRPC comes here only to have its label replaced.
    if route:get("native") then return end
    return refuse_route(h, headers:get(":method"), route:get("allow"), id)
  end
  drop_unfit_headers(headers)
  local fault = fault_in_path(headers:get(":path"), kind)
  if fault then return refuse(h, "422", validation_body(id, { fault })) end
  -- The transcoder knows no HEAD; the answer loses its body below.
  if route:get("head") then
    headers:replace(":method", "GET")
    -- Of a stream the server sends the headers only.
    if route:get("stream") then headers:replace("x-millstream-head", "1") end
  end
  if route:get("stream") and (headers:get("accept") or ""):find("text/event-stream", 1, true) then
    h:streamInfo():dynamicMetadata():set("millstream.rest", "events", true)
  end
  if kind == "upload" then
    -- The transcoder drops the length, and the server wants to refuse what is too long before it comes.
    local length = headers:get("content-length")
    if length then headers:replace("x-upload-bytes", length) end
    return pass(h)
  end
  if headers:get("content-length") == "0" then return pass(h) end
  local content_type, encoding = headers:get("content-type"), headers:get("content-encoding")
  local buffer = h:body()
  local size = buffer and buffer:length() or 0
  if size == 0 then return pass(h) end
  local status, code, message = unreadable(kind, content_type, encoding)
  if size > MAX_BODY_BYTES then
    status, code = "413", "PAYLOAD_TOO_LARGE"
    message = string.format("the request body is over %d bytes", MAX_BODY_BYTES)
  end
  if status then return refuse(h, status, error_body(code, message, id)) end
  local wrong = kind ~= "raw" and scan_json(buffer:getBytes(0, size), BODIES[kind])
  if not wrong then return pass(h) end
  if wrong.faults then return refuse(h, "422", validation_body(id, wrong.faults)) end
  refuse(h, "400", error_body("BAD_REQUEST",
    string.format("malformed JSON at byte %d: %s", wrong.offset, wrong.reason), id))
end

-- ---- answers

-- What the transcoder says of a path or query parameter, as a fault; its own words name types and classes.
local function fault_of(said, request)
  local field = said:match('^Could not find field "([^"]*)"')
  if field then return { field = field, message = "is not a parameter here", code = "UNKNOWN_FIELD" } end
  field = said:match("of the field ([%w_.]+) is conflicting with the value")
  if field then return { field = field, message = "is another in the path", code = "INVALID" } end
  field = said:match("Cannot set '([^']+)' for type oneof") or said:match("'([^']+)' is already set")
  if field then return { field = field, message = "is given twice", code = "DUPLICATE_FIELD" } end
  local kind
  field, kind = said:match("^([%w_.]+): invalid value .* for type ([%w_./]+)$")
  if field then
    local known = ENUMS[kind]
    if known then return { field = field, message = "must be one of " .. known, code = "INVALID" } end
    local limits = OWN_LIMITS[request .. "." .. field]
    if limits == nil then limits = LIMITS[field] end
    local expected = limits or VALUES[kind] or "of another kind"
    return { field = field, message = "must be " .. expected, code = "WRONG_TYPE" }
  end
  return { field = "", message = "a parameter of the path or the query cannot be read", code = "INVALID" }
end

-- `message` of the body that the local reply mapper wrote.
local function said_in(body)
  local said = body:match('"message":"(.*)"[,}]') or ""
  return (said:gsub("\\(.)", "%1"))
end

local function replace_body(h, body)
  h:body(true):setBytes(body)
  local headers = h:headers()
  headers:replace("content-type", "application/json")
  headers:replace("content-length", tostring(#body))
end

-- An error whose body did not come in the headers: the server had sent headers before, so it is in the trailers;
-- or it never wrote one.
local function late_error(h, status, id)
  local said = h:body(true)
  -- grpcio's own words: JSON such as [0,0,0] grows to five times its size on its way.
  if status == "429" and said:getBytes(0, said:length()):find("essage larger than max", 1, true) then
    status = "413"
    h:headers():replace(":status", status)
  end
  local trailers, body = h:trailers(), nil
  if trailers ~= nil then
    body = trailers:get("x-error-body")
    local wanted, retry_after = trailers:get("x-http-status"), trailers:get("retry-after")
    if wanted then
      status = wanted
      h:headers():replace(":status", wanted)
    end
    if retry_after then h:headers():replace("retry-after", retry_after) end
    for _, name in ipairs(INTERNAL_HEADERS) do trailers:remove(name) end
  end
  if body == nil and status == "499" then
    -- A server that is going drops what it has not begun. A caller who went away is told nothing.
    status = "503"
    h:headers():replace(":status", status)
  end
  return body or error_body(CODES[status] or "INTERNAL", MESSAGES[status] or "the request failed", id)
end

-- What the server says beside a good answer comes in the trailers: headers of its own would be another write there.
local TOLD = {
  "x-correlation-id", "idempotency-replayed", "location", "x-deprecated", "content-security-policy",
  "x-content-type-options", "cache-control",
}

local function take_trailers(h, status)
  h:body(true)
  local trailers = h:trailers()
  if trailers == nil then return status end
  local headers = h:headers()
  local wanted = trailers:get("x-http-status")
  if wanted then
    status = wanted
    headers:replace(":status", wanted)
  end
  for _, name in ipairs(TOLD) do
    local value = trailers:get(name)
    if value then
      headers:replace(name, value)
      trailers:remove(name)
    end
  end
  for _, name in ipairs(INTERNAL_HEADERS) do trailers:remove(name) end
  return status
end

-- A browser's EventSource tries again only after what looks like a stream that broke off: any other status ends it for
-- good, be the server away for a second, or full for a while. So it is answered a stream without events, which tells
-- it when to come again.
local AWAY_S, FULL_S = 1, 5

local function try_again(h, status)
  local wait = AWAY_S
  if status == "429" then wait = math.max(tonumber(h:headers():get("retry-after")) or FULL_S, AWAY_S) end
  local told = string.format("retry: %d\n\n", wait * 1000)
  h:body(true):setBytes(told)
  local headers = h:headers()
  headers:remove("retry-after")
  headers:replace(":status", "200")
  headers:replace("content-type", "text/event-stream")
  headers:replace("cache-control", "no-store")
  headers:replace("content-length", tostring(#told))
end

local function asks_for_events(h)
  local noted = h:streamInfo():dynamicMetadata():get("millstream.rest")
  return noted and noted["events"]
end

local function transcoder_error(h, id)
  local said = h:body(true)
  local fault = fault_of(said_in(said:getBytes(0, said:length())), h:metadata():get("request") or "")
  fault.field = PARAMETERS[fault.field] or fault.field
  h:headers():replace(":status", "422")
  return validation_body(id, { fault })
end

function envoy_on_response(h)
  local headers = h:headers()
  if (headers:get("content-type") or ""):find("^application/grpc") and h:metadata():get("native") then return end
  local status, wanted = headers:get(":status"), headers:get("x-http-status")
  local body, reply = headers:get("x-error-body"), headers:get("x-local-reply")
  for i = 1, #INTERNAL_HEADERS do headers:remove(INTERNAL_HEADERS[i]) end
  if wanted then
    status = wanted
    headers:replace(":status", wanted)
  end
  local id = headers:get("x-correlation-id") or ""
  if (status == "503" or status == "429") and asks_for_events(h) then
    try_again(h, status)
  elseif reply then
    if reply:find("grpc_json_transcode_failure", 1, true) then replace_body(h, transcoder_error(h, id)) end
  elseif body then
    replace_body(h, body)
  elseif tonumber(status) >= 400 then
    replace_body(h, late_error(h, status, id))
  elseif h:metadata():get("stream") then
    -- It may never end, and to look at its trailers is to wait for them.
    if h:metadata():get("head") then
      local length = headers:get("x-payload-bytes")
      h:body(true):setBytes("")
      if length then h:headers():replace("content-length", length) end
    end
    return
  elseif take_trailers(h, status) == "204" then
    headers = h:headers()
    headers:remove("content-type")
    headers:remove("content-length")
    h:body(true):setBytes("")
    return
  end
  if h:metadata():get("head") then
    -- It was made a GET for the transcoder, so that nobody else leaves the body out: of an error neither, which would
    -- stand on the connection before the next answer.
    local length = h:headers():get("content-length")
    h:body(true):setBytes("")
    if length then h:headers():replace("content-length", length) end
  end
end

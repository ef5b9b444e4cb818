"""The proxy's own answers (no route, no upstream, too large, too late) in the contract's error body."""

from __future__ import annotations

from typing import Any

JSON = dict[str, Any]
Error = tuple[str, str, bool]

# rest.lua keeps the label fit for logs; a reply from before it falls back on the request id.
_LABEL = "%REQ(X-CORRELATION-ID?X-REQUEST-ID)%"
# By status: code, message, retryable. Envoy's own words (`%LOCAL_REPLY_BODY%`) are only shown where rest.lua reads
# them and writes better ones.
_ERRORS: dict[int, Error] = {
    400: ("BAD_REQUEST", "%LOCAL_REPLY_BODY%", False),
    404: ("NOT_FOUND", "no such path", False),
    405: ("METHOD_NOT_ALLOWED", "this path has no such method: the Allow header lists those it has", False),
    408: ("TIMEOUT", "the request did not arrive in time", True),
    413: ("PAYLOAD_TOO_LARGE", "the request body is over {max_body_bytes} bytes", False),
    500: ("INTERNAL", "a fault of the proxy; its log has it under the correlation id", False),
    502: ("UNAVAILABLE", "the server gave no readable answer", True),
    503: ("UNAVAILABLE", "the server cannot be reached", True),
    504: ("TIMEOUT", "the server did not answer in time", True),
}
_OTHER: Error = ("BAD_REQUEST", "the request was refused", False)
# Refused while the HTTP message was being read, before there is a request to speak of.
_UNREAD: dict[int, Error] = {
    408: _ERRORS[408],
    426: ("BAD_REQUEST", "this version of HTTP is not served: use HTTP/1.1 or HTTP/2", False),
    431: ("PAYLOAD_TOO_LARGE", "the request headers are over {max_header_kib} KiB", False),
}
_MALFORMED: Error = ("BAD_REQUEST", "malformed HTTP request", False)


def local_reply_config(*, max_body_bytes: int, max_header_kib: int) -> JSON:
    """Return Envoy's `local_reply_config`: the first mapper that fits a reply writes it."""

    def mapper(error: Error, filters: list[JSON], label: str = _LABEL, **headers: str) -> JSON:
        code, message, retryable = error
        message = message.format(max_body_bytes=max_body_bytes, max_header_kib=max_header_kib)
        # The header is set before the body is formatted, so both show one value even where it is made up here.
        fields = {"correlation_id": "%RESP(X-CORRELATION-ID)%", "retryable": retryable, "details": []}
        return {
            **_when(*filters, x_correlation_id=label, **headers),
            "body_format_override": {"json_format": {"code": code, "message": message, **fields}},
        }

    # `x-local-reply` tells rest.lua whose answer it is; it never leaves the proxy.
    details = {"x_local_reply": "%RESPONSE_CODE_DETAILS%"}
    unread = _header("x-request-id", absent=True)
    return {
        "mappers": [
            # rest.lua refused it and wrote the body.
            _when(_header("x-millstream-refused"), x_correlation_id=_LABEL, x_local_reply="refused"),
            *(
                mapper(error, [unread, _status("EQ", status)], "%UNIQUE_ID%", **details)
                for status, error in _UNREAD.items()
            ),
            mapper(_MALFORMED, [unread], "%UNIQUE_ID%", **details),
            # Over gRPC the text becomes grpc-message: no JSON, and nothing of the proxy's inside.
            *_grpc_mappers(),
            *(mapper(error, [_status("EQ", status)], **details) for status, error in _ERRORS.items()),
            mapper(_OTHER, [_status("GE", 400)], **details),
        ]
    }


def _grpc_mappers() -> list[JSON]:
    # The transcoder makes REST requests look like gRPC, and leaves this header on them.
    native = [
        {"header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}},
        _header("x-envoy-original-path", absent=True),
    ]
    return [
        {
            **_when(*native, _status("EQ", status), x_correlation_id=_LABEL),
            "body_format_override": {"text_format_source": {"inline_string": message}},
        }
        for status, (_, message, _) in _ERRORS.items()
        if status >= 500
    ] + [_when(*native, x_correlation_id=_LABEL)]


def _when(*filters: JSON, **headers: str) -> JSON:
    return {
        "filter": filters[0] if len(filters) == 1 else {"and_filter": {"filters": list(filters)}},
        "headers_to_add": [
            {
                "header": {"key": name.replace("_", "-"), "value": value},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for name, value in headers.items()
        ],
    }


def _header(name: str, *, absent: bool = False) -> JSON:
    return {"header_filter": {"header": {"name": name, "present_match": True, "invert_match": absent}}}


def _status(operator: str, status: int) -> JSON:
    # A runtime key must be named; nobody sets it.
    value = {"default_value": status, "runtime_key": "millstream.local_reply"}
    return {"status_code_filter": {"comparison": {"op": operator, "value": value}}}

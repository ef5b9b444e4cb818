"""The proxy: one Envoy listener for REST, gRPC and gRPC-Web, configured from the contract's descriptors."""

from millstream.adapters.envoy.config import DEFAULT_MAX_BODY_BYTES, DEVELOPMENT_ORIGINS, command, render

__all__ = ["DEFAULT_MAX_BODY_BYTES", "DEVELOPMENT_ORIGINS", "command", "render"]

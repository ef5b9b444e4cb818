"""What answers over REST must look like."""

from __future__ import annotations

from typing import Any

import httpx

ARTIFACT = {
    "id", "type", "payload", "produced_by", "visibility", "visibility_kind", "created_at", "correlation_id",
    "partition_key", "tags", "version",
}  # fmt: skip
"""FL-17: the keys of an artifact in every answer."""
RETRYABLE = {"RATE_LIMITED", "UNAVAILABLE", "TIMEOUT"}
_INTERNAL = ("grpc-", "x-error-body", "x-http-status", "x-local-reply", "x-envoy-", "x-millstream-")


def check_error(response: httpx.Response, status: int, code: str, *fields: str) -> dict[str, Any]:
    """Check that the answer is the one error shape, with this status, code and faulty fields; return its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"code", "message", "correlation_id", "retryable", "details"}
    assert body["code"] == code, body
    assert body["message"]
    assert body["retryable"] is (code in RETRYABLE)
    assert body["correlation_id"] == response.headers["x-correlation-id"] != ""
    for detail in body["details"]:
        assert set(detail) == {"field", "message", "code"}
        assert all(isinstance(text, str) and text for text in detail.values())
    assert [detail["field"] for detail in body["details"]] == list(fields), body
    assert not [name for name in response.headers if name.startswith(_INTERNAL)]
    for word in ("millstream.v1", "type.googleapis", "Traceback", "asyncpg", "grpc_", "Error("):
        assert word not in response.text
    return body


def check_ok(response: httpx.Response, status: int = 200) -> Any:
    """Check that the call succeeded, and return its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-correlation-id"].count(",") == 0
    assert not [name for name in response.headers if name.startswith(_INTERNAL)]
    return response.json()

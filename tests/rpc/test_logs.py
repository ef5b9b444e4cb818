"""Logs: one line an event, in the form asked for, without the values of locals."""

import io
import json
import logging

import pytest
import structlog

from millstream.adapters import logs


def _fail() -> None:
    password = "secret-of-a-local"
    raise RuntimeError(f"broken, with {len(password)} characters")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_failure_is_logged_with_its_label_and_no_locals(form: logs.LogFormat) -> None:
    """DC-6: structured logs with correlation ids."""
    out = io.StringIO()
    logs.configure(form, "info", out)
    structlog.contextvars.bind_contextvars(correlation_id="label-1")
    log = structlog.get_logger("x")
    try:
        _fail()
    except RuntimeError as error:
        log.exception("call failed", exc_info=error)
    log.debug("not shown")
    text = out.getvalue()
    assert "label-1" in text
    assert "broken, with 17 characters" in text
    assert "secret-of-a-local" not in text.replace('password = "secret-of-a-local"', "")
    assert "not shown" not in text
    if form == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["level"] for line in lines] == ["error"]
        assert '"locals"' not in text


def test_a_header_that_is_no_text_is_not_logged() -> None:
    """FL-10: it is the caller's fault, and may be a secret."""
    out = io.StringIO()
    logs.configure("json", "info", out)
    log = logging.getLogger("grpc._cython.cygrpc")
    try:
        b"key-\xe9".decode()
    except UnicodeDecodeError:
        log.exception("Invalid encoding on %r", b"key-\xe9")
    assert not out.getvalue()
    log.error("something else")
    assert "something else" in out.getvalue()


def test_what_libraries_log_comes_out_in_the_same_form() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    logging.getLogger("some.library").warning("careful, %s", "you")
    logging.getLogger("some.library").info("chatter")
    line = json.loads(out.getvalue())
    assert (line["event"], line["level"], line["logger"]) == ("careful, you", "warning", "some.library")

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


def _events(out: io.StringIO) -> list[tuple[str, str]]:
    """Loggers and texts of the lines so far."""
    return [(line["logger"], line["event"]) for line in map(json.loads, out.getvalue().splitlines())]


def test_levels_change_while_loggers_are_in_use_and_change_back() -> None:
    """Operations: of all of the service or of a logger and those below it, whichever way it logs."""
    out = io.StringIO()
    logs.configure("json", "info", out)
    ours, below = structlog.get_logger("millstream.rpc"), logging.getLogger("millstream.rpc.below")
    other, library = logging.getLogger("millstream.other"), logging.getLogger("some.library")

    def all_say(text: str) -> None:
        for log in (ours, below, other, library):
            log.debug(text)
            log.info(text + "!")

    all_say("configured")
    logs.apply({"millstream.rpc": "debug"})
    all_say("one")
    logs.apply({"": "error", "millstream.other": "info"})
    all_say("quiet")
    logs.apply({"": "debug"})
    all_say("all")
    logs.apply({})
    all_say("again")
    names = ["millstream.rpc", "millstream.rpc.below", "millstream.other"]
    assert _events(out) == [
        *((name, "configured!") for name in names),
        *((name, text) for name in names[:2] for text in ("one", "one!")), ("millstream.other", "one!"),
        ("millstream.other", "quiet!"),
        *((name, text) for name in names for text in ("all", "all!")),
        *((name, "again!") for name in names),
    ]  # fmt: skip


def test_libraries_do_not_chatter_at_any_level() -> None:
    """What they say at debug may hold what was sent."""
    out = io.StringIO()
    logs.configure("json", "debug", out)
    logs.apply({"": "debug"})
    logging.getLogger("some.library").info("chatter")
    assert not out.getvalue()


def test_levels_do_nothing_to_a_process_that_configured_its_logs_itself() -> None:
    before = logging.getLogger("millstream").level
    logs.apply({"": "debug"})
    assert logging.getLogger("millstream").level == before

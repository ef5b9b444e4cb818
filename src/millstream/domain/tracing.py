"""The trace that work belongs to, as W3C Trace Context has it: "00-<trace id>-<span id>-<flags>", in hexadecimal.

What runs here has spans whose ids follow from ids that are stored anyway, so nothing is kept or sent for them: whoever
knows a run or an attempt knows its span, on whichever server, and however often it is asked.

Source: https://www.w3.org/TR/trace-context/
"""

import hashlib
import json
import re

_PARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<ids>(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-[ -~]*)?"
).fullmatch
_SAMPLED = 1


def received(header: str) -> str:
    """The traceparent to go on from, of a caller's header; "" where it begins no trace.

    Of a version to come the fields of this one are taken, and of its flags the one that this one knows.
    """
    found = _PARENT(header)
    if found is None:
        return ""
    if found["version"] == "00":
        return "" if found["more"] else header
    return f"00-{found['ids']}-{int(found['flags'], 16) & _SAMPLED:02x}"


def trace_id(traceparent: str) -> str:
    """The trace it belongs to; "" for none."""
    return traceparent[3:35]


def span_id(traceparent: str) -> str:
    """The span that it goes on from; "" for none."""
    return traceparent[36:52]


def sampled(traceparent: str) -> bool:
    """Whether the spans below it are recorded."""
    return bool(traceparent) and bool(int(traceparent[53:55], 16) & _SAMPLED)


def below(traceparent: str, of: str, number: int = 0) -> str:
    """The context of what a run (number 0), or an attempt of a task, does; "" where there is no trace."""
    if not traceparent:
        return ""
    span = hashlib.blake2b(f"{of} {number}".encode(), digest_size=8).hexdigest()
    return f"{traceparent[:36]}{span}{traceparent[52:]}"


def end_of(traceparent: str, run_id: str, before: int) -> str:
    """The context that the span of a run's end is known by, which ended so often `before`: that of the first is what
    the run does, so that what lies below it has one span above it however often the run goes on."""
    return below(traceparent, f"{run_id} again", before) if before else below(traceparent, run_id)


def within(run_trace: str, run_id: str, cause: str) -> str:
    """The context of a task that a run makes: that of its cause where this is of the run's trace, else the run's."""
    if cause != run_trace and trace_id(cause) == trace_id(run_trace):
        return cause
    return below(run_trace, run_id)


def with_trace(data: str, traceparent: str) -> str:
    """An event's data, a JSON object as text or "", with the trace it belongs to."""
    fields = json.loads(data) if data else {}
    return json.dumps({**fields, "trace_id": trace_id(traceparent)}, separators=(",", ":"), ensure_ascii=False)

"""What goes wrong with an agent, as failures of a task."""

from typing import Final

import httpx

from millstream.adapters.agents.guard import Refused, Unacceptable, shown
from millstream.application.call_ports import CallFailed

UNREACHABLE: Final = "AGENT_UNREACHABLE"
"""No connection, or it broke; tried again by the task's policy."""
REFUSED_ADDRESS: Final = "AGENT_ADDRESS_REFUSED"
"""The server does not call there."""
ERROR: Final = "AGENT_ERROR"
"""The agent, or what stands before it, is in trouble; tried again by the task's policy."""
REFUSED: Final = "AGENT_REFUSED"
"""The agent does not take the request; final."""
INVALID: Final = "AGENT_ANSWER_INVALID"
"""The answer is not what the protocol says; final."""
BODY_MOST: Final = 500
"""Characters of an answer that are told."""
BUSY: Final = (408, 425, 429)


def of_transport(error: httpx.HTTPError) -> CallFailed:
    """What a request ended with."""
    if isinstance(error, Refused):
        return CallFailed(REFUSED_ADDRESS, str(error), retryable=False)
    if isinstance(error, Unacceptable):
        return CallFailed(INVALID, str(error), retryable=False)
    if isinstance(error, httpx.HTTPStatusError):
        return of_status(error.response)
    return CallFailed(UNREACHABLE, f"the agent cannot be reached: {str(error) or type(error).__name__}")


def of_status(response: httpx.Response, said: str = "") -> CallFailed:
    """What a status that is no success means. `said`: why, by the agent."""
    status = response.status_code
    text = f"{shown(response.request.url)} answered {status}"
    text += f": {said[:BODY_MOST]}" if said else ""
    if 300 <= status < 400:
        return CallFailed(REFUSED, f"{text}; redirects are not followed: register where it leads", retryable=False)
    if status in BUSY or status >= 500:
        return CallFailed(ERROR, text, retry_after_s=_retry_after_s(response))
    return CallFailed(REFUSED, text, retryable=False)


def _retry_after_s(response: httpx.Response) -> float | None:
    given = response.headers.get("retry-after", "")
    return float(given) if given.isdigit() and len(given) < 7 else None

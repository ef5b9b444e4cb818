"""What an RPC may be refused for: what its comment lists, and what every call may meet."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from apidocs.contract import Contract, Door, Rpc

JSON = dict[str, Any]

_REASON = re.compile(r"^(\d{3}), (?:not )?retryable[^.]*\. (.*?)\s*(\{.*\})?$", re.DOTALL)
_SAME = re.compile(r"\b[Aa]s (\w+)\b")
_END = re.compile(r"\.(?:\s|$)")


NOT_JSON = 415
"""The status of BAD_REQUEST where it is the body's Content-Type or its compression that cannot be read."""


@dataclass(frozen=True)
class Reason:
    """A code of errors, as the contract's comment on it says."""

    code: str
    status: int
    meaning: str
    example: JSON


class Errors:
    """The errors of a contract."""

    def __init__(self, contract: Contract) -> None:
        self._by_name = {rpc.name: rpc for rpc in contract.rpcs()}
        values = contract.message("ErrorBody").enum_types_by_name["Reason"].values
        self.reasons = {value.name: _reason(value.name, contract.comment(value)) for value in values if value.number}

    def of(self, door: Door) -> dict[int, list[tuple[Reason, str]]]:
        """By status: each code that calls of the door may be refused with, and when; "" where its meaning says it."""
        noted = dict.fromkeys(_of_every_call(door), "") | self.listed(door.rpc)
        found: dict[int, list[tuple[Reason, str]]] = {}
        for code, note in noted.items():
            reason = self.reasons[code]
            found.setdefault(reason.status, []).append((reason, note))
        if door.body == "*":
            found[NOT_JSON] = [(self.reasons["BAD_REQUEST"], "")]
        return dict(sorted(found.items()))

    def listed(self, rpc: Rpc) -> dict[str, str]:
        """The codes that the comment on an RPC lists, each with what it says of it.

        "as Publish" stands for all that the comment on Publish lists.
        """
        text = _first_sentences(rpc.errors)
        found: dict[str, str] = {}
        for name in _SAME.findall(text):
            if name in self._by_name and name != rpc.name:
                found |= self.listed(self._by_name[name])
        marks = list(re.finditer(r"\b(" + "|".join(self.reasons) + r")\b", text))
        for mark, following in zip_longest(marks, marks[1:]):
            note = text[mark.end() : following.start() if following else len(text)]
            found[mark[1]] = re.sub(r"(,|;|\.|\band|\bor|\s)+$", "", note.strip(" ,;")).strip()
        return found


def _of_every_call(door: Door) -> list[str]:
    policy = door.rpc.policy
    codes = ["BAD_REQUEST", "VALIDATION_ERROR", "INTERNAL", "UNAVAILABLE", "TIMEOUT"]
    if not policy.public:
        codes += ["UNAUTHENTICATED", "RATE_LIMITED"]
    if policy.permission:
        codes.append("FORBIDDEN")
    if door.body:
        codes.append("PAYLOAD_TOO_LARGE")
    if policy.keyed:
        codes.append("IDEMPOTENCY_CONFLICT")
    if "tenant" in door.variables:
        codes.append("NOT_FOUND")
    return codes


def _first_sentences(errors: str) -> str:
    """The list itself: up to the end of the first sentence that is not within brackets."""
    for end in _END.finditer(errors):
        before = errors[: end.start()]
        if before.count("(") == before.count(")"):
            return before
    return errors


def _reason(code: str, comment: str) -> Reason:
    found = _REASON.match(comment)
    if found is None:
        # Of failures within answers only: never the status of one.
        return Reason(code, 0, comment, {})
    if found[3] is None:
        raise SystemExit(f"error.proto: the comment on {code} needs an example body, a JSON object at its end")
    return Reason(code, int(found[1]), found[2], json.loads(found[3]))

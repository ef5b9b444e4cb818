"""The rules of the worker protocol that scenarios check; docs/worker-protocol.md explains each under its number."""

from collections.abc import Mapping
from typing import Final

RULES: Final[Mapping[str, str]] = {
    # connecting
    "W1": "The first message of a stream says hello, and no other one does.",
    "W2": "Messages are numbered 1, 2, 3, ..., on each stream anew.",
    "W3": "Messages keep the field rules of the contract.",
    "W4": "Every stream and every call carries the token that the worker was given.",
    "W5": "The hello says protocol 1 and the worker's id, a UUID that stays the same over reconnects.",
    "W6": "The hello names the kinds and agents served and the slots.",
    "W7": "What the worker says of a kind of tasks is about one that it serves.",
    # credit
    "W8": "Credit that is not used and leases that are held are together never more than the slots.",
    "W9": "A lease that ends gives its slot back.",
    "W10": "As many leases as there is credit for are taken, in one message or in many, and run all at once.",
    # leases
    "W11": "The arrival of a lease is acknowledged, not later than its report, and without waiting for the work.",
    "W12": "A lease that is held, or whose report is not acknowledged, is not run again when it comes again.",
    "W13": "A task of a kind that is not served fails, retryable.",
    "W14": "Input and output are the very JSON.",
    "W15": "A later attempt is run like the first, and reported under its own number.",
    "W16": "The task is given the lease's idempotency token.",
    # reports
    "W17": "A lease ends in one completion, one failure or one release, none of it twice on a stream.",
    "W18": "Reports name the task and the attempt of a lease that was given.",
    "W19": "A failure has code, message, retryable and retry_after as the task set them.",
    "W20": "What an agent publishes goes with its completion.",
    "W21": "Progress is reported while the task runs.",
    "W22": "A report is kept until it is acknowledged, and goes again on the next stream.",
    "W23": "What is acknowledged is not sent again.",
    "W24": "A report that is refused is not sent again, and the worker goes on.",
    "W25": "The worker goes on while acknowledgements are late.",
    # reconnecting
    "W26": "The worker connects again when the stream ends.",
    "W27": "The pauses between its tries grow.",
    "W28": "The hello names the leases still held and those whose reports are not acknowledged.",
    "W29": "What runs goes on over a reconnect.",
    "W30": "Leases that the welcome does not name are given up, without a report and without credit.",
    # signs of life
    "W31": "Something is sent well within each lease.",
    "W32": "A task with a heartbeat timeout shows a sign of life within each of them.",
    # cancellation
    "W33": "A task that is cancelled ends soon, by a failure or a completion.",
    "W34": "A lease that is lost is given up without a report, and its slot is free again.",
    "W35": "A cancellation of what is not held is ignored.",
    # ends
    "W36": "When the server drains, the worker finishes, reports, ends the stream, and connects again.",
    "W37": "When it is stopped the worker says drain, finishes what runs, and exits with 0 once all is acknowledged.",
    # versions
    "W38": "Fields that it does not know, and messages that say nothing, are ignored.",
    # polling
    "W39": "Polls name the kinds and agents served and the worker's id, a UUID that stays the same.",
    "W40": "Leases that open polls ask for and leases that are held are together never more than the slots.",
    "W41": "The worker polls again after each answer, an empty one too, and lets the poll wait at the service.",
    "W42": "A worker that polls renews each lease well within it.",
    "W43": "A report that was not answered is sent again until it is.",
    "W44": "A lease of which a result says LEASE_LOST is given up without a report, and its slot is free again.",
    "W45": "When it is stopped a worker that polls asks for no more, finishes what runs, reports, and exits with 0.",
    # logs
    "W46": "The lines of an attempt are numbered 1, 2, 3, ... without gaps, and say what the task logged.",
    "W47": "Lines go again over a new stream until they are acknowledged, under the same numbers, and then no more.",
    "W48": "Where an acknowledgement asks for lines again, those behind it are sent again.",
    "W49": "The report on an attempt that logged names the number of its last line.",
    "W50": "Of a log that is refused with LEASE_LOST nothing more is sent, and the worker goes on.",
    "W51": "A server that gives no window for lines is sent none, and nothing waits for it.",
}
"""Text by number."""


class NotServed(Exception):
    """The worker serves no tasks of the kind that a scenario is about, and need not."""


class Violation(Exception):
    """A worker broke a rule."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(what)
        self.rule = rule
        self.what = what

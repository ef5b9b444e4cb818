"""All scenarios, in the order in which they are played."""

from collections.abc import Mapping
from typing import Final

from millstream.conformance.scenario import Scenario
from millstream.conformance.scenarios import connecting, ending, leases, living, logs, polling, polling_logs, reports

SCENARIOS: Final[Mapping[str, Scenario]] = {
    each.name: each
    for book in (
        connecting.book,
        leases.book,
        reports.book,
        living.book,
        logs.book,
        ending.book,
        polling.book,
        polling_logs.book,
    )
    for each in book.scenarios
}
"""By name."""

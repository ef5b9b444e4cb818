"""What a worker serves while it is tested, and the environment that tells it so."""

from typing import Final

ECHO: Final = "conformance.echo"
FAIL: Final = "conformance.fail"
SLEEP: Final = "conformance.sleep"
HOLD: Final = "conformance.hold"
PROGRESS: Final = "conformance.progress"
TOKEN: Final = "conformance.token"  # noqa: S105 (a kind's name)
KINDS: Final = (ECHO, FAIL, SLEEP, HOLD, PROGRESS, TOKEN)
"""Kinds of standalone tasks; docs/worker-protocol.md says what each does."""
LOG: Final = "conformance.log"
OPTIONAL_KINDS: Final = (LOG,)
"""Kinds that a worker serves where it can do what they are about; their scenarios pass it over where it does not."""
PUBLISHER: Final = "conformance-publisher"
"""The agent that takes an INPUT and publishes an OUTPUT for each of its items."""
INPUT: Final = "ConformanceInput"
OUTPUT: Final = "ConformanceOutput"

SLOTS: Final = 20
API_KEY: Final = "conformance-key"
POLL_LEASE_S: Final = 3
"""How long the lease of a worker that polls holds without a heartbeat."""


def environment(target: str) -> dict[str, str]:
    """What a worker is told."""
    return {
        "MILLSTREAM_TARGET": target,
        "MILLSTREAM_API_KEY": API_KEY,
        "MILLSTREAM_CONFORMANCE_KINDS": ",".join((*KINDS, f"agent:{PUBLISHER}")),
        "MILLSTREAM_CONFORMANCE_OPTIONAL_KINDS": ",".join(OPTIONAL_KINDS),
        "MILLSTREAM_CONFORMANCE_SLOTS": str(SLOTS),
        "MILLSTREAM_CONFORMANCE_LEASE_S": str(POLL_LEASE_S),
    }

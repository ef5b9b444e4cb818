"""docs/events.md names every type of event, and what it tells."""

import re
from pathlib import Path

from millstream.domain.runs import EventType
from millstream.transport.mapping.run_streams import NAMES
from millstream.v1.run_pb2 import RunEvent

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
_ROW = re.compile(r"^\| `([A-Z_]+)` \| [^|]+ \| ([^|]*) ?\|$", re.MULTILINE)


def documented() -> dict[str, set[str]]:
    """What the data of events have, by type."""
    return {name: set(re.findall(r"`([a-z_]+)`", data)) for name, data in _ROW.findall(PAGE.read_text())}


def test_every_type_of_event_is_documented() -> None:
    """FV-13"""
    found = [name for name, _ in _ROW.findall(PAGE.read_text())]
    assert len(found) == len(set(found))
    assert set(found) == {each.name for each in EventType}
    assert set(found) | {"UNSPECIFIED"} == set(RunEvent.Type.keys())


def test_the_documented_names_of_events_are_those_that_are_sent() -> None:
    """FV-13: task_created, task_started, task_progress, task_completed, task_failed, task_retry."""
    assert {"task_created", "task_started", "task_progress", "task_completed", "task_failed", "task_retry"} <= {
        *NAMES.values()
    }
    assert {name.upper() for name in NAMES.values()} == set(documented())

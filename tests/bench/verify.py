"""What must be true of the database after the load: nothing lost, nothing open, no number missing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg

_OPEN = """SELECT (SELECT count(*) FROM run WHERE finished_us = 0)
+ (SELECT count(*) FROM task WHERE finished_us = 0)"""
# Sleepers are cancelled, and what was watched, and nothing else is.
_STOPPED = "((workflow = 'bench-sleep' OR tenant = 'watching') AND status = 5)"
_QUERIES = {
    "runs": "SELECT count(*) FROM run",
    "runs not completed": f"SELECT count(*) FROM run WHERE status <> 3 AND NOT {_STOPPED}",
    "tasks": "SELECT count(*) FROM task",
    "tasks not completed": f"""SELECT count(*) FROM task WHERE status <> 4
AND NOT (status = 6 AND run_id IN (SELECT id FROM run WHERE {_STOPPED}))""",
    "events": "SELECT count(*) FROM event",
    "event gaps": """SELECT count(*) FROM run LEFT JOIN (SELECT run_id, count(*) AS n, max(seq) AS last,
min(seq) AS first FROM event GROUP BY run_id) e ON e.run_id = run.id
WHERE e.run_id IS NULL OR e.n <> run.last_seq OR e.last <> run.last_seq OR e.first <> 1""",
    "published artifacts": "SELECT count(*) FROM artifact WHERE produced_by = 'external'",
    "cascades without 4 artifacts": """SELECT count(*) FROM (SELECT run_id, count(*) AS n,
bool_or(type = 'Order') AS ordered FROM artifact GROUP BY run_id) a WHERE ordered AND n <> 4""",
    "runs of definitions": "SELECT count(*) FROM run WHERE kind = 3",
    "runs of code": "SELECT count(*) FROM run WHERE kind = 4",
    "workflows without 3 steps done": """SELECT count(*) FROM run WHERE workflow IN ('bench-steps', 'bench-code')
AND 3 <> (SELECT count(*) FROM task WHERE task.run_id = run.id AND kind = 'bench.step' AND status = 4)""",
    "workflows without output": """SELECT count(*) FROM run WHERE workflow IN ('bench-steps', 'bench-code', 'bench-map')
AND NOT EXISTS (SELECT 1 FROM run_payload p WHERE p.run_id = run.id AND p.what = 2)""",
    "journal gaps": """SELECT count(*) FROM (SELECT run_id, count(*) AS n, max(n) AS last FROM journal WHERE n > 0
GROUP BY run_id) j WHERE n <> last""",
}
_FAULTS = (
    "runs not completed", "tasks not completed", "event gaps", "cascades without 4 artifacts",
    "workflows without 3 steps done", "workflows without output", "journal gaps",
)  # fmt: skip


async def verified(connection: asyncpg.Connection[Any], published: int | None) -> tuple[dict[str, int], list[str]]:
    """Counts, and what is wrong with them; `published` is how many artifacts were acknowledged, None: not known."""
    end = time.monotonic() + 15
    while await connection.fetchval(_OPEN) and time.monotonic() < end:  # noqa: ASYNC110 (nothing to wait on)
        await asyncio.sleep(0.1)
    counts = {name: int(await connection.fetchval(query)) for name, query in _QUERIES.items()}
    faults = [f"{counts[name]} {name}" for name in _FAULTS if counts[name]]
    if published is not None and counts["published artifacts"] != published:
        faults.append(f"{published} artifacts were acknowledged and {counts['published artifacts']} are stored")
    return counts, faults

"""Histories of code-first runs: events that their code is told of, and the commands that it gave; and the workflows
that workers have the code of."""

import json
from typing import Any

from millstream.domain.code import CLOSED, DISOWNED, CommandType, Entry, EntryType, History, Recorded
from millstream.domain.runs import EventType, Run
from millstream.store.connections import Database

_ENTRY_OF = {
    EventType.RUN_CREATED: EntryType.STARTED,
    EventType.CONTINUED_AS_NEW: EntryType.STARTED,
    EventType.TASK_COMPLETED: EntryType.COMPLETED,
    EventType.TASK_FAILED: EntryType.FAILED,
    EventType.TASK_CANCELLED: EntryType.FAILED,
    EventType.SIGNALLED: EntryType.SIGNALLED,
    EventType.RUN_CANCELLING: EntryType.CANCELLING,
    EventType.RUN_TIMED_OUT: EntryType.CANCELLING,
}
_TOLD = "{" + ",".join(str(int(kind)) for kind in _ENTRY_OF) + "}"
PAGE_ITEMS = 1000

# An event that the code is told of counts only as the end of what it began: of an attempt that a retry by hand took
# back there is nothing to tell. Sizes come first, so that no page is larger than it may be; nothing is read twice but
# the keys.
_KEYS = f"""WITH told AS (
SELECT e.seq AS at, 0 AS n, octet_length(coalesce(a.output, p.value, j.value, ''::bytea)) + 200 AS size
FROM event e
LEFT JOIN task t ON t.id = e.task_id
LEFT JOIN attempt a ON a.day = e.day AND a.task_id = e.task_id AND a.number = e.attempt AND e.type = 5
LEFT JOIN journal j ON j.day = e.day AND j.run_id = e.run_id AND j.n = -e.seq
LEFT JOIN run_payload p ON p.day = e.day AND p.run_id = e.run_id AND p.what = 1 AND e.type = 1
WHERE e.day = $1 AND e.run_id = $2::text::uuid AND e.seq >= $3 AND e.seq <= $5 AND (e.seq, 0) > ($3, $4)
AND e.type = ANY('{_TOLD}'::int2[])
AND (e.task_id IS NULL OR (t.step > 0 AND t.finished_us > 0 AND t.attempt = e.attempt
AND t.error_message NOT IN ('{DISOWNED}', '{CLOSED}')))
ORDER BY e.seq LIMIT {PAGE_ITEMS + 1}
), given AS (
SELECT j.after_seq AS at, j.n, octet_length(j.value) + 100 AS size FROM journal j
WHERE j.day = $1 AND j.run_id = $2::text::uuid AND j.n > $6 AND j.after_seq >= $3 AND j.after_seq <= $5
AND (j.after_seq, j.n) > ($3, $4) ORDER BY j.n LIMIT {PAGE_ITEMS + 1}
), placed AS (
SELECT at, n, sum(size) OVER (ORDER BY at, n) - size AS before FROM
(SELECT * FROM told UNION ALL SELECT * FROM given) u
)
SELECT at, n, (SELECT count(*) FROM placed) AS found FROM placed WHERE before < $7 ORDER BY at, n LIMIT {PAGE_ITEMS}"""  # noqa: S608  # our numbers only
_ENTRIES = """SELECT e.seq, e.type, e.at_us, coalesce(t.step, 0) AS step, e.data, t.error_code, t.error_message,
coalesce(a.output, p.value, j.value, ''::bytea) AS value
FROM event e
LEFT JOIN task t ON t.id = e.task_id
LEFT JOIN attempt a ON a.day = e.day AND a.task_id = e.task_id AND a.number = e.attempt AND e.type = 5
LEFT JOIN journal j ON j.day = e.day AND j.run_id = e.run_id AND j.n = -e.seq
LEFT JOIN run_payload p ON p.day = e.day AND p.run_id = e.run_id AND p.what = 1 AND e.type = 1
WHERE e.day = $1 AND e.run_id = $2::text::uuid AND e.seq = ANY($3::int4[])"""
_COMMANDS = """SELECT n, after_seq, kind, name, value, error_code, error_message FROM journal
WHERE day = $1 AND run_id = $2::text::uuid AND n = ANY($3::int4[])"""
_STATE = """SELECT DISTINCT ON (name) name, value FROM journal
WHERE day = $1 AND run_id = $2::text::uuid AND n > $3 AND kind = $4 ORDER BY name, n DESC LIMIT 1000"""
_REGISTER = """INSERT INTO code_workflow (tenant, name, version, description, input_schema, output_schema, created_us)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant, name, version) DO UPDATE
SET description = excluded.description, input_schema = excluded.input_schema, output_schema = excluded.output_schema"""
_LATEST = """SELECT version, input_schema FROM code_workflow WHERE tenant = $1 AND name = $2
AND ($3 = '' OR version = $3) ORDER BY created_us DESC, version DESC LIMIT 1"""


class JournalReads:
    """Reads histories, and keeps what is known of workflows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def history(
        self, day: int, run_id: str, after: int, number: int, upto: int, first: int, most_bytes: int
    ) -> History:
        """A page of a run's history.

        Args:
            after, number: The last event and, given at it, the last command that are known.
            upto: The last event to tell of.
            first: Commands given before the history begins.
            most_bytes: Where the page ends; it has at least one item.
        """
        keys = await self._database.fetch(_KEYS, day, run_id, after, number, upto, first, most_bytes)
        if not keys:
            return History()
        seqs = [row["at"] for row in keys if row["n"] == 0]
        numbers = [row["n"] for row in keys if row["n"]]
        entries = await self._database.fetch(_ENTRIES, day, run_id, seqs) if seqs else []
        commands = await self._database.fetch(_COMMANDS, day, run_id, numbers) if numbers else []
        items: dict[tuple[int, int], Entry | Recorded] = {(row["seq"], 0): _entry(row) for row in entries}
        items |= {(row["after_seq"], row["n"]): _recorded(row) for row in commands}
        return History([items[place] for place in sorted(items)], keys[0]["found"] > len(keys))

    async def state(self, run: Run, first: int) -> dict[str, bytes]:
        """What a run remembers by name, google.protobuf.Value in wire form."""
        rows = await self._database.fetch(_STATE, run.day, run.id, first, int(CommandType.STATE))
        return {row["name"]: bytes(row["value"]) for row in rows}

    async def register(
        self, tenant: str, name: str, version: str, description: str, schemas: tuple[str, str], now_us: int
    ) -> None:
        """Note that a worker has the code of a workflow."""
        await self._database.execute(_REGISTER, tenant, name, version, description, *schemas, now_us)

    async def latest(self, tenant: str, name: str, version: str) -> tuple[str, str] | None:
        """The version of a workflow that was registered last, or the one named; with its input's schema."""
        row = await self._database.fetchrow(_LATEST, tenant, name, version)
        return (row["version"], row["input_schema"]) if row else None


def _entry(row: Any) -> Entry:
    kind = _ENTRY_OF[EventType(row["type"])]
    data: dict[str, Any] = json.loads(row["data"]) if row["data"] else {}
    code = message = name = ""
    if kind is EntryType.FAILED:
        code, message = row["error_code"] or "CANCELLED", row["error_message"]
    elif kind is EntryType.CANCELLING:
        message = str(data.get("reason", ""))
    elif kind is EntryType.SIGNALLED:
        name = str(data.get("name", ""))
    return Entry(row["seq"], kind, row["at_us"], row["step"], name, bytes(row["value"]), code, message)


def _recorded(row: Any) -> Recorded:
    return Recorded(
        row["n"], row["after_seq"], CommandType(row["kind"]), row["name"], bytes(row["value"]), row["error_code"],
        row["error_message"],
    )  # fmt: skip

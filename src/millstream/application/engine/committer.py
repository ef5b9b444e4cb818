"""The committer: takes whatever is queued, decides it in order, and writes it in one transaction.

Two paths lead through it. The owner path: everything a batch needs is in this process's cache, so nothing is read and
the batch is one autocommit statement; the primary key of the events is its optimistic lock. The locked path
serves everything else, and the retry after a conflict. Both decide with the same code and write the same rows.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

from millstream.application.engine.batches import Decided, Hooks, Sizes
from millstream.application.engine.cache import RunCache
from millstream.application.engine.clock import Clock
from millstream.application.engine.deciding import decide, registry_of
from millstream.application.engine.locking import held_elsewhere, load_locked
from millstream.application.engine.owned import is_owned, load_owned
from millstream.application.engine.queue import CommandQueue, Item, Outcome
from millstream.application.ports import Conflicted, Disconnected, Lane, Refused
from millstream.domain.batch import Batch, Limits
from millstream.domain.errors import (
    MillstreamError,
    Unavailable,
)

log = logging.getLogger(__name__)

OVERLAP_FROM = 64
"""From so many commands on, a batch is written while the next is decided. Below, the task that takes costs more."""
ROUNDS_BEFORE_BLOCKING = 3
ROUNDS_BEFORE_HALVING = 3
"""What conflicts so often is found by halves, so that it holds nobody else up."""
ROUNDS_MOST = 20
SETTLE_S = 10.0
"""How long a lost connection is tried again before its batch is answered with UNAVAILABLE."""


class Committer:
    """One lane of batches. `at` is called at named points, for tests that crash there.

    Args:
        owner: The lane by which this server is known, and owns the leases that it makes.
    """

    def __init__(
        self,
        lane: Lane,
        owner: str,
        queue: CommandQueue,
        cache: RunCache,
        clock: Clock,
        hooks: Hooks,
        limits: Limits,
        sizes: Sizes,
    ) -> None:
        self.lane = lane
        self.queue = queue
        self.clock = clock
        self.blocked: CommandQueue | None = None
        """Where commands go whose runs stay locked elsewhere; None in the blocking lane itself."""
        self.at: Callable[[str], None] = lambda point: None
        self._owner = owner
        self._cache = cache
        self._hooks = hooks
        self._limits = limits
        self._sizes = sizes
        self._flight: asyncio.Task[list[Item]] | None = None
        self._aboard: Decided | None = None
        self._following: Decided | None = None

    async def run(self) -> None:
        """Commit batches until cancelled."""
        while True:
            await self.queue.filled.wait()
            # One turn of the loop lets callers that were just answered join this batch.
            await asyncio.sleep(0)
            items = self.queue.take(self._most(), self._sizes.bytes)
            try:
                await self._process(items)
            except asyncio.CancelledError:
                self._fail(items, Unavailable("the server is shutting down"))
                await self._ground()
                raise
            except Exception:
                log.exception("a batch failed")
                self._cache.clear()
                self._fail(items, Unavailable("the server could not store this; try again"))

    def _most(self) -> int:
        """Commands of the next batch: half of a long queue, so that one half is decided while the other is written."""
        waiting = len(self.queue)
        return self._sizes.commands if waiting < 2 * OVERLAP_FROM else min(-(-waiting // 2), self._sizes.commands)

    async def _process(self, items: list[Item]) -> None:
        # Runs and tasks are changed in place, so what is under way must stand before it is built upon.
        failed = await self._land() if self._touches_flight(items) else []
        owned: list[Item] = []
        others: list[Item] = []
        if self._sizes.owner_path and self.blocked is not None:
            for item in items:
                (owned if is_owned(self._cache, item.command) else others).append(item)
        else:
            others = items
        decided, unsure = self._decide_owned(owned) if owned else (None, [])
        others = [*failed, *unsure, *others]
        if decided is not None and len(decided.items) >= OVERLAP_FROM and not others:
            others = await self._follow(decided)
        else:
            others = [*await self._land(), *others]
            if decided is not None:
                others = [*await self._write_decided(decided), *others]
        if others:
            others = [*await self._land(), *others]
            await self._write_locked(others)

    # A write under way, while the next batch is decided.

    async def _follow(self, decided: Decided) -> list[Item]:
        """Have a batch written as soon as the one under way is; what of that one has to be decided again."""
        before = self._flight
        if before is None or before.done():
            self._fly(decided)
        else:
            self._following = decided
        return await before if before is not None else []

    def _fly(self, decided: Decided) -> None:
        flight = asyncio.get_running_loop().create_task(self._write_decided(decided))
        # The loop looks after it even when nothing else comes.
        flight.add_done_callback(lambda _: self.queue.filled.set())
        self._flight, self._aboard = flight, decided

    def _take_off(self) -> None:
        """Start the batch that follows. Before the answers of the one that was written are given: to give them takes
        the loop about as long as to write takes PostgreSQL."""
        following, self._following = self._following, None
        if following is not None:
            self._fly(following)

    def _touches_flight(self, items: list[Item]) -> bool:
        if self._flight is None or self._aboard is None:
            return False
        aboard, task_of = self._aboard.batch.dirty_runs, self._cache.task
        for item in items:
            if item.command.run_id in aboard:
                return True
            for task_id in item.command.task_ids:
                task = task_of(task_id)
                if task is not None and task.run_id in aboard:
                    return True
        return False

    async def _land(self) -> list[Item]:
        """Wait for the write under way; what has to be decided again."""
        flight, self._flight, self._aboard = self._flight, None, None
        return await flight if flight is not None else []

    async def _ground(self) -> None:
        """Give a write under way up, at the end, and the one that follows."""
        if self._flight is not None:
            self._flight.cancel()
        for decided in filter(None, (self._aboard, self._following)):
            self._fail(decided.items, Unavailable("the server is shutting down"))
        self._flight = self._aboard = self._following = None

    # The owner path.

    def _decide_owned(self, items: list[Item]) -> tuple[Decided | None, list[Item]]:
        """Decide a batch from cached state; and what that cannot tell, which has to go the locked path.

        The copies may be outdated, and only what is written is fenced. So nobody is refused by them, and where a
        command finds nothing to do, all are decided again.
        """
        started = time.perf_counter()
        batch = self._new_batch()
        load_owned(self._cache, batch, items)
        registry = registry_of(items)
        try:
            outcomes = decide(batch, items, {}, registry)
            statement = None if batch.empty or batch.unsure else self.lane.prepare(batch, registry)
        except Exception:
            log.exception("deciding a batch failed; deciding it again command by command")
            batch.unsure = True
        if batch.unsure:
            self._undo(batch)
            return None, items
        refused = [item for item, outcome in zip(items, outcomes, strict=True) if isinstance(outcome, MillstreamError)]
        if refused:
            kept = [pair for pair in zip(items, outcomes, strict=True) if not isinstance(pair[1], MillstreamError)]
            items, outcomes = [item for item, _ in kept], [outcome for _, outcome in kept]
        return Decided(items, batch, outcomes, statement, started), refused

    async def _write_decided(self, decided: Decided) -> list[Item]:
        """Write a batch decided from cached state; returns what has to go the locked path after all."""
        items, batch = decided.items, decided.batch
        try:
            self.at("before write")
            if decided.statement is not None:
                self.clock.set(await self.lane.write(decided.statement))
        except Disconnected:
            if not await self._settled(batch, items):
                self._take_off()
                return []
        except Exception as error:
            # Whatever it is: a write that nobody waits for yet may not take its callers and its leases with it.
            if not isinstance(error, Conflicted | Refused):
                log.exception("a batch failed; deciding it again command by command")
            self._cache.suspect(batch)
            self._undo(batch)
            self._take_off()
            return items
        self.at("after write")
        self._take_off()
        self._finish(batch, items, decided.outcomes)
        self._hooks.observed(len(items), time.perf_counter() - decided.started, "owner")
        return []

    # The locked path.

    async def _write_locked(self, items: list[Item]) -> None:
        """Write a batch under locks, in halves where the database refuses it (or conflicts again and again), so that
        only the poison fails."""
        started = time.perf_counter()
        try:
            await self._attempt(items)
        except Exception as error:
            if isinstance(error, Disconnected | asyncio.CancelledError):
                raise
            again = len(items) == 1 or all(item.rounds < ROUNDS_BEFORE_HALVING for item in items)
            if isinstance(error, Conflicted) and again:
                # Somebody claimed a key, or made a run, between our reading and our writing: read again.
                await asyncio.sleep(random.uniform(0, 0.01))  # noqa: S311
                await self._write_again(items)
            elif len(items) > 1:
                middle = len(items) // 2
                await self._write_locked(items[:middle])
                await self._write_locked(items[middle:])
            else:
                self._refuse(items[0], error)
        self._hooks.observed(len(items), time.perf_counter() - started, "locked")

    async def _write_again(self, items: list[Item]) -> None:
        self._put_back(items, "others keep writing the same; try again")

    def _put_back(self, items: list[Item], reason: str) -> None:
        """Try commands again with the next batch, but not for ever."""
        for item in items:
            item.rounds += 1
            if item.rounds > ROUNDS_MOST:
                item.resolve(Unavailable(reason, retry_after_s=1.0))
        self.queue.requeue([item for item in items if item.rounds <= ROUNDS_MOST])

    def _refuse(self, item: Item, error: Exception) -> None:
        if isinstance(error, Refused):
            item.resolve(error)
        else:
            log.error("a command failed", exc_info=error)
            item.resolve(MillstreamError("internal error"))

    async def _attempt(self, items: list[Item]) -> None:
        batch = self._new_batch()
        outcomes: list[Outcome] = []
        deferred: list[Item] = []
        try:
            async with self.lane.transaction(blocking=self.blocked is None) as transaction:
                commands = [item.command for item in items]
                keys, elsewhere = await load_locked(transaction, batch, commands, waits=self.blocked is None)
                for run in batch.runs.values():
                    self._cache.reread(run)
                deferred = held_elsewhere(batch, items, elsewhere) if elsewhere else []
                items = [item for item in items if item not in deferred] if deferred else items
                tenants = {item.command.registry[0] for item in items if item.command.registry}
                registry = await transaction.registry(tenants) if tenants else {}
                outcomes = decide(batch, items, keys, registry)
                self.at("inside transaction")
                if not batch.empty:
                    await transaction.write(batch)
                self.at("before commit")
        except Disconnected:
            if not await self._settled(batch, items):
                self._defer(deferred)
                return
        except BaseException:
            self._undo(batch)
            raise
        self.at("after write")
        self._finish(batch, items, outcomes)
        self._defer(deferred)

    def _defer(self, items: list[Item]) -> None:
        """Commands of runs that another server holds go to the next batch, after a few rounds to the blocking lane."""
        again = []
        for item in items:
            item.rounds += 1
            if item.rounds > ROUNDS_BEFORE_BLOCKING and self.blocked is not None:
                self.blocked.requeue([item])
            else:
                again.append(item)
        self.queue.requeue(again)

    # Both paths.

    def _new_batch(self) -> Batch:
        hooks = self._hooks
        batch = Batch(self.clock.now_us(), self._owner, self._limits, hooks.offer, hooks.assign, random.random)
        batch.full = hooks.full
        return batch

    def _finish(self, batch: Batch, items: list[Item], outcomes: list[Outcome]) -> None:
        self._hooks.committed(batch)
        for item, outcome in zip(items, outcomes, strict=True):
            item.resolve(outcome)

    def _undo(self, batch: Batch) -> None:
        """Forget what a failed batch changed in memory."""
        self._hooks.undone(batch)
        for run_id in [*batch.runs, *batch.dirty_runs]:
            self._cache.drop(run_id)

    async def _settled(self, batch: Batch, items: list[Item]) -> bool:
        """After a lost connection: True where the batch turns out committed; else its commands are queued again, or
        answered UNAVAILABLE when the database stays away."""
        try:
            async with asyncio.timeout(SETTLE_S):
                committed = await self.lane.settle()
        except TimeoutError:
            self._undo(batch)
            self._cache.clear()
            self._fail(items, Unavailable("the database cannot be reached", retry_after_s=1.0))
            return False
        self._cache.clear()
        if not committed:
            self._undo(batch)
            self._put_back(items, "the connection to the database is lost again and again")
        return committed

    def _fail(self, items: list[Item], error: MillstreamError) -> None:
        for item in items:
            with contextlib.suppress(asyncio.InvalidStateError):
                item.resolve(error)

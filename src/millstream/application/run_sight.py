"""What one who watches a run may see of what happens in it."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from millstream.application.engine.clock import Clock
from millstream.application.run_topics import RunSent
from millstream.application.sight import Sight, restricted
from millstream.domain.principals import Principal
from millstream.domain.runs import Event, EventType

TASKS_MOST: Final = 1000
"""Tasks of which is remembered whether what they stream may be seen."""
HIDDEN_US: Final = 10_000_000
"""So long what was hidden is taken to stay so: an artifact may come to be seen with time, and never less."""
_OF_GATES: Final = frozenset({EventType.GATE_FIRED, EventType.GATE_WAITING})


class RunSight:
    """The eyes of one who watches."""

    def __init__(self, sight: Sight, clock: Clock, principal: Principal) -> None:
        self._sight = sight
        self._clock = clock
        self._principal = principal
        self._open = restricted(principal) is None
        self._hidden_until: OrderedDict[str, int] = OrderedDict()
        """By task, until when what it streams is hidden; 0: it is shown."""

    async def events(self, found: Sequence[Event]) -> Sequence[Event]:
        """Events as they may be seen, judged all at once."""
        if self._open:
            return found
        at = [n for n, event in enumerate(found) if event.artifact_id or event.type in _OF_GATES]
        if not at:
            return found
        shown = [*found]
        judged = await self._sight.events(self._principal, [found[n] for n in at], self._clock.now_us())
        for n, event in zip(at, judged, strict=True):
            shown[n] = event
        return shown

    async def sent(self, found: Sequence[RunSent]) -> Sequence[RunSent]:
        """Of what all who watch are sent: events as they may be seen, and what tasks stream that may be seen as a
        whole, as their logs."""
        if self._open or not found:
            return found
        events = iter(await self.events([each.event for each in found if each.event]))
        hidden = await self._hidden({each.streamed.task_id for each in found if each.streamed})
        shown: list[RunSent] = []
        for each in found:
            if each.event is not None:
                event = next(events)
                # What is as it was stays shared with those who see everything.
                shown.append(each if event is each.event else RunSent(each.cursor, event))
            elif each.streamed is None or each.streamed.task_id not in hidden:
                shown.append(each)
        return shown

    async def _hidden(self, tasks: set[str]) -> set[str]:
        """Those of some tasks of which not all may be seen that they were given."""
        if not tasks:
            return tasks
        now_us, known = self._clock.now_us(), self._hidden_until
        asked = {task for task in tasks if task not in known or 0 < known[task] <= now_us}
        if asked:
            whole = await self._sight.whole_tasks(self._principal, asked, now_us)
            for task in asked:
                known[task] = 0 if task in whole else now_us + HIDDEN_US
        for task in tasks:
            known.move_to_end(task)
        hidden = {task for task in tasks if known[task]}
        while len(known) > TASKS_MOST:
            known.popitem(last=False)
        return hidden

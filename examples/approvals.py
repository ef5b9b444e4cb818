"""Expenses over a limit are paid after somebody approved them: a promise stands for the answer.

To run it by hand beside `millstream dev`: `python examples/approvals.py`. Then ask for money, and look who is asked:

    millstream publish Expense '{"expense_id": "e-1", "amount": 950, "reason": "a desk"}'
    millstream promises list --state PENDING

Answer, and see what came of it:

    millstream promises resolve key:expense-e-1 '{"approved": true}'
    millstream artifacts list --type Reimbursement
"""

import os

from pydantic import BaseModel

from millstream.sdk import Client, Context, Promise, Timeouts, Worker

LIMIT = 100
DAY_S = 86_400
TARGET = os.environ.get("MILLSTREAM_TARGET", "127.0.0.1:7080")
API_KEY = os.environ.get("MILLSTREAM_API_KEY")


class Expense(BaseModel):
    """What somebody wants to be paid."""

    expense_id: str
    amount: float
    reason: str = ""


class Reimbursement(BaseModel):
    """That it is paid."""

    expense_id: str
    amount: float
    approved_by: str = ""


class Refusal(BaseModel):
    """That it is not, and why."""

    expense_id: str
    why: str


worker = Worker(TARGET, api_key=API_KEY)


@worker.agent(
    consumes=Expense,
    publishes=(Reimbursement, Refusal),
    timeouts=Timeouts(start_to_close=2 * DAY_S),
)
async def expenses(expense: Expense, ctx: Context) -> Reimbursement | Refusal:
    """Pays what is small, and asks about the rest. Should this worker die meanwhile, another asks for the same."""
    if expense.amount <= LIMIT:
        return Reimbursement(expense_id=expense.expense_id, amount=expense.amount)
    answer = await ask(expense, ctx)
    if answer.state != "RESOLVED":
        return Refusal(expense_id=expense.expense_id, why=answer.error.code if answer.error else answer.state)
    if not (isinstance(answer.value, dict) and answer.value.get("approved") is True):
        return Refusal(expense_id=expense.expense_id, why="DECLINED")
    return Reimbursement(expense_id=expense.expense_id, amount=expense.amount, approved_by=answer.settled_by)


async def ask(expense: Expense, ctx: Context) -> Promise:
    """Makes a promise, once for all attempts of the task, and waits until somebody settles it, or its day is over."""
    async with Client(TARGET, api_key=API_KEY) as client:
        promise = await client.promises.create(
            "approval",
            key=f"expense-{expense.expense_id}",
            input=expense,
            timeout=DAY_S,
            idempotency_key=ctx.idempotency_token,
        )
        ctx.progress(0.5, f"waits for promise key:{promise.key}")
        while not promise.settled:
            promise = await client.promises.wait(promise.promise_id, timeout=300)
    return promise


if __name__ == "__main__":
    worker.run_forever()

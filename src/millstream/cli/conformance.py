"""`millstream conformance`."""

import asyncio
import shlex
import shutil
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from millstream.cli.connect import REFUSED, USAGE, Json
from millstream.cli.output import print_json
from millstream.conformance import ALWAYS, PATIENCE_S, RULES, SCENARIOS, Outcome, Scenario, play

_PAGE: Final = "docs/worker-protocol.md"


def conformance(
    target: Annotated[
        str, typer.Option(help="Command that starts the worker; split like a shell's words, run without a shell.")
    ] = "",
    scenario: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be given several times.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the scenarios and the rules that they check.")] = False,
    patience: Annotated[
        float, typer.Option(min=0.1, max=600, help="Seconds that the worker has for each thing it must do.")
    ] = PATIENCE_S,
    as_json: Json = False,
) -> None:
    """Try a worker of any language against the worker protocol: plays the server's side, scenario by scenario.

    The worker is started anew for each, and ended. Exit code 1 where one failed. docs/worker-protocol.md has the rules,
    and the kinds that the worker has to serve.
    """
    chosen = _chosen(scenario or [])
    if list_:
        _list(chosen, as_json)
        return
    argv = _argv(target)
    failed = asyncio.run(_play(argv, chosen, patience, as_json))
    if not as_json:
        passed = len(chosen) - failed
        print(f"\n{passed} of {len(chosen)} scenarios passed" + (f"; {_PAGE} explains the rules" if failed else ""))
    if failed:
        raise typer.Exit(REFUSED)


def _chosen(names: Sequence[str]) -> list[Scenario]:
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise typer.BadParameter(f"there is no scenario {unknown[0]!r}; --list has them", param_hint="--scenario")
    return [SCENARIOS[name] for name in names] or list(SCENARIOS.values())


def _argv(target: str) -> list[str]:
    try:
        argv = shlex.split(target)
    except ValueError as error:
        raise typer.BadParameter(f"{error}: {target}", param_hint="--target") from error
    if not argv:
        raise typer.BadParameter('give the command that starts the worker: --target "node worker.js"')
    if shutil.which(argv[0]) is None:
        typer.echo(f"error: --target: there is no program {argv[0]!r}", err=True)
        raise typer.Exit(USAGE)
    return argv


async def _play(argv: Sequence[str], scenarios: Sequence[Scenario], patience_s: float, as_json: bool) -> int:
    """Plays them, printing each as it ends; returns how many failed."""
    failed = 0
    async for outcome in play(argv, scenarios, patience_s):
        failed += not outcome.passed
        if as_json:
            print_json(_document(outcome), indent=False)
        else:
            _tell(outcome)
    return failed


def _document(outcome: Outcome) -> dict[str, object]:
    return {
        "scenario": outcome.scenario.name,
        "title": outcome.scenario.title,
        "passed": outcome.passed,
        "seconds": round(outcome.seconds, 3),
        "rules": list(outcome.scenario.rules),
        "broken_rule": outcome.rule or None,
        "message": outcome.message or None,
        "output": list(outcome.output),
    }


def _tell(outcome: Outcome) -> None:
    scenario = outcome.scenario
    print(f"{'pass' if outcome.passed else 'FAIL'}  {scenario.name:22} {scenario.title}")
    if outcome.passed:
        return
    print(f"      {outcome.rule}: {RULES[outcome.rule]}")
    print(f"      {outcome.message}")
    for line in outcome.output:
        print(f"      | {line}")


def _list(scenarios: Sequence[Scenario], as_json: bool) -> None:
    if as_json:
        for each in scenarios:
            rules = {rule: RULES[rule] for rule in each.rules}
            print_json({"scenario": each.name, "title": each.title, "rules": rules}, indent=False)
        return
    for each in scenarios:
        print(f"{each.name:22} {each.title} ({', '.join(each.rules)})")
    print(f"\nEvery scenario checks {', '.join(ALWAYS)} too. {_PAGE} explains the rules.")

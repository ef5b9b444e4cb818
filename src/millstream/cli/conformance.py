"""`millstream conformance`."""

import asyncio
import shlex
import shutil
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from millstream.cli.connect import REFUSED, USAGE, Json
from millstream.cli.output import print_json
from millstream.conformance import ALWAYS, PATIENCE_S, RULES, SCENARIOS, TRANSPORTS, Outcome, Scenario, detect, play

_PAGE: Final = "docs/worker-protocol.md"
_AUTO: Final = "auto"


def conformance(
    target: Annotated[
        str, typer.Option(help="Command that starts the worker; split like a shell's words, run without a shell.")
    ] = "",
    scenario: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be given several times.", show_default=False)
    ] = None,
    transport: Annotated[
        str,
        typer.Option(
            help="How the worker takes its tasks: `stream` (Work), `poll` (Poll and the other unary calls), or `auto`: "
            "as it does when it is started."
        ),
    ] = _AUTO,
    list_: Annotated[bool, typer.Option("--list", help="List the scenarios and the rules that they check.")] = False,
    patience: Annotated[
        float, typer.Option(min=0.1, max=600, help="Seconds that the worker has for each thing it must do.")
    ] = PATIENCE_S,
    as_json: Json = False,
) -> None:
    """Try a worker of any language against the worker protocol: plays the server's side, scenario by scenario.

    The worker is started anew for each, and ended. Exit code 1 where one failed; what a worker need not do, and does
    not offer, is passed over. docs/worker-protocol.md has the rules, and the kinds that the worker has to serve.
    """
    if transport not in (_AUTO, *TRANSPORTS):
        raise typer.BadParameter("is `stream`, `poll` or `auto`", param_hint="--transport")
    chosen = _chosen(scenario or [], transport)
    if list_:
        _list(chosen, as_json)
        return
    argv = _argv(target)
    if transport == _AUTO and not scenario:
        found = asyncio.run(detect(argv, patience))
        chosen = [each for each in chosen if each.transport == found]
        if not as_json:
            print(f"trying a worker of the transport {found}")
    failed, skipped = asyncio.run(_play(argv, chosen, patience, as_json))
    if not as_json:
        played = len(chosen) - skipped
        over = f", {skipped} passed over" if skipped else ""
        page = f"; {_PAGE} explains the rules" if failed else ""
        print(f"\n{played - failed} of {played} scenarios passed{over}{page}")
    if failed:
        raise typer.Exit(REFUSED)


def _chosen(names: Sequence[str], transport: str) -> list[Scenario]:
    known = {name: each for name, each in SCENARIOS.items() if transport in (_AUTO, each.transport)}
    unknown = [name for name in names if name not in known]
    if unknown:
        of = "" if transport == _AUTO else f" of the transport {transport}"
        raise typer.BadParameter(f"there is no scenario {unknown[0]!r}{of}; --list has them", param_hint="--scenario")
    return [known[name] for name in names] or list(known.values())


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


async def _play(
    argv: Sequence[str], scenarios: Sequence[Scenario], patience_s: float, as_json: bool
) -> tuple[int, int]:
    """Plays them, printing each as it ends; returns how many failed, and how many were passed over."""
    failed = skipped = 0
    async for outcome in play(argv, scenarios, patience_s):
        failed += not outcome.passed
        skipped += outcome.skipped
        if as_json:
            print_json(_document(outcome), indent=False)
        else:
            _tell(outcome)
    return failed, skipped


def _document(outcome: Outcome) -> dict[str, object]:
    return {
        "scenario": outcome.scenario.name,
        "title": outcome.scenario.title,
        "passed": outcome.passed,
        "skipped": outcome.skipped,
        "seconds": round(outcome.seconds, 3),
        "rules": list(outcome.scenario.rules),
        "broken_rule": outcome.rule or None,
        "message": outcome.message or None,
        "output": list(outcome.output),
    }


def _tell(outcome: Outcome) -> None:
    scenario = outcome.scenario
    if outcome.skipped:
        print(f"skip  {scenario.name:22} {outcome.message}")
        return
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
            document = {"scenario": each.name, "title": each.title, "transport": each.transport, "rules": rules}
            print_json(document, indent=False)
        return
    for each in scenarios:
        print(f"{each.name:22} {each.title} ({', '.join(each.rules)})")
    print()
    for transport in dict.fromkeys(each.transport for each in scenarios):
        print(f"Every scenario of the transport {transport} checks {', '.join(ALWAYS[transport])} too.")
    print(f"{_PAGE} explains the rules.")

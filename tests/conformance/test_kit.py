"""The conformance kit finds nothing in the SDK's worker, and in broken ones what they break."""

import asyncio
import json
import shlex
import sys
from pathlib import Path

import pytest
from tests.conformance import polling_worker
from tests.conformance.broken_worker import EXAMPLE, FAULTS
from typer.testing import CliRunner, Result

from millstream.cli import conformance as command
from millstream.cli.app import app
from millstream.conformance import ALWAYS, RULES, SCENARIOS, Outcome, detect, play

BROKEN = Path(__file__).with_name("broken_worker.py")
POLLING = Path(__file__).with_name("polling_worker.py")
AT_ONCE = 3
PATIENCE_S = 3.0
"""Less than a user's kit has: what a broken worker never does is waited for in each test."""

# A fault, a scenario that finds it, and the rule that it names.
FOUND = [
    ("names_too_few_kinds", "hello", "W6"),
    ("describes_what_it_does_not_serve", "hello", "W7"),
    ("shows_no_token", "hello", "W4"),
    ("breaks_a_field_rule", "hello", "W3"),
    ("says_hello_twice", "hello", "W1"),
    ("counts_its_messages_wrong", "hello", "W2"),
    ("is_another_one_each_time", "reconnect", "W5"),
    ("names_nothing_that_it_holds", "reconnect", "W28"),
    ("gives_up_with_its_stream", "reconnect", "W29"),
    ("keeps_what_is_lost", "held-lost", "W30"),
    ("tries_without_rest", "unavailable", "W27"),
    ("names_nothing_that_it_holds", "goaway", "W28"),
    ("ends_with_its_stream", "clean-end", "W26"),
    ("falls_over_unknown_fields", "unknown-fields", "W38"),
    ("asks_for_too_much", "credit", "W8"),
    ("runs_one_after_the_other", "credit", "W10"),
    ("keeps_its_slots", "batch", "W9"),
    ("acknowledges_no_arrival", "delivery", "W11"),
    ("acknowledges_arrivals_with_the_report", "delivery", "W11"),
    ("mistakes_nothing_for_an_object", "payloads", "W14"),
    ("runs_what_comes_twice", "duplicate", "W17"),
    ("is_silent_about_unknown_kinds", "unknown-kind", "W13"),
    ("knows_only_first_attempts", "attempts", "W17"),
    ("names_what_it_was_never_given", "delivery", "W18"),
    ("makes_up_tokens", "token", "W16"),
    ("cannot_do_what_it_names", "kinds", "W6"),
    ("forgets_when_to_try_again", "fail", "W19"),
    ("publishes_nothing", "publish", "W20"),
    ("tells_no_progress", "progress", "W21"),
    ("forgets_what_was_not_acknowledged", "unacknowledged", "W22"),
    ("sends_again_what_was_acknowledged", "unacknowledged", "W23"),
    ("takes_the_last_acknowledgement_for_all", "acknowledged-in-part", "W23"),
    ("dies_of_a_refusal", "refused", "W24"),
    ("waits_for_acknowledgements", "slow-acks", "W25"),
    ("is_never_heard_of", "keep-alive", "W31"),
    ("has_no_heart", "heartbeat", "W32"),
    ("cannot_be_cancelled", "cancel", "W33"),
    ("reports_what_is_lost", "lease-lost", "W34"),
    ("cancels_by_task", "stray-cancel", "W35"),
    ("stays_where_it_is", "server-drain", "W36"),
    ("drops_everything_when_it_is_stopped", "stop", "W37"),
    ("fails_what_comes_late", "stop", "W37"),
    ("logs_without_fields", "logs", "W46"),
    ("tells_no_last_line", "logs", "W49"),
    ("forgets_what_lines_are_stored", "logs-resumed", "W47"),
    ("forgets_lines_that_are_late", "logs-after-end", "W47"),
    ("ignores_what_is_asked_for_again", "logs-again", "W48"),
    ("goes_on_with_a_lost_log", "logs-refused", "W50"),
    ("sends_lines_to_who_takes_none", "logs-untaken", "W51"),
]

FOUND_POLLING = [
    ("shows_no_token", "poll-hello", "W4"),
    ("breaks_a_field_rule", "poll-hello", "W3"),
    ("names_too_few_kinds", "poll-hello", "W39"),
    ("names_what_it_was_never_given", "poll-hello", "W18"),
    ("is_another_one_each_time", "poll-again", "W39"),
    ("does_not_wait", "poll-again", "W41"),
    ("polls_once", "poll-again", "W41"),
    ("asks_for_too_much", "poll-slots", "W40"),
    ("runs_one_after_the_other", "poll-slots", "W10"),
    ("keeps_its_slots", "poll-slots", "W9"),
    ("makes_up_tokens", "poll-payloads", "W16"),
    ("mistakes_nothing_for_an_object", "poll-payloads", "W14"),
    ("knows_only_first_attempts", "poll-attempts", "W17"),
    ("gives_unknown_kinds_up_for_good", "poll-attempts", "W13"),
    ("forgets_when_to_try_again", "poll-fail", "W19"),
    ("publishes_nothing", "poll-publish", "W20"),
    ("tells_no_progress", "poll-publish", "W21"),
    ("has_no_heart", "poll-renew", "W32"),
    ("cannot_be_cancelled", "poll-cancel", "W33"),
    ("renews_nothing", "poll-lost", "W42"),
    ("reports_what_is_lost", "poll-lost", "W44"),
    ("tries_without_rest", "poll-unavailable", "W27"),
    ("reports_only_once", "poll-report-again", "W43"),
    ("repeats_what_is_refused", "poll-refused", "W24"),
    ("falls_over_unknown_fields", "poll-unknown-fields", "W38"),
    ("drops_everything_when_it_is_stopped", "poll-stop", "W45"),
    ("exits_with_an_error", "poll-stop", "W45"),
    ("logs_without_fields", "poll-logs", "W46"),
    ("tells_no_last_line", "poll-logs", "W49"),
    ("forgets_what_lines_are_stored", "poll-logs-resumed", "W47"),
    ("ignores_what_is_asked_for_again", "poll-logs-again", "W48"),
    ("goes_on_with_a_lost_log", "poll-logs-refused", "W50"),
]
BY_STREAM = [name for name, each in SCENARIOS.items() if each.transport == "stream"]
BY_POLL = [name for name, each in SCENARIOS.items() if each.transport == "poll"]


async def outcome(argv: list[str], scenario: str, patience_s: float) -> Outcome:
    (found,) = [each async for each in play([sys.executable, *argv], [SCENARIOS[scenario]], patience_s)]
    return found


@pytest.mark.parametrize("scenario", BY_STREAM)
async def test_the_worker_of_the_sdk_keeps_the_rules(scenario: str) -> None:
    """FV-19: each scenario of the kit."""
    found = await outcome([str(EXAMPLE)], scenario, 20.0)
    assert found.passed, (found.rule, found.message, found.output)


@pytest.mark.parametrize("scenario", BY_POLL)
async def test_a_worker_that_polls_keeps_the_rules(scenario: str) -> None:
    """FV-19: each scenario of the kit, for a worker without a stream."""
    found = await outcome([str(POLLING)], scenario, 20.0)
    assert found.passed, (found.rule, found.message, found.output)


@pytest.mark.parametrize(("program", "faults"), [(BROKEN, FOUND), (POLLING, FOUND_POLLING)], ids=["stream", "poll"])
async def test_broken_workers_fail_the_scenarios_that_they_break(
    program: Path, faults: list[tuple[str, str, str]]
) -> None:
    """A few at a time: most of what they do is not to do something, which has to be waited for."""
    room = asyncio.Semaphore(AT_ONCE)

    async def tried(fault: str, scenario: str) -> Outcome:
        async with room:
            return await outcome([str(program), fault], scenario, PATIENCE_S)

    found = await asyncio.gather(*(tried(fault, scenario) for fault, scenario, _ in faults))
    wrong = [
        (fault, scenario, f"{rule} expected", "passed" if each.passed else each.rule, each.message, each.output)
        for (fault, scenario, rule), each in zip(faults, found, strict=True)
        if (each.passed, each.rule) != (False, rule)
    ]
    assert wrong == []
    assert all(each.message for each in found)


def test_every_fault_every_scenario_and_every_rule_is_tried() -> None:
    assert {fault for fault, _, _ in FOUND} == FAULTS.keys()
    assert {fault for fault, _, _ in FOUND_POLLING} == polling_worker.FAULTS.keys()
    assert {scenario for _, scenario, _ in FOUND} == {*BY_STREAM}
    assert {scenario for _, scenario, _ in FOUND_POLLING} == {*BY_POLL}
    checked = {rule for each in SCENARIOS.values() for rule in each.rules} | {*ALWAYS["stream"], *ALWAYS["poll"]}
    assert checked == RULES.keys()
    # These are told by the rules around them: a worker that breaks one is found by the other.
    twins = {"W12": "W17", "W15": "W17"}
    assert RULES.keys() - {rule for _, _, rule in FOUND + FOUND_POLLING} == twins.keys()


_WITHOUT_LOGS = """
import os, runpy
from millstream.sdk.worker import Worker
os.environ["MILLSTREAM_CONFORMANCE_OPTIONAL_KINDS"] = "conformance.unheard-of"
hello = Worker._hello
def without(self):
    said = hello(self)
    said.kinds.remove("conformance.log")
    return said
Worker._hello = without
runpy.run_path({program!r}, run_name="__main__")
"""


@pytest.mark.parametrize(("program", "scenario"), [(EXAMPLE, "logs"), (POLLING, "poll-logs")])
def test_what_a_worker_need_not_do_is_passed_over(program: Path, scenario: str) -> None:
    """Docs: a worker that logs nothing is as good."""
    target = shlex.join([sys.executable, "-c", _WITHOUT_LOGS.format(program=str(program))])
    arguments = ["conformance", "--target", target, "--scenario", scenario]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout.split()[:2]) == (0, ["skip", scenario])
    assert "0 of 0 scenarios passed, 1 passed over" in done.stdout
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert (told["passed"], told["skipped"]) == (True, True)
    assert told["message"] == "the worker does not serve conformance.log"


async def test_a_worker_that_does_not_start_is_told_with_what_it_said() -> None:
    found = await outcome(["-c", "print('no way'); raise SystemExit(3)"], "hello", PATIENCE_S)
    assert (found.passed, found.rule) == (False, "W1")
    assert "exited with 3" in found.message
    assert found.output == ("no way",)


def test_the_command_tells_each_scenario_and_fails_with_the_worker() -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["conformance", *arguments])

    good = f"{sys.executable} {EXAMPLE}"
    done = run("--target", good, "--scenario", "hello", "--scenario", "token")
    assert (done.exit_code, [line.split()[:2] for line in done.stdout.splitlines()[:2]]) == (
        0, [["pass", "hello"], ["pass", "token"]],
    )  # fmt: skip
    bad = f"{sys.executable} {BROKEN} makes_up_tokens"
    done = run("--target", bad, "--scenario", "token")
    assert done.exit_code == 1
    assert f"W16: {RULES['W16']}" in done.stdout
    done = run("--target", bad, "--scenario", "token", "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["scenario"], told["passed"], told["broken_rule"]) == (1, "token", False, "W16")
    listed = run("--list")
    assert [line.split()[0] for line in listed.stdout.splitlines()[: len(SCENARIOS)]] == list(SCENARIOS)
    assert len(run("--list", "--json").stdout.splitlines()) == len(SCENARIOS)
    polling = run("--list", "--transport", "poll")
    assert [line.split()[0] for line in polling.stdout.splitlines()[: len(BY_POLL)]] == BY_POLL
    assert run("--transport", "carrier", "--list").exit_code == 2
    assert run("--transport", "stream", "--scenario", "poll-hello", "--list").exit_code == 2
    for wrong in (["--scenario", "nothing", "--list"], [], ["--target", "'"], ["--target", "no-such-program"]):
        assert run(*wrong).exit_code == 2


async def test_how_a_worker_takes_its_tasks_is_seen_from_what_it_calls() -> None:
    """One that calls nothing is tried by the stream, whose first scenario tells what is wrong."""
    assert await detect([sys.executable, str(EXAMPLE)]) == "stream"
    assert await detect([sys.executable, str(POLLING)]) == "poll"
    assert await detect([sys.executable, "-c", "raise SystemExit(3)"]) == "stream"


@pytest.mark.parametrize(("program", "played"), [(EXAMPLE, "hello"), (POLLING, "poll-hello")])
def test_the_command_plays_the_scenarios_of_the_transport_that_it_sees(
    monkeypatch: pytest.MonkeyPatch, program: Path, played: str
) -> None:
    monkeypatch.setattr(command, "SCENARIOS", {name: SCENARIOS[name] for name in ("hello", "poll-hello")})
    done = CliRunner().invoke(app, ["conformance", "--target", f"{sys.executable} {program}", "--json"])
    assert [(json.loads(line)["scenario"], json.loads(line)["passed"]) for line in done.stdout.splitlines()] == [
        (played, True)
    ]

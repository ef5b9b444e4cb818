"""The context of traces: whose it is, and what follows from it."""

import pytest

from millstream.domain.tracing import below, end_of, received, sampled, span_id, trace_id, with_trace, within

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "bad",
    [
        "", "00", GIVEN[:-1], GIVEN + "-x", GIVEN.replace("00-", "ff-", 1), GIVEN.upper(),
        f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", GIVEN + "\n",
    ],
)  # fmt: skip
def test_what_is_no_context_begins_no_trace(bad: str) -> None:
    assert received(GIVEN) == GIVEN
    assert received(bad) == ""


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        (GIVEN.replace("00-", "01-", 1), GIVEN),
        (GIVEN.replace("00-", "cc-", 1) + "-what-will-be", GIVEN),
        (GIVEN.replace("00-", "cc-", 1) + "-", GIVEN),
        (GIVEN.replace("00-", "fe-", 1)[:-2] + "fe", GIVEN[:-2] + "00"),
        (GIVEN.replace("00-", "01-", 1) + "x", ""),
        (GIVEN.replace("00-", "0g-", 1), ""),
    ],
)
def test_of_a_version_to_come_the_fields_of_this_one_are_taken(later: str, kept: str) -> None:
    """W3C Trace Context, 2.3 (versioning of traceparent): its first four fields, and of its flags the one known."""
    assert received(later) == kept


def test_a_span_below_is_known_by_its_ids_alone() -> None:
    """Whoever knows a run or an attempt knows its span, on whichever server."""
    one = below(GIVEN, "a-task", 1)
    assert received(one) == one
    assert one == below(GIVEN, "a-task", 1)
    assert (trace_id(one), one[-2:]) == (trace_id(GIVEN), "01")
    assert len({span_id(each) for each in (GIVEN, one, below(GIVEN, "a-task", 2), below(GIVEN, "b-task", 1))}) == 4
    assert below("", "a-task", 1) == ""
    assert below(one, "b", 1) == below(GIVEN, "b", 1)


def test_each_end_of_a_run_has_a_span_of_its_own() -> None:
    """That of the first is what lies below goes on from."""
    assert end_of(GIVEN, "run", 0) == below(GIVEN, "run")
    ends = [end_of(GIVEN, "run", before) for before in range(4)]
    # A code run's own task has its id.
    attempts = [below(GIVEN, "run", number) for number in range(1, 4)]
    assert len({span_id(each) for each in (*ends, *attempts)}) == 7
    assert end_of("", "run", 1) == ""


def test_only_who_recorded_the_trace_has_its_spans_recorded() -> None:
    assert sampled(GIVEN)
    assert not sampled(GIVEN[:-2] + "00")
    assert not sampled("")


def test_a_task_goes_on_from_its_cause_within_the_trace_of_its_run() -> None:
    other = GIVEN.replace("0af7", "1111", 1)
    attempt = below(GIVEN, "a-task", 1)
    own = below(GIVEN, "run")
    assert within(GIVEN, "run", attempt) == attempt
    assert within(GIVEN, "run", GIVEN) == own
    assert within(GIVEN, "run", other) == own
    assert within(GIVEN, "run", "") == own


def test_an_event_keeps_what_it_tells_beside_its_trace() -> None:
    assert with_trace("", GIVEN) == '{"trace_id":"0af7651916cd43dd8448eb211c80319c"}'
    assert with_trace('{"kind":"é"}', GIVEN) == '{"kind":"é","trace_id":"0af7651916cd43dd8448eb211c80319c"}'

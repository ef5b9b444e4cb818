"""JSON as parts of A2A, and back: what an agent is sent, and what its artifacts become."""

from typing import Any

import pytest
from a2a.helpers.proto_helpers import new_data_part, new_raw_part, new_text_part, new_url_part
from a2a.types.a2a_pb2 import AgentCard, Artifact, Part
from google.protobuf.json_format import MessageToDict

from millstream.adapters.agents import parts
from millstream.application.call_ports import Call, CallFailed, Given, Made

ORDER: dict[str, Any] = {"id": 7, "lines": [{"n": 1.5, "none": None}], "yes": True}


def call(*given: Given, **fields: Any) -> Call:
    """A task's call."""
    wanted: dict[str, Any] = {
        "tenant": "acme", "protocol": "A2A", "url": "https://example.com", "agent": "payments", "outputs": (),
        "task_id": "t", "attempt": 2, "tries": 1, "correlation_id": "c",
    }  # fmt: skip
    return Call(**wanted | fields, artifacts=given)


def artifact(*found: Part, name: str = "", **metadata: Any) -> Artifact:
    """An artifact of an agent."""
    out = Artifact(artifact_id="a", name=name, parts=found)
    if metadata:
        out.metadata.update(metadata)
    return out


def sent(message: Any) -> dict[str, Any]:
    """A message as JSON."""
    return dict(MessageToDict(message))


def test_an_artifact_is_sent_as_data_with_what_it_is() -> None:
    """WM-1: every kind of JSON as it is."""
    given = Given("i", "Order", "shop", ("vip",), "", ORDER)
    message = sent(parts.message_of(call(given), AgentCard()))
    assert message == {
        "messageId": "t-2",
        "role": "ROLE_USER",
        "parts": [
            {
                "data": ORDER,
                "mediaType": "application/json",
                "metadata": {"type": "Order", "artifact_id": "i", "produced_by": "shop"},
            }
        ],
        "metadata": {
            "millstream": {
                "agent": "payments",
                "task_id": "t",
                "attempt": 2,
                "idempotency_token": "t",
                "correlation_id": "c",
            }
        },
    }


def test_what_is_kept_outside_is_referred_to() -> None:
    """FL-17: where it is no JSON that could be sent along."""
    given = Given("i", "Film", "shop", (), "", None, "sha256:00")
    (part,) = sent(parts.message_of(call(given), AgentCard()))["parts"]
    assert part["data"] is None
    assert part["metadata"]["payload_ref"] == "sha256:00"


def test_a_task_without_artifacts_sends_its_input() -> None:
    """WM-1: null too, so that there is a part."""
    assert sent(parts.message_of(call(input={"a": 1}), AgentCard()))["parts"][0]["data"] == {"a": 1}
    assert len(parts.message_of(call(), AgentCard()).parts) == 1


@pytest.mark.parametrize(
    ("modes", "as_data"),
    [
        ([], True),
        (["text/plain", "application/json"], True),
        (["Application/JSON; charset=utf-8"], True),
        (["*/*"], True),
        (["text/plain"], False),
        (["image/png", "text/markdown"], False),
    ],
)
def test_the_card_says_whether_it_takes_json(modes: list[str], as_data: bool) -> None:
    """WM-1: who takes none is given text."""
    given = Given("i", "Order", "shop", (), "", {"a": 1})
    (part,) = parts.message_of(call(given), AgentCard(default_input_modes=modes)).parts
    assert part.HasField("data") is as_data
    assert part.text == ("" if as_data else '{"a": 1}')


def test_a_text_is_sent_as_that_text() -> None:
    """WM-1: without its JSON around it."""
    given = Given("i", "Text", "shop", (), "", {"text": "hello"})
    (part,) = parts.message_of(call(given), AgentCard(default_input_modes=["text/plain"])).parts
    assert part.text == "hello"


@pytest.mark.parametrize(
    ("found", "values"),
    [
        ([new_data_part(ORDER)], [ORDER]),
        ([new_data_part({"a": 1}), new_text_part("beside it"), new_data_part({"b": 2})], [{"a": 1}, {"b": 2}]),
        ([new_data_part([1, 2])], [{"value": [1, 2]}]),
        ([new_text_part("one"), new_text_part("two")], [{"text": "one\ntwo"}]),
        ([new_text_part('{"a": [1]}', media_type="application/json")], [{"a": [1]}]),
        (
            [new_url_part("https://example.com/f", media_type="image/png", filename="f")],
            [{"files": [{"name": "f", "media_type": "image/png", "url": "https://example.com/f"}]}],
        ),
        (
            [new_raw_part(b"abc", media_type="image/png", filename="f")],
            [{"files": [{"name": "f", "media_type": "image/png", "base64": "YWJj"}]}],
        ),
        ([], []),
    ],
)
def test_what_an_agent_makes_is_json(found: list[Part], values: list[dict[str, Any]]) -> None:
    """WM-1: data as it is, text and files in an object."""
    answer = parts.answer_of([artifact(*found)], ["Payment"])
    assert answer.made == tuple(Made("Payment", value) for value in values)


@pytest.mark.parametrize(
    ("outputs", "name", "metadata", "type_name"),
    [
        (("A",), "", {}, "A"),
        (("A", "B"), "B", {}, "B"),
        (("A", "B"), "A", {"type": "B"}, "B"),
        ((), "", {"type": "C"}, "C"),
        (("A",), "", {"type": "C"}, "C"),
        ((), "A", {}, ""),
        (("A",), "something", {"type": 7}, "A"),
    ],
)
def test_the_type_of_an_artifact(outputs: tuple[str, ...], name: str, metadata: dict[str, Any], type_name: str) -> None:
    """WM-1: its metadata, its name, the agent's only output; else it is none of ours, and in the output alone."""
    answer = parts.answer_of([artifact(new_data_part({"a": 1}), name=name, **metadata)], outputs)
    assert [each.type for each in answer.made] == ([type_name] if type_name else [])
    assert answer.output == {"a": 1}


def test_the_output_of_several_is_a_list() -> None:
    """WM-1: in the order they came."""
    answer = parts.answer_of([artifact(new_data_part({"a": 1})), artifact(new_data_part({"b": 2}))], [])
    assert answer.output == [{"a": 1}, {"b": 2}]
    assert parts.answer_of([], []).output is None


def test_what_cannot_be_told_apart_fails_finally() -> None:
    """WM-1: with what to do."""
    with pytest.raises(CallFailed, match=r"does not say which of A, B it is") as raised:
        parts.answer_of([artifact(new_data_part({}))], ["A", "B"])
    assert (raised.value.code, raised.value.retryable) == ("INVALID_OUTPUT", False)
    with pytest.raises(CallFailed, match="says that it is JSON, and is not"):
        parts.answer_of([artifact(new_text_part("{", media_type="application/json"))], ["A"])

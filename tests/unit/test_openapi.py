"""The OpenAPI document: valid, complete, and its examples keep to it."""

import re
from typing import Any

import pytest
from google.api import annotations_pb2
from openapi_spec_validator import OpenAPIV30SpecValidator
from tests.documentation.calls import document, faults, faults_in_request, operations

from millstream.domain.principals import ROLES
from millstream.transport import contract
from millstream.transport.errors import STATUSES
from millstream.v1 import policy_pb2

OPERATIONS = sorted(operations())
ADD = """\
these operations have no example that succeeds: {missing}

Every operation has one, which is shown in the documentation and sent to the running service by
tests/documentation. Add a step for it to a file of proto/examples (proto/apidocs/examples.py says what a step is),

    {{"rpc": "GetThing", "title": "What it shows", "path": {{"id": "{{{{thing}}}}"}}, "keep": {{"name": "field"}}}}

then record its answer and make the documentation anew: `make examples`. Kinds of tasks and workflows that examples
need are in tests/documentation/worker.py. An answer that is HttpBody needs `media_types` in its policy."""


def examples(told: dict[str, Any]) -> dict[str, Any]:
    """The examples of a media type."""
    return {name: each["value"] for name, each in told.get("examples", {}).items()}


def responses(name: str) -> dict[str, dict[str, Any]]:
    """The responses of an operation, by status."""
    shared = document()["components"]["responses"]
    told = operations()[name].told["responses"]
    return {
        status: shared[each["$ref"].rpartition("/")[2]] if "$ref" in each else each for status, each in told.items()
    }


def test_the_document_is_valid() -> None:
    """WM-8: OpenAPI 3.0.3"""
    assert document()["openapi"] == "3.0.3"
    assert [str(error) for error in OpenAPIV30SpecValidator(document()).iter_errors()] == []


def test_every_path_of_the_contract_is_documented() -> None:
    """FV-8, WM-8"""
    wanted = {
        (rule.WhichOneof("pattern"), re.sub(r"\{\w+\}", "{}", getattr(rule, rule.WhichOneof("pattern"))))
        for service in contract.services()
        for method in service.methods
        if method.GetOptions().HasExtension(annotations_pb2.http)
        for http in [method.GetOptions().Extensions[annotations_pb2.http]]
        for rule in [http, *http.additional_bindings]
    }
    assert {(each.verb, re.sub(r"\{\w+\}", "{}", each.path)) for each in operations().values()} == wanted


def test_every_operation_has_an_example() -> None:
    """WM-8"""
    missing = [name for name in OPERATIONS if not _has_example(name)]
    assert not missing, ADD.format(missing=", ".join(missing))


def _has_example(name: str) -> bool:
    good = [told for status, told in responses(name).items() if status.startswith("2")]
    if [told for told in good if not told.get("content")]:
        return True  # 204: there is nothing to show, and tests/documentation calls it
    return any(examples(media) for told in good for media in told["content"].values())


@pytest.mark.parametrize("name", OPERATIONS)
def test_examples_keep_to_their_schemas(name: str) -> None:
    """WM-8"""
    content = operations()[name].told.get("requestBody", {}).get("content", {})
    for body in examples(content.get("application/json", {})).values():
        assert faults_in_request(name, body) == []
    for status, told in responses(name).items():
        for media, each in told.get("content", {}).items():
            for body in examples(each).values():
                assert faults(name, int(status), media, body) == [], status


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_says_who_may_call_it(name: str) -> None:
    """WM-8, WM-9: the policies' permissions, and credentials for all that is not public."""
    told = operations()[name].told
    permission = told.get("x-permission", "")
    if told.get("security") == []:
        assert permission == ""
        assert "401" not in told["responses"]
        return
    assert any(permission in granted for granted in ROLES.values())
    assert f"Permission: `{permission}`." in told["description"]
    assert {"401", "403"} <= set(told["responses"])


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_shows_each_of_its_errors(name: str) -> None:
    """FL-10: with an example body, whose status is the code's."""
    errors = {status: told for status, told in responses(name).items() if int(status) >= 400}
    assert {"422", "500", "503", "504"} <= set(errors)
    for status, told in errors.items():
        shown = examples(told["content"]["application/json"])
        assert shown
        for body in shown.values():
            assert body["code"] in told["description"]
            assert STATUSES[body["code"]].http == int(status) or (body["code"], status) == ("BAD_REQUEST", "415")
            assert body["retryable"] is STATUSES[body["code"]].retryable


def test_an_answer_that_is_no_message_says_what_it_is() -> None:
    for service in contract.services():
        for method in service.methods:
            policy = method.GetOptions().Extensions[policy_pb2.policy]
            raw = method.output_type.full_name == "google.api.HttpBody"
            assert raw == bool(policy.media_types), f"{method.full_name}: set media_types in its policy"


def test_nothing_is_without_a_word() -> None:
    """WM-8: operations, parameters and fields are described by the contract's comments."""
    for name in OPERATIONS:
        told = operations()[name].told
        assert told["summary"]
        assert told["summary"].count("`") % 2 == 0, "cut within code"
        assert told["description"]
        for parameter in told.get("parameters", []):
            assert "$ref" in parameter or parameter["description"], (name, parameter)
    for name, schema in document()["components"]["schemas"].items():
        assert schema.get("description"), name
        for field, each in schema.get("properties", {}).items():
            assert each.get("description"), (name, field)


def test_the_rules_of_fields_are_constraints() -> None:
    """FL-3, FL-12: bounds of numbers, lengths, patterns, lists, and what has to be given."""
    schemas = document()["components"]["schemas"]
    sync = schemas["PublishSyncRequest"]
    assert sync["required"] == ["type"]
    assert sync["additionalProperties"] is False
    assert (sync["properties"]["timeout"]["minimum"], sync["properties"]["timeout"]["maximum"]) == (1, 300)
    assert sync["properties"]["type"]["maxLength"] == 255
    assert sync["properties"]["tags"]["maxItems"] == 32
    assert sync["properties"]["tags"]["items"]["minLength"] == 1
    limit = next(each for each in operations()["ListArtifacts"].told["parameters"] if each.get("name") == "limit")
    assert (limit["schema"]["minimum"], limit["schema"]["maximum"]) == (1, 500)
    trigger = schemas["TriggerWorkflowRequest"]["properties"]
    assert {"taskQueue", "prioritySeconds", "idempotencyKeyTTL"} <= set(trigger)
    assert not {"tenant", "kind"} & set(trigger)


def test_errors_that_a_comment_lists_by_another_rpc_are_its_own_too() -> None:
    told = responses("PublishSync")
    assert "Here: the type is not registered." in told["404"]["description"]
    assert "Here: where fail_on_timeout is set." in told["504"]["description"]

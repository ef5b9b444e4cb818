"""What every method of the contract says of itself."""

import re
from pathlib import Path

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from millstream.domain.principals import ROLES
from millstream.transport import contract
from millstream.transport.errors import STATUSES
from millstream.v1 import policy_pb2
from millstream.v1.error_pb2 import ErrorBody

_PROTO = Path(__file__).parents[2] / "proto" / "millstream" / "v1"
_METHODS = list(contract.methods())
_DESCRIPTORS = [method for service in contract.services() for method in service.methods]
_64_BITS = {
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
}


def _name(method: contract.Method | MethodDescriptor) -> str:
    return method.name


@pytest.mark.parametrize("method", _METHODS, ids=_name)
def test_a_method_has_a_policy(method: contract.Method) -> None:
    """DC-1"""
    policy = method.policy
    assert policy.public != bool(policy.permission), "either public or with a permission"
    if policy.permission:
        assert any(policy.permission in granted for granted in ROLES.values()), policy.permission


@pytest.mark.parametrize("method", _METHODS, ids=_name)
def test_a_method_is_in_rest_or_says_that_it_is_not(method: contract.Method) -> None:
    """DC-3"""
    assert method.has_rest != method.policy.grpc_only
    if method.streaming:
        assert method.policy.grpc_only


_CHECKS = {"ValidateWorkflow"}
"""Posted because what they look at is large; they change nothing."""


@pytest.mark.parametrize("method", _DESCRIPTORS, ids=_name)
def test_what_writes_over_rest_takes_a_key_and_is_audited(method: MethodDescriptor) -> None:
    """FL-8"""
    options = method.GetOptions()
    policy, rule = options.Extensions[policy_pb2.policy], options.Extensions[annotations_pb2.http]
    writes = bool(rule.post or rule.put or rule.patch or rule.delete) and method.name not in _CHECKS
    # What is uploaded is known by its content: to send it again changes nothing, and no key could say more.
    assert policy.keyed == (writes and not method.client_streaming)
    assert writes == bool(policy.audit)


@pytest.mark.parametrize("method", _DESCRIPTORS, ids=_name)
def test_rest_shows_no_64_bit_integer(method: MethodDescriptor) -> None:
    if not method.GetOptions().HasExtension(annotations_pb2.http):
        return
    shown = [*_fields(method.input_type, set()), *_fields(method.output_type, set())]
    assert [field.full_name for field in shown if field.type in _64_BITS] == []


def _fields(message: Descriptor, seen: set[str]) -> list[FieldDescriptor]:
    if message.full_name in seen or message.full_name.startswith("google."):
        return []
    seen.add(message.full_name)
    out = list(message.fields)
    for field in message.fields:
        if field.message_type is not None:
            out += _fields(field.message_type, seen)
    return out


def test_every_comment_of_a_method_lists_its_errors() -> None:
    for path in sorted(_PROTO.glob("*_service.proto")):
        text = path.read_text()
        for match in re.finditer(r"((?:^  //.*\n)+)  rpc (\w+)\(", text, re.MULTILINE):
            assert "Errors:" in match[1], match[2]
        commented = re.findall(r"^  //.*\n  rpc (\w+)\(", text, re.MULTILINE)
        assert commented == re.findall(r"^  rpc (\w+)\(", text, re.MULTILINE)


def test_errors_that_comments_name_exist() -> None:
    for path in sorted(_PROTO.glob("*_service.proto")):
        for listed in re.findall(r"// Errors: ((?:.*\n  // )*?.*)\n", path.read_text()):
            for code in re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b|\b(?:TIMEOUT|CONFLICT|UNAVAILABLE)\b", listed):
                assert code in STATUSES, (path.name, code)


def test_every_reason_has_its_statuses() -> None:
    """FL-10"""
    reasons = {value.name for value in ErrorBody.Reason.DESCRIPTOR.values} - {"UNSPECIFIED"}
    assert set(STATUSES) == reasons


def test_the_table_of_statuses_says_what_the_contract_documents() -> None:
    """FL-10"""
    text = (_PROTO / "error.proto").read_text()
    documented = re.findall(r"// (\d{3}), (not retryable|retryable)[^\n]*\n(?:\s*//.*\n)*\s+(\w+) = \d+;", text)
    assert len(documented) >= 15
    for http, retryable, reason in documented:
        assert STATUSES[reason].http == int(http), reason
        assert STATUSES[reason].retryable == (retryable == "retryable"), reason

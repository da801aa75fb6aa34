"""`metadata.json` in its three dialects, and references."""

import json

import pytest

from harness.artifact import MethodMetadata, parse_metadata
from harness.artifact.delegate import Reference, parse_reference
from harness.artifact.files import flatten
from harness.errors import ArtifactError

NAMES = {"inputNames": ["x", "y"], "outputNames": ["z"]}
SINGLE = {**NAMES, "identifier": "id"}
MULTI = {"identifier": "id", "methods": {"forward": NAMES, "prefill": NAMES}}
DRAFT = {**MULTI, "default_method": "prefill"}


def parse(content):
    return parse_metadata(json.dumps(content).encode(), "here")


@pytest.mark.parametrize("content", [SINGLE, MULTI, DRAFT])
def test_bytes_to_value_to_bytes(content):
    assert json.loads(parse(content).to_bytes()) == content


def test_a_single_method_answers_to_any_name():
    assert parse(SINGLE).method("anything", "w") == MethodMetadata(("x", "y"), ("z",))


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(ArtifactError, match="no method 'other', only forward, prefill"):
        parse(MULTI).method("other", "w")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "needs 'identifier'"),
        ([], "needs 'identifier'"),
        ({**SINGLE, "identifier": 3}, "needs 'identifier'"),
        ({**SINGLE, "inputNames": "x"}, "needs 'identifier'"),
        ({**MULTI, "methods": {}}, "needs 'identifier'"),
        ({**MULTI, "methods": {"forward": {}}}, "'forward'.*needs lists"),
        ({**SINGLE, "inputNames": ["x", "x"]}, "names x twice"),
        ({**SINGLE, "outputNames": [1]}, "outputNames must hold names only"),
        ({**DRAFT, "default_method": "decode"}, "default_method is 'decode'"),
        ({**DRAFT, "default_method": 7}, "default_method is 7"),
    ],
)
def test_an_error_is_named(content, problem):
    with pytest.raises(ArtifactError, match=f"here.*{problem}"):
        parse(content)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_text_that_is_not_json_is_refused(data):
    with pytest.raises(ArtifactError, match="here: metadata\\.json is not JSON"):
        parse_metadata(data, "here")


def reference(content):
    return parse_reference(memoryview(b"CMJR" + json.dumps(content).encode()), "here")


def test_a_reference_names_key_and_function():
    parsed = reference({"version": 1, "key": "k", "functionName": "f"})
    assert parsed == Reference(1, "k", "f")


def draft(content):
    return parse_reference(memoryview(json.dumps(content).encode()), "here")


def test_a_reference_of_the_draft_has_no_magic_and_names_a_method():
    assert draft({"version": 1, "key": "k", "method": "m"}) == Reference(1, "k", "m", is_draft=True)


@pytest.mark.parametrize(
    "content", [{"version": 2, "key": "k", "method": "m"}, {"version": 1, "key": "k"}, {"key": 1}]
)
def test_a_bad_reference_of_the_draft_is_refused(content):
    with pytest.raises(ArtifactError, match="here: a reference without CMJR.*'method'"):
        draft(content)


def test_a_package_is_not_a_reference():
    flattened = flatten({"metadata.json": b'{"key": "k"}', "model.mlpackage/a": b"a"})
    for data in (b"PK\3\4", b"{", b"[]", b'{"nodes": 1}', flattened):
        assert parse_reference(memoryview(data), "here") is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"version": 2, "key": "k"}, "version 2; version 1 is known"),
        ({"version": 1}, "is not a reference"),
        ({"version": 1, "key": "k", "functionName": 3}, "a reference"),
        ([], "is not a reference"),
    ],
)
def test_a_bad_reference_is_refused(content, problem):
    with pytest.raises(ArtifactError, match=f"here.*{problem}"):
        reference(content)

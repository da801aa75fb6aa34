"""The stubs of coremltools' protobuf messages agree with its descriptors."""

import ast
from pathlib import Path

import pytest

from harness.artifact.proto import proto_module

STUBS = Path(__file__).parents[2] / "stubs/coremltools/proto"
LEFT_OUT = ("Model",)  # its fields for the models that are not ML Programs


def messages(body, outer=""):
    """Yield the name of every message of a stub, and the names that it declares."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield outer + node.name, set(declared(node.body))
            yield from messages(node.body, f"{outer}{node.name}.")


def declared(body):
    for node in body:
        if isinstance(node, ast.AnnAssign):
            yield node.target.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


@pytest.mark.parametrize("name", ["MIL_pb2", "FeatureTypes_pb2", "Model_pb2"])
def test_every_name_in_a_stub_is_in_the_message(name):
    module = proto_module(name)
    tree = ast.parse((STUBS / f"{name}.pyi").read_text())
    assert all(hasattr(module, known) for known in declared(tree.body))
    for message, names in messages(tree.body):
        found = module
        for part in message.split("."):
            found = getattr(found, part)
        fields = {*found.DESCRIPTOR.fields_by_name}
        assert all(known in fields or hasattr(found, known) for known in names), message
        assert fields <= names or message in LEFT_OUT, message

"""A real .pte, compared with ExecuTorch's own reader, and broken ones."""

import random
import struct

import numpy as np
import pytest

from harness.artifact import open_artifact
from harness.artifact.facts import artifact_facts
from harness.artifact.flatbuffer import (
    BackendDelegateDataReferenceField,
    BackendDelegateField,
    ExecutionPlanField,
    ProgramField,
    Table,
)
from harness.artifact.pte import DelegateCall, KernelCall
from harness.artifact.pte_reader import parse_pte, program_tables
from harness.errors import ArtifactError, HarnessError


def test_methods_and_instructions_are_executorchs_own(mixed_program):
    from executorch.exir._serialize._program import deserialize_pte_binary

    path, _, _ = mixed_program
    theirs = deserialize_pte_binary(path.read_bytes()).program
    ours = open_artifact(path).pte
    assert list(ours.methods) == [plan.name for plan in theirs.execution_plan]
    for plan in theirs.execution_plan:
        method = ours.methods[plan.name]
        assert list(method.inputs) == list(plan.inputs)
        assert list(method.outputs) == list(plan.outputs)
        assert len(method.values) == len(plan.values)
        assert list(method.buffer_sizes) == list(plan.non_const_buffer_sizes)
        for mine, value in zip(method.values, plan.values, strict=True):
            if (place := getattr(value.val, "allocation_info", None)) is not None:
                offset = place.memory_offset_low + (place.memory_offset_high << 32)
                assert mine.planned == (place.memory_id, offset)
        calls = [i.instr_args for i in plan.chains[0].instructions] if plan.chains else []
        names = [f"{o.name}.{o.overload}" for o in plan.operators]
        for mine, call in zip(method.instructions, calls, strict=True):
            assert list(mine.args) == list(call.args)
            if isinstance(mine, KernelCall):
                assert mine.operator == names[call.op_index]
            else:
                assert isinstance(mine, DelegateCall) and mine.delegate == call.delegate_index


def test_the_program_has_both_kinds_of_call(mixed_program):
    method = artifact_facts(open_artifact(mixed_program[0])).methods[0]
    assert method.kernel_calls == {"aten::relu.out": 1}
    assert method.delegate_calls == 2


def test_constant_methods_return_their_values(mixed_program):
    constants = open_artifact(mixed_program[0]).constants
    assert constants["answer"] == 42 and constants["name"] == "mixed"
    np.testing.assert_array_equal(constants["table"], np.arange(5, dtype=np.int16))
    assert constants["table"].dtype == np.int16


def test_a_segment_to_which_nothing_refers_is_told(mixed_program):
    data = bytearray(mixed_program[0].read_bytes())
    assert not parse_pte(memoryview(data), "here").unused
    tables = program_tables(memoryview(data))
    (method,) = (
        plan
        for plan in Table.root(tables).children(ProgramField.EXECUTION_PLAN)
        if plan.text(ExecutionPlanField.NAME) == "forward"
    )
    first, second = (
        delegate.child(BackendDelegateField.PROCESSED)
        for delegate in method.children(ExecutionPlanField.DELEGATES)
    )
    field = BackendDelegateDataReferenceField.INDEX
    number, other = (one.scalar(field, "uint32") for one in (first, second))
    place = (second if other else first)._field(field)
    struct.pack_into("<I", data, place, number if other else other)
    (unused,) = parse_pte(memoryview(data), "here").unused
    assert unused == f"segment {other or number}"


@pytest.mark.parametrize(("count", "told"), [(128, []), (1000, ["the end of the file"])])
def test_bytes_behind_the_last_segment_are_told(mixed_program, count, told):
    """Up to 128 bytes may fill up the last segment."""
    unused = parse_pte(memoryview(mixed_program[0].read_bytes() + bytes(count)), "here").unused
    assert list(unused) == told and list(unused.values()) == [count] * len(told)


def look(path):
    """Read everything that `harness inspect` and the executor's loader read."""
    artifact = open_artifact(path)
    artifact_facts(artifact)
    for bundle in artifact.bundles:
        for name in bundle.package.functions:
            for reference in bundle.package.weights(name):
                bundle.package.blob(*reference)


@pytest.mark.parametrize("share", range(64))
def test_a_truncated_file_is_refused(mixed_program, tmp_path, share):
    data = mixed_program[0].read_bytes()
    path = tmp_path / "cut.pte"
    path.write_bytes(data[: len(data) * share // 64])
    with pytest.raises(HarnessError):
        look(path)


def test_mutated_bytes_give_a_sentence_or_nothing(mixed_program, tmp_path):
    """Two thousand files with a few wrong bytes raise no other exception and do not hang."""
    data = mixed_program[0].read_bytes()
    rng = random.Random(7)
    path = tmp_path / "mutated.pte"
    refused = 0
    for _ in range(2000):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            look(path)
        except HarnessError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"ET12", b"\0" * 4 + b"ET12" + b"\0" * 40, b"x" * 100])
def test_a_file_that_is_not_a_program_is_refused(tmp_path, content):
    path = tmp_path / "no.pte"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"no\.pte"):
        open_artifact(path)


def test_a_program_without_a_core_ml_delegate_is_refused(tmp_path):
    import torch
    from executorch.exir import to_edge

    exported = torch.export.export(torch.nn.ReLU(), (torch.randn(3),))
    path = tmp_path / "portable.pte"
    path.write_bytes(to_edge(exported).to_executorch().buffer)
    with pytest.raises(ArtifactError, match="no Core ML delegate in any method"):
        open_artifact(path)

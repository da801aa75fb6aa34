"""Programs with every kind of content, written by ExecuTorch's serializer and read by ours."""

import re
import struct
import time
import tracemalloc
from enum import EnumType
from importlib.util import find_spec
from pathlib import Path

import flatbuffers
import numpy as np
import pytest

from harness.artifact import Artifact, flatbuffer, open_artifact
from harness.artifact.facts import artifact_facts
from harness.artifact.flatbuffer import DataSegmentField, ProgramField, Table
from harness.artifact.pte import (
    DelegateCall,
    FreeCall,
    JumpFalseCall,
    KernelCall,
    ListValue,
    MoveCall,
    TensorValue,
)
from harness.artifact.pte_reader import read_pte
from harness.errors import ArtifactError

X = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)


@pytest.fixture(scope="module")
def files():
    """Import the helper late, because ExecuTorch's serializer takes ten seconds."""
    from tests.artifact import pte_files

    return pte_files


def read(data, tmp_path):
    path = tmp_path / "made.pte"
    path.write_bytes(data)
    return read_pte(path)


def theirs(data):
    from executorch.exir._serialize._program import deserialize_pte_binary

    return deserialize_pte_binary(data)


def test_every_kind_of_value_is_read(files, tmp_path):
    from executorch.exir import schema as s

    values = [
        (files.tensor(2, 3, dtype="HALF"), TensorValue("float16", (2, 3), None, (0, 1))),
        (s.Int(-(1 << 40)), -(1 << 40)),
        (s.Null(), None),
        (s.Bool(True), True),
        (s.Double(2.5), 2.5),
        (s.Double(float("-inf")), float("-inf")),
        (s.String("hé"), "hé"),
        (s.IntList([1, 3]), ListValue((1, 3))),
        (s.BoolList([True, False]), (True, False)),
        (s.DoubleList([1.5, 0.0]), (1.5, 0.0)),
        (s.TensorList([0, 0]), ListValue((0, 0))),
        (s.OptionalTensorList([0, -1]), ListValue((0, -1))),
    ]
    data = files.serialize([files.plan("forward", [value for value, _ in values])])
    found = read(data, tmp_path).methods["forward"].values
    assert list(found) == [expected for _, expected in values]
    assert [type(value) for value in found] == [type(expected) for _, expected in values]


def test_every_kind_of_instruction_is_read(files, tmp_path):
    from executorch.exir import schema as s

    calls = [
        (s.KernelCall(1, [0, 1]), KernelCall("aten::relu.out", (0, 1))),
        (s.KernelCall(0, [0]), KernelCall("mine::plain", (0,))),
        (s.DelegateCall(1, [1, 0]), DelegateCall(1, (1, 0))),
        (s.MoveCall(1, 0), MoveCall(1, 0)),
        (s.JumpFalseCall(1, 6), JumpFalseCall(1, 6)),
        (s.FreeCall(1), FreeCall(1)),
    ]
    plan = files.plan(
        "forward",
        [files.tensor(1), files.tensor(1)],
        instructions=[call for call, _ in calls],
        operators=["mine::plain.", "aten::relu.out"],
        delegates=[("CoreMLBackend", 0), ("XnnpackBackend", 1)],
    )
    method = read(files.serialize([plan], payloads=[b"a", b"bc"]), tmp_path).methods["forward"]
    assert list(method.instructions) == [expected for _, expected in calls]
    assert [d.backend for d in method.delegates] == ["CoreMLBackend", "XnnpackBackend"]
    assert [bytes(d.processed) for d in method.delegates] == [b"a", b"bc"]


@pytest.mark.parametrize("in_segments", [True, False])
def test_payloads_constants_and_named_data_are_executorchs_own(files, tmp_path, in_segments):
    values = [files.tensor(1, 2, 3, 4, buffer=1), files.tensor(3, dtype="LONG", buffer=2)]
    plans = [files.plan("forward", values, delegates=[("CoreMLBackend", 0), ("CoreMLBackend", 1)])]
    numbers = np.array([1, -2, 3])
    constants = [X.tobytes(), numbers.tobytes()]
    named = {"key": b"stored once", "schlüssel": b"\0\1"} if in_segments else None
    payloads = [b"payload", b"x" * 1000]
    data = files.serialize(plans, constants, payloads, named, in_segments)
    ours, file = read(data, tmp_path), theirs(data)
    method = ours.methods["forward"]
    np.testing.assert_array_equal(method.values[0].array(), X)
    np.testing.assert_array_equal(method.values[1].array(), numbers)
    inline = [d.data for d in file.program.backend_delegate_data]
    assert [bytes(d.processed) for d in method.delegates] == payloads == inline
    stored = file.named_data
    entries = stored.pte_data if stored else {}
    assert {key: bytes(value) for key, value in ours.named_data.items()} == {
        key: stored.buffers[entry.buffer_index] for key, entry in entries.items()
    }
    assert len(ours.named_data) == (2 if in_segments else 0)


def test_a_real_programs_payloads_and_constants_are_executorchs_own(mixed_program):
    data = mixed_program[0].read_bytes()
    ours, program = open_artifact(mixed_program[0]).pte, theirs(data).program
    compared = 0
    for plan in program.execution_plan:
        method = ours.methods[plan.name]
        for mine, delegate in zip(method.delegates, plan.delegates, strict=True):
            assert mine.backend == delegate.id
            stored = program.backend_delegate_data[delegate.processed.index].data
            assert bytes(mine.processed) == stored
            specs = [(spec.key, bytes(spec.value)) for spec in delegate.compile_specs]
            assert list(mine.compile_specs) == specs
            compared += 1
        for mine, value in zip(method.values, plan.values, strict=True):
            if isinstance(mine, TensorValue):
                assert list(mine.shape) == list(value.val.sizes)
                if mine.data is not None:
                    buffer = program.constant_buffer[value.val.data_buffer_idx].storage
                    assert mine.array().tobytes() == bytes(buffer)[: mine.array().nbytes]
                    compared += 1
    assert compared >= 3


def constant(files, tmp_path, values, outputs, buffers=()):
    pte = read(files.serialize([files.plan("c", values, (), outputs)], buffers), tmp_path)
    return pte.constant(pte.methods["c"])


def test_a_constant_method_may_return_several_values(files, tmp_path):
    """ExecuTorch's exporters write such a method for a list of end-of-text tokens."""
    from executorch.exir import schema as s

    assert constant(files, tmp_path, [s.Int(128001), s.Int(128009)], [0, 1]) == (128001, 128009)
    assert constant(files, tmp_path, [], []) == ()


def test_inspect_shows_several_values(files, mixed_program):
    from harness.artifact.facts import _plain

    assert _plain((1, "a", np.arange(2))) == [
        1,
        "a",
        {"dtype": "int64", "shape": [2], "values": [0, 1]},
    ]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 0, 2, 1)])
def test_a_constant_is_read_in_its_order_of_axes(files, tmp_path, order):
    value = files.tensor(1, 2, 3, 4, buffer=1, order=order)
    stored = np.ascontiguousarray(X.transpose(order))
    found = constant(files, tmp_path, [value], [0], [stored.tobytes()])
    np.testing.assert_array_equal(found, X)


def test_a_scalar_and_an_empty_constant_are_read(files, tmp_path):
    scalar = constant(files, tmp_path, [files.tensor(buffer=1)], [0], [np.float32(3).tobytes()])
    assert scalar.shape == () and scalar == 3
    empty = constant(files, tmp_path, [files.tensor(0, 5, buffer=1)], [0], [b"1234"])
    assert empty.shape == (0, 5)


def test_a_method_that_returns_its_input_is_not_constant(files, tmp_path):
    plan = files.plan("forward", [files.tensor(2)], [0], [0])
    assert not read(files.serialize([plan]), tmp_path).methods["forward"].is_constant


BROKEN = {
    "a constant that is not there": (
        lambda f, s: ([f.tensor(1, buffer=9)], [], []),
        "constant 9 of 2",
    ),
    "too many axes": (lambda f, s: ([f.tensor(*[1] * 17)], [], []), "a tensor of shape"),
    "an order of other axes": (
        lambda f, s: ([f.tensor(1, 1, order=(0, 2))], [], []),
        "2 axes in the order",
    ),
    "an output that is not there": (lambda f, s: ([s.Int(1)], [3], []), "does not have"),
    "a list of values that are not there": (lambda f, s: ([s.IntList([5])], [], []), "not have"),
    "a move from nowhere": (lambda f, s: ([s.Int(1)], [], [s.MoveCall(-1, 0)]), "not have"),
    "a jump to nowhere": (lambda f, s: ([s.Int(1)], [], [s.JumpFalseCall(0, 9)]), "jumps to 9"),
    "an operator that is not there": (
        lambda f, s: ([s.Int(1)], [], [s.KernelCall(0, [])]),
        "operator 0 of 0",
    ),
    "a delegate that is not there": (
        lambda f, s: ([s.Int(1)], [], [s.DelegateCall(0, [])]),
        "calls delegate 0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_program_that_contradicts_itself_is_refused(files, tmp_path, name):
    from executorch.exir import schema

    make, problem = BROKEN[name]
    values, outputs, instructions = make(files, schema)
    plan = files.plan("forward", values, (), outputs, instructions)
    with pytest.raises(ArtifactError, match=f"made\\.pte: .*{problem}"):
        read(files.serialize([plan], [np.float32([1]).tobytes()]), tmp_path)


@pytest.mark.parametrize(
    ("shape", "buffer", "problem"),
    [
        ((7,), 1, "'c': a constant float32\\(7,\\) claims bytes 0 to 28, but only 4 are there"),
        ((0, 2**31 - 1, 2**31 - 1, 2**31 - 1), 1, "'c'.*a constant of shape"),
        ((1,), 0, "'c'.*without data"),
    ],
)
def test_a_truncated_constant_is_named(files, tmp_path, shape, buffer, problem):
    plan = files.plan("c", [files.tensor(*shape, buffer=buffer)], (), [0])
    pte = read(files.serialize([plan], [np.float32([1]).tobytes()]), tmp_path)
    with pytest.raises(ArtifactError, match=f"made\\.pte: constant method {problem}"):
        _ = Artifact(tmp_path / "made.pte", pte, None).constants


def test_two_methods_of_one_name_are_refused(files, tmp_path):
    plans = [files.plan("forward", []), files.plan("forward", [])]
    with pytest.raises(ArtifactError, match="two methods are named 'forward'"):
        read(files.serialize(plans), tmp_path)


def delegated(files, payload, named=None):
    """A program with one method, whose delegate holds `payload`."""
    from executorch.exir import schema as s

    values = [files.tensor(1), files.tensor(1)]
    calls = [s.DelegateCall(0, [0, 1])]
    plan = files.plan("forward", values, [0], [1], calls, delegates=[("CoreMLBackend", 0)])
    return files.serialize([plan], payloads=[payload], named=named)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (
            b'CMJR{"version": 1, "key": "gone", "functionName": "forward"}',
            "refers to named data 'gone', which the program does not hold \\(it holds other\\)",
        ),
        (b'CMJR{"version": 2, "key": "other"}', "a reference of version 2; version 1"),
        (b"CMJR\xff\xfe", "starts with CMJR but is not a reference"),
        (b"neither", "not a flattened package"),
        (b"", "not a flattened package"),
    ],
)
def test_a_payload_that_is_not_a_package_is_named_with_its_method(
    files, tmp_path, payload, problem
):
    path = tmp_path / "made.pte"
    path.write_bytes(delegated(files, payload, {"other": b"x"}))
    where = "made\\.pte, method 'forward', delegate 0: "
    with pytest.raises(ArtifactError, match=where + problem):
        artifact_facts(open_artifact(path))


def crowded(count):
    """Return a program of `count` values, all of them one tensor with `count` sizes."""
    builder = flatbuffers.Builder()

    def vector(size, items, prepend):
        builder.StartVector(size, len(items), size)
        for item in reversed(items):
            prepend(item)
        return builder.EndVector()

    def table(**fields):
        builder.StartObject(8)
        for slot, (kind, value) in fields.items():
            if kind == "offset":
                builder.PrependUOffsetTRelativeSlot(int(slot[1:]), value, 0)
            else:
                builder.PrependUint8Slot(int(slot[1:]), value, 0)
        return builder.EndObject()

    sizes = vector(4, [1] * count, builder.PrependInt32)
    tensor = table(_0=("byte", 6), _2=("offset", sizes))
    value = table(_0=("byte", 5), _1=("offset", tensor))
    values = vector(4, [value] * count, builder.PrependUOffsetTRelative)
    name = builder.CreateString("forward")
    method = table(_0=("offset", name), _2=("offset", values))
    methods = vector(4, [method], builder.PrependUOffsetTRelative)
    builder.Finish(table(_1=("offset", methods)), file_identifier=b"ET12")
    return bytes(builder.Output())


def test_the_crowded_program_is_one_that_is_read(tmp_path):
    method = read(crowded(3), tmp_path).methods["forward"]
    assert method.values == (TensorValue("float32", (1, 1, 1), None),) * 3


def test_tables_that_refer_to_one_another_do_not_fill_the_memory(tmp_path):
    """160 kB, if read without a limit, give four hundred million numbers."""
    data = crowded(20_000)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ArtifactError, match="tables are damaged"):
        read(data, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * len(data) and time.perf_counter() - start < 5


def test_many_allowed_tensors_do_not_fill_the_memory_either(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.artifact.pte_reader.MAX_AXES", 1 << 30)
    with pytest.raises(ArtifactError, match="more items than the file has bytes"):
        read(crowded(20_000), tmp_path)


def schema_names():
    """Return the fields of each table of ExecuTorch's schema, and the members of each union."""
    (folder,) = find_spec("executorch").submodule_search_locations
    text = (Path(folder) / "exir/_serialize/program.fbs").read_text()
    text = re.sub(r"//.*", "", text)
    unions = {
        name: ["NONE", *re.findall(r"\w+", members)]
        for name, members in re.findall(r"union (\w+) \{(.*?)\}", text, re.DOTALL)
    }
    tables = {}
    for name, body in re.findall(r"table (\w+) \{(.*?)\}", text, re.DOTALL):
        fields = re.findall(r"(\w+) *: *\[?(\w+)", body)
        tables[name] = [
            slot
            for field, kind in fields
            for slot in ([f"{field}_type"] * (kind in unions)) + [field]
        ]
    return tables, unions


def test_fields_have_the_numbers_of_the_schema():
    tables, unions = schema_names()
    enums = {e.__name__: e for e in vars(flatbuffer).values() if isinstance(e, EnumType)}
    del enums["IntEnum"]
    for name, enum in enums.items():
        expected = unions.get(name) or tables[name.removesuffix("Field")]
        found = [member.name.replace("_", "") for member in enum]
        assert found == [e.replace("_", "").upper() for e in expected][: len(found)], name
        assert [*enum] == [*range(len(found))], name
    assert len(enums) > 15


def test_a_program_of_many_constants_is_read(files, tmp_path):
    """Each constant names its place in one list of offsets, which is as long as they are many."""
    count = 300
    values = [files.tensor(1, buffer=number + 1) for number in range(count)]
    ones = [np.float32(number).tobytes() for number in range(count)]
    pte = read(files.serialize([files.plan("table", values, (), range(count))], ones), tmp_path)
    assert [float(v[0]) for v in pte.constant(pte.methods["table"])] == list(range(count))


def test_delegates_of_one_segment_share_one_package(files, tmp_path):
    method = files.plan("forward", [files.tensor(1)], [0], delegates=[("CoreMLBackend", 0)] * 3)
    data = files.serialize([method], payloads=[b"one"])
    (tmp_path / "a.pte").write_bytes(data)
    artifact = open_artifact(tmp_path / "a.pte")
    assert len(artifact.delegates["forward"]) == 3 and len(artifact.bundles) == 1


def test_segments_that_overlap_are_refused(files, tmp_path):
    method = files.plan("forward", [], delegates=[("CoreMLBackend", n) for n in range(4)])
    data = bytearray(files.serialize([method], payloads=[bytes([n]) * 3000 for n in range(4)]))
    program = Table.root(memoryview(data)[: struct.unpack_from("<Q", data, 24)[0]])
    for number, table in enumerate(program.children(ProgramField.SEGMENTS)):
        for field, value in ((DataSegmentField.SIZE, 9000 - number), (DataSegmentField.OFFSET, 0)):
            if position := table._field(field):  # a flatbuffer leaves out a field that is 0
                struct.pack_into("<Q", data, position, value)
    with pytest.raises(ArtifactError, match="its segments overlap"):
        read(bytes(data), tmp_path)

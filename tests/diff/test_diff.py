"""`diff_artifacts` reports every kind of change with its place, and nothing else."""

import json

import numpy as np
import pytest

from harness.artifact import open_artifact
from harness.diff import diff_artifacts
from harness.errors import HarnessError
from tests.mil.programs import save
from tests.packages.payloads import edited, payload, program, reference

RANDOM = np.random.default_rng(3)
KEY, VALUE, OUT = RANDOM.standard_normal((3, 16, 16)).astype(np.float32)


def attention(mb, a, key=KEY, value=VALUE, activation="softmax"):
    """A block whose weights have one shape, so that they differ in their contents only."""
    k = mb.linear(x=a, weight=key, name="k")
    v = mb.linear(x=a, weight=value, name="v")
    scores = mb.matmul(x=k, y=a, transpose_y=True, name="scores")
    weights = getattr(mb, activation)(x=scores, name="attention")
    return mb.linear(x=mb.matmul(x=weights, y=v, name="mixed"), weight=OUT, name="out")


@pytest.fixture(scope="module")
def base():
    return save(attention, [(4, 16)])


def write(package, folder):
    """Write a package, perhaps one in memory, as a folder."""
    for name, data in package.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def compare(base, tmp_path):
    """Compare `base` with a package, both written out; return the differences below the files."""
    first = write(base, tmp_path / "a.mlpackage")

    def differences(package, *kinds):
        second = write(package, tmp_path / "b.mlpackage")
        found = diff_artifacts(open_artifact(first), open_artifact(second))
        noise = ("file", "size", "package", "metadata")
        kept = [d for d in found if d.kind not in noise and not d.is_incidental]
        return [d for d in kept if d.kind in kinds] if kinds else kept

    return differences


def built(**changes):
    return save(lambda mb, a: attention(mb, a, **changes), [(4, 16)])


def block(model):
    return model.mlProgram.functions["main"].block_specializations["CoreML8"]


def named(model, name):
    (operation,) = [op for op in block(model).operations if op.outputs[0].name == name]
    return operation


def test_equal_bytes_are_the_same(base, tmp_path):
    paths = [write(base, tmp_path / f"{name}.mlpackage") for name in "ab"]
    assert diff_artifacts(*map(open_artifact, paths)) == []


def test_a_second_export_differs_in_identifiers_only(compare):
    assert compare(built()) == []


def test_a_changed_weight_is_named(compare):
    other = VALUE.copy()
    other[3, 5] += 0.01
    (found,) = compare(built(value=other))
    assert (found.where, found.kind, found.what) == ("function 'main'", "weight", "v_weight_0")
    assert found.a.startswith("FLOAT32[16, 16], 1,024 bytes, #") and found.a != found.b


def test_two_weights_that_changed_places_are_both_named(compare):
    found = compare(built(key=VALUE, value=KEY))
    assert [(d.kind, d.what) for d in found] == [("weight", "k_weight_0"), ("weight", "v_weight_0")]
    assert (found[0].a, found[0].b) == (found[1].b, found[1].a)


def test_a_replaced_operation_is_shown_on_both_sides(compare):
    found = compare(built(activation="tanh"))
    counts = {d.what: (d.a, d.b) for d in found if d.kind == "operations"}
    assert counts == {"softmax": (1, None), "tanh": (None, 1)}
    (one,) = [d for d in found if d.kind == "operation"]
    assert one.what == "3: attention"
    assert one.a == "softmax(axis=INT32[] -1, x=FLOAT32[4, 4]) -> FLOAT32[4, 4]"
    assert one.b == "tanh(x=FLOAT32[4, 4]) -> FLOAT32[4, 4]"


def test_an_added_operation_does_not_change_those_after_it(compare):
    def longer(mb, a):
        return attention(mb, mb.relu(x=a, name="added"))

    found = compare(save(longer, [(4, 16)]))
    first, number = [d for d in found if d.kind == "operation"]
    assert first.a is None and first.b.startswith("0: added = relu(x=FLOAT32[4, 16])")
    assert (number.a, number.b) == (0, 1)
    assert not [d for d in found if d.kind in ("weight", "wiring")]


def test_a_constant_in_the_text_is_shown(base, compare):
    def change(model):
        (axis,) = named(model, "attention").inputs["axis"].arguments
        named(model, axis.name).attributes["val"].immediateValue.tensor.ints.values[0] = 0

    (one,) = compare(edited(base, change))
    assert one.what == "3: attention = softmax, axis"
    assert (one.a, one.b) == ("INT32[] -1", "INT32[] 0")


def test_an_operation_that_takes_another_value_is_found(base, compare):
    """Types, shapes and constants stay the same; only the input changes, from v to k."""

    def change(model):
        named(model, "mixed").inputs["y"].arguments[0].name = "k"

    (found,) = compare(edited(base, change))
    assert (found.kind, found.what) == ("wiring", "4: mixed = matmul, inputs")
    assert (found.a, found.b) == ("attention, v", "attention, k")


def test_two_inputs_that_changed_places_are_found(tmp_path):
    one = save(lambda mb, a, b: mb.sub(x=a, y=b), [(2, 3), (2, 3)])
    other = save(lambda mb, a, b: mb.sub(x=b, y=a), [(2, 3), (2, 3)])
    paths = [write(p, tmp_path / f"{n}.mlpackage") for n, p in enumerate((one, other))]
    found = [d for d in diff_artifacts(*map(open_artifact, paths)) if d.kind == "wiring"]
    assert [(d.a, d.b) for d in found] == [("a, b", "b, a")]


def test_another_result_of_the_same_type_is_found(base, compare):
    def change(model):
        block(model).outputs[0] = "mixed"

    (found,) = compare(edited(base, change), "wiring")
    assert (found.what, found.a, found.b) == (
        "6: return = return, inputs",
        "out",
        "mixed",
    )


def test_new_names_are_reported_once_and_as_nothing_else(base, compare):
    def change(model):
        for op in block(model).operations:
            if op.type != "const" and op.outputs[0].name != "out":
                op.outputs[0].name += "_7"
            for parameter, argument in op.inputs.items():
                for binding in argument.arguments:
                    if parameter in "xy" and binding.name not in ("a", ""):
                        binding.name += "_7" if "_0" not in binding.name else ""

    (found,) = compare(edited(base, change))
    assert (found.kind, found.what) == ("names", "names of 5 values, first")
    assert (found.a, found.b) == ("k", "k_7")


def test_another_name_of_a_result_is_reported(base, compare):
    def change(model):
        named(model, "out").outputs[0].name = block(model).outputs[0] = "result"

    found = {(d.kind, d.what) for d in compare(edited(base, change))}
    assert found >= {("output", "out"), ("output", "result")}


def test_the_order_of_emission_changes_nothing(base, compare):
    """Two linears of equal signature change places."""

    def change(model):
        operations = [type(op).FromString(op.SerializeToString()) for op in block(model).operations]
        (k,) = (op for op in operations if op.outputs[0].name == "k")
        operations.remove(k)
        after_v = 1 + next(n for n, op in enumerate(operations) if op.outputs[0].name == "v")
        del block(model).operations[:]
        block(model).operations.extend([*operations[:after_v], k, *operations[after_v:]])

    assert compare(edited(base, change)) == []


def test_a_weight_in_a_nested_block_is_compared(tmp_path):
    def conditional(weight):
        return lambda mb, a: mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=a), y=np.float32(0)),
            _true_fn=lambda: mb.matmul(x=a, y=weight),
            _false_fn=lambda: mb.matmul(x=a, y=OUT),
        )

    paths = [
        write(save(conditional(weight), [(4, 16)]), tmp_path / f"{n}.mlpackage")
        for n, weight in enumerate((KEY, VALUE))
    ]
    found = [d for d in diff_artifacts(*map(open_artifact, paths)) if d.where]
    assert [d.kind for d in found] == ["weight"]


def test_a_wire_inside_a_nested_block_is_compared(tmp_path):
    def conditional(swapped):
        def build(mb, a, b):
            x, y = (b, a) if swapped else (a, b)
            return mb.cond(
                pred=mb.greater(x=mb.reduce_sum(x=a), y=np.float32(0)),
                _true_fn=lambda: mb.sub(x=x, y=y),
                _false_fn=lambda: mb.add(x=a, y=b),
            )

        return build

    paths = [
        write(save(conditional(swapped), [(2, 3)] * 2), tmp_path / f"{swapped}.mlpackage")
        for swapped in (False, True)
    ]
    found = [d for d in diff_artifacts(*map(open_artifact, paths)) if d.where]
    assert [d.kind for d in found] == ["wiring"]


CHANGES = {
    ("metadata", "author"): lambda m: setattr(m.description.metadata, "author", "me"),
    ("package", "specification version"): lambda m: setattr(m, "specificationVersion", 10),
    ("input", "a"): lambda m: retype(m.mlProgram.functions["main"].inputs[0].type),
    ("description", "input a"): lambda m: m.description.input[0].type.multiArrayType.shape.append(
        1
    ),
}


def retype(value_type):
    value_type.tensorType.dataType = 10


@pytest.mark.parametrize("change", CHANGES, ids=" ".join)
def test_the_description_of_a_model_is_compared(base, tmp_path, change):
    paths = [
        write(package, tmp_path / f"{n}.mlpackage")
        for n, package in enumerate((base, edited(base, CHANGES[change])))
    ]
    found = diff_artifacts(*map(open_artifact, paths))
    assert change in [(d.kind, d.what) for d in found]


def test_data_without_a_reference_still_differs(base, tmp_path):
    first, second = (write(base, tmp_path / f"{name}.mlpackage") for name in "ab")
    with (second / "Data/com.apple.CoreML/weights/weight.bin").open("ab") as file:
        file.write(bytes(64))
    found = diff_artifacts(open_artifact(first), open_artifact(second))
    assert [d.kind for d in found] == ["size", "package"]


NAMES = (["a", "b"], ["out"])


@pytest.fixture
def programs(base, tmp_path):
    """Write and compare two programs, each (methods, named data)."""

    def compared(*pair):
        paths = [program(tmp_path / f"{n}.pte", *made) for n, made in enumerate(pair)]
        return diff_artifacts(*map(open_artifact, paths))

    return compared


def test_added_and_removed_methods_are_reported(base, programs):
    data = payload(base, single=NAMES)
    found = programs(({"forward": [data], "old": [data]},), ({"forward": [data], "new": [data]},))
    methods = {d.what: (d.a, d.b) for d in found if d.kind == "method"}
    assert methods == {"old": ("there", None), "new": (None, "there")}


def test_the_order_of_names_is_compared(base, programs):
    pair = [payload(base, single=(names, ["out"])) for names in (["a", "b"], ["b", "a"])]
    found = programs(*(({"forward": [data]},) for data in pair))
    (names,) = [d for d in found if d.what == "input names"]
    assert names.where == "method 'forward', delegate 0"
    assert (names.a, names.b) == (["a", "b"], ["b", "a"])


def test_an_added_delegate_is_reported(base, programs):
    data = payload(base, single=NAMES)
    found = programs(({"forward": [data]},), ({"forward": [data, data]},))
    assert {d.where for d in found if d.kind == "delegate"} == {"method 'forward', delegate 1"}
    (calls,) = [d for d in found if d.kind == "program"]
    assert (calls.a, calls.b) == (["delegate 0[0, 1]"], ["delegate 0[0, 1]", "delegate 1[0, 1]"])


def test_a_package_that_is_now_stored_once_shows_as_a_reference(base, programs):
    own, shared = payload(base, single=NAMES), payload(base, forward=NAMES)
    found = programs(({"forward": [own]},), ({"forward": [reference("k", "main")]}, {"k": shared}))
    changes = {d.what: (d.a, d.b) for d in found if d.kind == "delegate"}
    assert changes["payload"] == ("a package of its own", "a reference to named data")
    assert changes["function"] == (None, "main")
    assert not [d for d in found if d.kind in ("operation", "weight", "package")]


def test_bytes_that_no_part_shows_still_differ(base, programs):
    named = {"k": payload(base, forward=NAMES)}
    methods = {"forward": [reference("k", "main")]}
    found = programs((methods, {**named, "rest": b"1"}), (methods, {**named, "rest": b"2"}))
    assert [(d.kind, d.what) for d in found] == [("named data", "rest")]


def test_a_change_in_a_real_program_is_found_where_it_is(mixed_program, tmp_path):
    from harness.suites.mutants.edit import Export, scale_half

    export = Export(mixed_program[0])
    weights = export.payloads[0].weights
    value = next(
        op.attributes["val"].blobFileValue
        for op in export.payloads[0].operations("main", "const")
        if op.attributes["val"].WhichOneof("value") == "blobFileValue"
    )
    scale_half(weights, value, 3, -2)
    export.constant("table")[2] = 99
    changed = export.save(tmp_path / "changed.pte")
    found = diff_artifacts(open_artifact(mixed_program[0]), open_artifact(changed))
    assert [d.kind for d in found if d.kind != "size"] == ["constant", "weight"]
    constant, weight = [d for d in found if d.kind != "size"]
    assert (constant.what, constant.b) == ("table", "int16[5] [0, 1, 99, 3, 4]")
    assert weight.where == "method 'forward', delegate 0, function 'main'"


def test_a_program_and_a_package_are_not_compared(base, tmp_path):
    folder = write(base, tmp_path / "a.mlpackage")
    path = program(tmp_path / "a.pte", {"forward": [payload(base, single=NAMES)]})
    for pair in ((folder, path), (path, folder)):
        with pytest.raises(HarnessError, match=r"a\.mlpackage is a package and .*a\.pte a program"):
            diff_artifacts(*map(open_artifact, pair))


def test_differences_are_json(base, tmp_path):
    paths = [
        write(package, tmp_path / f"{n}.mlpackage")
        for n, package in enumerate((base, built(activation="tanh")))
    ]
    found = diff_artifacts(*map(open_artifact, paths))
    assert json.loads(json.dumps([d.to_json() for d in found]))

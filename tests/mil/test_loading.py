"""Loading: types, packed weights, constexpr, policies, sharing, and refusals."""

import numpy as np
import pytest
import torch

from harness.artifact import Package
from harness.errors import ArtifactError, HarnessError
from harness.mil import get_policy, load_function, observed
from harness.mil.values import Constant, TensorType, _from_bytes
from tests.mil.programs import execute, run, save

RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 4)).astype(np.float32)


def edited(package, change):
    """Return the package with its model changed."""
    files = dict(package.files)
    model = type(package.model)()
    model.CopyFrom(package.model)
    function = model.mlProgram.functions["main"]
    change(function.block_specializations[function.opset])
    files[package.spec_path] = memoryview(model.SerializeToString())
    return Package(files, "edited")


def find(block, kind):
    return next(op for op in block.operations if op.type == kind)


@pytest.fixture(scope="module")
def affine():
    """`relu(a @ w.T) + 1`, with a weight large enough for the weight file."""
    weight = RNG.standard_normal((16, 4)).astype(np.float32)
    return save(
        lambda mb, a: mb.add(x=mb.relu(x=mb.linear(x=a, weight=weight)), y=np.float32(1)), [(2, 4)]
    )


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_packed_unsigned_integers_are_unpacked_as_coremltools_packs_them(bits):
    from coremltools.optimize import _utils

    values = RNG.integers(0, 1 << bits, 37).astype(np.uint8)
    packed = _utils.pack_elements_into_bits(values, bits)
    from harness.artifact.proto import mil_types

    dtype = next(t for t in mil_types().values() if t.name == f"UINT{bits}")
    declared = TensorType(dtype, (37,))
    stored = _from_bytes(memoryview(packed.tobytes()), declared, "here")
    np.testing.assert_array_equal(Constant(declared, stored).array, values)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("with_offset", [False, True])
def test_blockwise_weights_are_scale_times_data_less_offset(dtype, with_offset):
    from coremltools.converters.mil.mil import types

    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}[dtype]
    kind = types.nptype_from_builtin(types.string_to_builtin(dtype))
    data = RNG.integers(low, high, (6, 8))
    scale = RNG.random((3, 2)).astype(np.float16)
    offset = RNG.integers(low, high, (3, 2))

    def build(mb, a):
        given = {"offset": offset.astype(kind)} if with_offset else {}
        weight = mb.constexpr_blockwise_shift_scale(data=data.astype(kind), scale=scale, **given)
        return mb.mul(x=a, y=weight)

    blocks = np.kron(scale.astype(np.float32), np.ones((2, 4), np.float32))
    shift = np.kron(offset, np.ones((2, 4))) if with_offset else 0
    expected = ((data - shift) * blocks).astype(np.float16)
    (result,) = execute(build, np.ones((6, 8), np.float16))
    np.testing.assert_array_equal(result, expected.astype(np.float32))


def test_strict_is_numpys_fp16_for_one_operation_at_a_time():
    a, b = (RNG.standard_normal((64,)).astype(np.float16) * 100 for _ in range(2))
    for name, rule in (("add", np.add), ("mul", np.multiply), ("sub", np.subtract)):
        build = lambda mb, a, b, name=name: getattr(mb, name)(x=a, y=b)  # noqa: E731
        (strict,) = execute(build, a, b, policy="strict")
        np.testing.assert_array_equal(strict.astype(np.float16), rule(a, b))
        (wide,) = execute(build, a, b, policy="widen")
        np.testing.assert_array_equal(wide, rule(a.astype(np.float32), b.astype(np.float32)))


def test_strict_overflows_to_infinity_and_widen_does_not():
    square = lambda mb, a: mb.mul(x=a, y=a)  # noqa: E731
    value = np.array([256.0], np.float16)
    assert execute(square, value, policy="strict")[0] == np.inf
    assert execute(square, value, policy="widen")[0] == 65536.0


def test_double_computes_in_fp64():
    (result,) = execute(lambda mb, a: mb.exp(x=a), X, policy="double")
    np.testing.assert_allclose(result, np.exp(X.astype(np.float64)), rtol=1e-15)


def test_a_weight_that_two_functions_name_is_one_tensor(affine):
    def add_function(model):
        model.mlProgram.functions["other"].CopyFrom(model.mlProgram.functions["main"])

    files = dict(affine.files)
    model = type(affine.model)()
    model.CopyFrom(affine.model)
    add_function(model)
    files[affine.spec_path] = memoryview(model.SerializeToString())
    package = Package(files, "twice")
    first, second = (
        load_function(package, name, get_policy("widen")) for name in ("main", "other")
    )
    pointers = lambda f: {t.data_ptr() for t in f._plan.slots if t is not None and t.dim() == 2}  # noqa: E731
    assert pointers(first) == pointers(second) != set()


def test_an_observer_sees_every_operation(affine):
    seen = []
    with observed(lambda step, results: seen.append((step.where.split()[-2], results[0].shape))):
        run(affine, X)
    assert [kind for kind, _ in seen] == ["linear", "relu", "add"]
    run(affine, X)
    assert len(seen) == 3


def refused(package, problem):
    with pytest.raises(ArtifactError, match=problem):
        load_function(package, "main", get_policy("widen"))


def test_an_unknown_operation_is_named_with_function_and_opset(affine):
    def change(block):
        find(block, "relu").type = "relu7"

    refused(
        edited(affine, change), "function 'main', relu7 '.*' of opset CoreML8 is not implemented"
    )


def test_an_unknown_parameter_is_not_ignored(affine):
    def change(block):
        operation = find(block, "relu")
        operation.inputs["slope"].CopyFrom(operation.inputs["x"])

    refused(edited(affine, change), "relu '.*': parameter 'slope' is not understood")


def test_a_value_that_nothing_defines_is_named(affine):
    def change(block):
        find(block, "relu").inputs["x"].arguments[0].name = "nowhere"

    refused(edited(affine, change), "relu '.*', 'x': uses 'nowhere' before it is defined")


def test_a_value_that_is_defined_twice_is_named(affine):
    def change(block):
        find(block, "add").outputs[0].name = find(block, "relu").outputs[0].name

    refused(edited(affine, change), "is defined twice")


def weight(block):
    return next(
        op.attributes["val"]
        for op in block.operations
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
    )


def test_a_weight_beyond_the_file_is_refused(affine):
    def change(block):
        weight(block).blobFileValue.offset = 1 << 40

    refused(edited(affine, change), "claims bytes")


def test_a_weight_at_the_wrong_place_is_refused(affine):
    def change(block):
        weight(block).blobFileValue.offset += 64

    refused(edited(affine, change), "no weight at offset")


def test_a_weight_file_outside_the_package_is_refused(affine):
    def change(block):
        weight(block).blobFileValue.fileName = "@model_path/../../../../etc/passwd"

    refused(edited(affine, change), "weight file '.*' is not in the package")


def test_a_weight_of_another_dtype_is_refused(affine):
    def change(block):
        weight(block).type.tensorType.dataType = 23

    refused(edited(affine, change), "declared INT32, but its weight is FLOAT32")


def test_a_result_that_no_machine_could_hold_is_refused(affine):
    def change(block):
        for dimension in find(block, "relu").outputs[0].type.tensorType.dimensions:
            dimension.constant.size = 1 << 20

    refused(edited(affine, change), "relu '.*': declares a result of over")


def test_a_tile_makes_no_more_than_it_declares():
    package = save(lambda mb, a: mb.tile(x=a, reps=[2, 3]), [(2, 4)])

    def change(block):
        const = next(
            op
            for op in block.operations
            if list(op.attributes["val"].immediateValue.tensor.ints.values) == [2, 3]
        )
        const.attributes["val"].immediateValue.tensor.ints.values[:] = [1 << 20, 1 << 20]

    function = load_function(edited(package, change), "main", get_policy("widen"))
    with pytest.raises(HarnessError, match="do not give"):
        function({"a": torch.from_numpy(X)})


def test_a_declared_shape_that_is_not_the_results_is_named_at_the_first_call(affine):
    def change(block):
        find(block, "relu").outputs[0].type.tensorType.dimensions[0].constant.size = 9

    function = load_function(edited(affine, change), "main", get_policy("widen"))
    with pytest.raises(
        HarnessError, match=r"relu '.*': returns shape \[2, 16\], the program declares"
    ):
        function({"a": torch.from_numpy(X)})


def test_a_wrong_input_is_named(affine):
    function = load_function(affine, "main", get_policy("widen"))
    for inputs, problem in (
        ({}, "'a' is missing"),
        ({"a": torch.zeros(2, 4), "b": torch.zeros(1)}, "'b' is not one of its inputs"),
        ({"a": torch.zeros(2, 5)}, r"input 'a' has shape \[2, 5\], not the declared \[2, 4\]"),
    ):
        with pytest.raises(HarnessError, match=problem):
            function(inputs)


def test_an_unknown_function_is_named_with_those_there_are(affine):
    with pytest.raises(ArtifactError, match="no function 'prefill'; its functions: main"):
        load_function(affine, "prefill", get_policy("widen"))


def test_an_unknown_policy_is_named_with_those_there_are():
    with pytest.raises(HarnessError, match="choose from strict, widen, double"):
        get_policy("half")

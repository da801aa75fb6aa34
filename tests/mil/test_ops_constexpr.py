"""Weights that are computed at load, against numpy: attributes up to iOS 17, inputs from iOS 18."""

import numpy as np
import pytest

from harness.errors import ArtifactError
from harness.mil import get_policy, load_function
from tests.mil.programs import run, save

RNG = np.random.default_rng(29)
SHAPE = (6, 8)
MASK = RNG.random(SHAPE) < 0.4
LUT = RNG.standard_normal(16).astype(np.float32)
INDICES = RNG.integers(0, 16, SHAPE).astype(np.uint8)
INTEGERS = RNG.integers(-128, 128, SHAPE).astype(np.int8)


def kind(name):
    """Return the numpy type that coremltools uses for a sub-byte dtype."""
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(types.string_to_builtin(name))


def made(weight, shape=SHAPE, target="iOS18", policy="widen"):
    """Return the weight that `weight(mb)` makes, from a program that adds it to its input."""
    package = save(lambda mb, a: mb.add(x=a, y=weight(mb)), [shape], target)
    return run(package, np.zeros(shape, np.float32), policy=policy)[0]


def packed(values, bits):
    """Pack integers from the lowest bit up, one bit at a time."""
    stream = "".join(format(value, f"0{bits}b")[::-1] for value in values.reshape(-1))
    stream += "0" * (-len(stream) % 8)
    return np.uint8([int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)])


@pytest.mark.executes("constexpr_affine_dequantize")
@pytest.mark.parametrize("axis", [0, -1])
def test_affine_dequantize(axis):
    scale = RNG.random(SHAPE[axis]).astype(np.float32)
    zero = RNG.integers(-128, 128, SHAPE[axis]).astype(np.int8)
    weight = made(
        lambda mb: mb.constexpr_affine_dequantize(
            quantized_data=INTEGERS, zero_point=zero, scale=scale, axis=axis
        ),
        target="iOS16",
    )
    column = (slice(None), None) if axis == 0 else (None, slice(None))
    expected = (INTEGERS.astype(np.float32) - zero[column]) * scale[column]
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


@pytest.mark.executes("constexpr_lut_to_dense")
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_lut_to_dense_of_packed_indices(bits):
    lut = RNG.standard_normal(1 << bits).astype(np.float32)
    indices = RNG.integers(0, 1 << bits, SHAPE)
    weight = made(
        lambda mb: mb.constexpr_lut_to_dense(
            indices=packed(indices, bits), lut=lut, shape=np.uint32(SHAPE)
        ),
        target="iOS16",
    )
    np.testing.assert_array_equal(weight, lut[indices])


@pytest.mark.executes("constexpr_sparse_to_dense")
def test_sparse_to_dense_of_a_packed_mask():
    data = RNG.standard_normal(MASK.sum()).astype(np.float32)
    weight = made(
        lambda mb: mb.constexpr_sparse_to_dense(
            nonzero_data=data, mask=packed(MASK.astype(int), 1), shape=np.uint32(SHAPE)
        ),
        target="iOS16",
    )
    expected = np.zeros(SHAPE, np.float32)
    expected[MASK] = data
    np.testing.assert_array_equal(weight, expected)


@pytest.mark.executes("constexpr_cast")
@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_cast(target):
    source = RNG.standard_normal(SHAPE).astype(np.float16)
    weight = made(
        lambda mb: mb.constexpr_cast(source_val=source, output_dtype="fp32"), target=target
    )
    np.testing.assert_array_equal(weight, source.astype(np.float32))


@pytest.mark.executes("constexpr_lut_to_dense")
@pytest.mark.parametrize("blocks", [(1, 1), (3, 2), (6, 8)])
def test_lut_to_dense_with_a_table_for_each_block(blocks):
    lut = RNG.standard_normal((*blocks, 16, 1)).astype(np.float16)
    weight = made(
        lambda mb: mb.cast(
            x=mb.constexpr_lut_to_dense(indices=INDICES.astype(kind("uint4")), lut=lut),
            dtype="fp32",
        )
    )
    for i, j in np.ndindex(*SHAPE):
        table = lut[i * blocks[0] // SHAPE[0], j * blocks[1] // SHAPE[1], :, 0]
        assert weight[i, j] == table[INDICES[i, j]]


@pytest.mark.executes("constexpr_lut_to_dense")
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_lut_to_dense_of_vectors(axis):
    lut = RNG.standard_normal((2, 1, 4, 3)).astype(np.float32)
    indices = INDICES % 4
    shape = (18, 8) if axis == 0 else (6, 24)
    weight = made(
        lambda mb: mb.constexpr_lut_to_dense(
            indices=indices.astype(kind("uint2")), lut=lut, vector_axis=axis
        ),
        shape,
    )
    for i, j in np.ndindex(*SHAPE):
        part = weight[3 * i : 3 * i + 3, j] if axis == 0 else weight[i, 3 * j : 3 * j + 3]
        np.testing.assert_array_equal(part, lut[i // 3, 0, indices[i, j]])


def sparse(mb, data):
    return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=MASK.astype(kind("uint1")))


@pytest.mark.executes("constexpr_sparse_to_dense")
def test_sparse_to_dense():
    data = RNG.standard_normal(MASK.sum()).astype(np.float32)
    expected = np.zeros(SHAPE, np.float32)
    expected[MASK] = data
    np.testing.assert_array_equal(made(lambda mb: sparse(mb, data)), expected)


@pytest.mark.executes("constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense")
def test_sparse_weights_are_dequantized_before_they_are_spread():
    scale = RNG.random((1, 8)).astype(np.float32)
    offset = RNG.integers(-8, 8, (1, 8)).astype(np.int8)

    def weight(mb):
        mask, data = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=MASK.astype(kind("uint1")),
            nonzero_data=INTEGERS[MASK],
            scale=scale,
            offset=offset,
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask)

    expected = np.where(MASK, (INTEGERS.astype(np.float32) - offset) * scale, 0)
    np.testing.assert_allclose(made(weight), expected, rtol=1e-6)


@pytest.mark.executes("constexpr_lut_to_sparse", "constexpr_sparse_to_dense")
@pytest.mark.parametrize("length", [1, 2])
def test_sparse_indices_are_looked_up_before_they_are_spread(length):
    lut = RNG.standard_normal((1, 1, 16, length)).astype(np.float32)

    def weight(mb):
        mask, data = mb.constexpr_lut_to_sparse(
            indices_mask=MASK.astype(kind("uint1")),
            indices_nonzero_data=INDICES[MASK].astype(kind("uint4")),
            lut=lut,
            vector_axis=0,
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask)

    vectors = np.where(MASK[..., None], lut[0, 0][INDICES], 0)
    expected = vectors.transpose(0, 2, 1).reshape(6 * length, 8)
    np.testing.assert_array_equal(made(weight, (6 * length, 8)), expected)


@pytest.mark.executes("constexpr_lut_to_dense", "constexpr_blockwise_shift_scale")
def test_a_weight_is_made_of_another():
    """coremltools' joint compression makes a table of int8, dequantized."""
    lut = RNG.integers(-128, 128, (1, 1, 16, 1)).astype(np.int8)
    scale = RNG.random((6, 1)).astype(np.float16)

    def weight(mb):
        data = mb.constexpr_lut_to_dense(indices=INDICES.astype(kind("uint4")), lut=lut)
        made = mb.constexpr_blockwise_shift_scale(data=data, scale=scale)
        return mb.cast(x=made, dtype="fp32")

    exact = lut[0, 0, :, 0][INDICES].astype(np.float32) * scale.astype(np.float32)
    expected = exact.astype(np.float16).astype(np.float32)  # the declared dtype, in any policy
    for policy in ("strict", "widen", "double"):
        np.testing.assert_array_equal(made(weight, policy=policy), expected)


def test_a_weight_made_of_others_is_shared_by_functions():
    lut = RNG.integers(-128, 128, (1, 1, 16, 1)).astype(np.int8)
    scale = RNG.random((60, 1)).astype(np.float16)
    indices = RNG.integers(0, 16, (60, 80)).astype(kind("uint4"))

    def build(mb, a):
        data = mb.constexpr_lut_to_dense(indices=indices, lut=lut)
        return mb.linear(x=a, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale))

    package = save(build, [(1, 80)], dtype="fp16")
    functions = package.model.mlProgram.functions
    functions["other"].CopyFrom(functions["main"])
    slots = [
        [t for t in load_function(package, name, get_policy("widen"))._plan.slots if t is not None]
        for name in ("main", "other")
    ]
    weights = [{t.data_ptr() for t in some if t.shape == (60, 80)} for some in slots]
    assert weights[0] == weights[1] and len(weights[0]) == 2  # the table's result, and the weight


def test_a_mask_that_sets_another_number_of_elements_is_refused():
    from tests.mil.test_loading import edited, find

    def change(block):
        value = find(block, "constexpr_sparse_to_dense").attributes["mask"]
        value.immediateValue.tensor.bytes.values = b"\xff" * 6

    data = RNG.standard_normal(MASK.sum()).astype(np.float32)
    package = save(
        lambda mb, a: mb.add(
            x=a,
            y=mb.constexpr_sparse_to_dense(
                nonzero_data=data, mask=packed(MASK.astype(int), 1), shape=np.uint32(SHAPE)
            ),
        ),
        [SHAPE],
        "iOS16",
    )
    with pytest.raises(ArtifactError, match=rf"{MASK.sum()} elements for a mask that sets 48"):
        load_function(edited(package, change), "main", get_policy("widen"))

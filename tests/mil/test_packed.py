"""Packed weights: exact values, products within fp32's error, and which weights stay packed."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import HarnessError
from harness.mil import get_policy, load_function
from harness.mil.packed import PackedWeight, integers, layouts, vector
from harness.mil.packed.layouts import Blocks, Tables
from tests.mil.programs import run, save

RNG = np.random.default_rng(33)


@dataclass(frozen=True)
class Scheme:
    """A quantization: shape, blocks of rows and columns, bits, sign, offset, dtype."""

    shape: tuple[int, int]
    blocks: tuple[int, int]
    bits: int = 4
    signed: bool = True
    offset: bool = False
    half: bool = True

    def __str__(self):
        kind = f"{'' if self.signed else 'u'}int{self.bits}{'-offset' * self.offset}"
        return f"{kind}-{self.shape}-{self.blocks}-{'fp16' if self.half else 'fp32'}"


SCHEMES = [
    Scheme((96, 64), (96, 1)),
    Scheme((96, 64), (96, 1), half=False),
    Scheme((97, 160), (97, 1), signed=False, offset=True),
    Scheme((101, 672), (101, 1)),  # several blocks of terms, and of rows
    Scheme((96, 64), (1, 1)),  # one scale
    Scheme((96, 64), (1, 1), half=False, offset=True),
    Scheme((96, 64), (12, 1)),  # blocks of rows
    Scheme((96, 64), (96, 2)),  # blocks of 32 columns
    Scheme((33, 96), (33, 3), signed=False, offset=True),
    Scheme((33, 96), (11, 6), half=False),
    Scheme((35, 70), (35, 1)),  # columns that fill no step of 32
    Scheme((8, 2), (8, 1)),
    Scheme((1, 32), (1, 1)),
    Scheme((33, 35), (33, 1), bits=8),
    Scheme((33, 35), (33, 1), bits=8, half=False),
    Scheme((33, 35), (1, 1), bits=8, signed=False, offset=True),
    Scheme((24, 64), (6, 4), bits=8, offset=True),
]


def make(scheme, scale_of=None):
    """Return random codes and scales of a scheme as blocks, and the fp32 weight by numpy."""
    (rows, columns), blocks = scheme.shape, scheme.blocks
    low = -(1 << (scheme.bits - 1)) if scheme.signed else 0
    high = low + (1 << scheme.bits)
    numbers = RNG.integers(low, high, scheme.shape)
    numbers.reshape(-1)[: high - low] = np.arange(low, high)[: numbers.size]
    scale = (RNG.random(blocks) * 0.1 + 1e-3) if scale_of is None else np.full(blocks, scale_of)
    dtype = np.float16 if scheme.half else np.float32
    scale = scale.astype(dtype)
    offset = RNG.integers(low, high, blocks) if scheme.offset else np.zeros(blocks, int)
    spread = np.ones((rows // blocks[0], columns // blocks[1]), int)
    with np.errstate(over="ignore"):
        # like numpy in fp16: it computes in fp32 and rounds once
        product = (numbers - np.kron(offset, spread)).astype(np.float32)
        weight = (product * np.kron(scale, spread).astype(np.float32)).astype(dtype)
    codes = (numbers & ((1 << scheme.bits) - 1)).astype(np.uint8)
    if scheme.bits == 4:
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    codes.flags.writeable = False
    sign_bit = 1 << (scheme.bits - 1) if scheme.signed else 0
    packed = Blocks(
        codes,
        scale.astype(np.float32),
        offset.astype(np.float32),
        sign_bit,
        scheme.half,
        scheme.bits == 4,
    )
    return packed, weight.astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_values_are_the_declared_ones_to_the_last_bit(scheme):
    blocks, weight = make(scheme)
    packed = PackedWeight(blocks, torch.float32)
    assert packed.shape == weight.shape
    np.testing.assert_array_equal(packed.dequantized(), weight)
    indices = torch.tensor([0, weight.shape[0] - 1, 0])
    np.testing.assert_array_equal(packed.rows(indices), weight[indices.numpy()])
    columns = torch.eye(weight.shape[1], dtype=torch.float64)
    np.testing.assert_array_equal(packed.linear(columns).T, weight)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_products_are_fp32_sums_of_exact_weights(scheme, rows):
    blocks, weight = make(scheme)
    x = RNG.standard_normal((2, rows, weight.shape[1])).astype(np.float32)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    packed = PackedWeight(blocks, torch.float32)
    result = packed.linear(torch.from_numpy(x))
    assert result.dtype == torch.float32 and result.shape == exact.shape
    # an fp32 sum in any order; a weight of fp16 that is not rounded is off by 2**-11
    bound = 2.0**-24 * (np.sqrt(weight.shape[1]) + 4) * (np.abs(x) @ np.abs(weight.T))
    assert (np.abs(result.numpy() - exact) <= bound).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_machine_without_the_shuffle_gives_the_same(scheme, monkeypatch):
    blocks, weight = make(scheme)
    monkeypatch.setattr(vector, "available", lambda: False)
    packed = PackedWeight(blocks, torch.float32)
    assert isinstance(packed._fast, Blocks)
    columns = torch.eye(weight.shape[1])
    np.testing.assert_array_equal(packed.linear(columns).T, weight)
    one_at_a_time = torch.cat([packed.linear(row[None]) for row in columns])
    np.testing.assert_array_equal(one_at_a_time.T, weight)


@pytest.mark.skipif(not vector.available(), reason="needs AVX2 or Neon")
def test_tables_are_used_where_a_row_has_one_scale():
    fast = {str(s) for s in SCHEMES if isinstance(layouts.best_layout(make(s)[0]), Tables)}
    wanted = {str(s) for s in SCHEMES if s.bits == 4 and s.blocks[1] == 1 and s.shape[1] % 32 == 0}
    assert fast == wanted


@pytest.mark.skipif(not vector.available(), reason="needs AVX2 or Neon")
@pytest.mark.parametrize("scale", [0.0, 2.0**-24, 3 * 2.0**-24, 6.1e-5, 1.0, -0.37, 8000.0])
def test_tables_hold_subnormal_negative_and_large_scales_exactly(scale):
    blocks, weight = make(Scheme((64, 64), (64, 1)), scale)
    packed = PackedWeight(blocks, torch.float32)
    assert isinstance(packed._fast, Tables)
    one_at_a_time = torch.cat([packed.linear(row[None]) for row in torch.eye(64)])
    np.testing.assert_array_equal(one_at_a_time.T, weight)


def test_a_weight_that_overflows_fp16_is_infinite_and_has_no_table():
    blocks, weight = make(Scheme((64, 64), (64, 1)), 30000.0)
    assert np.isinf(weight).any()
    packed = PackedWeight(blocks, torch.float32)
    assert isinstance(packed._fast, Blocks)
    np.testing.assert_array_equal(packed.dequantized(), weight)


ADVERSARIAL = {
    "normal": lambda x: x,
    "an outlier": lambda x: np.put_along_axis(x, np.full((len(x), 1), 5), 1e2, 1),
    "a large outlier": lambda x: np.put_along_axis(x, np.full((len(x), 1), 5), 1e3, 1),
    "two huge outliers": lambda x: np.put_along_axis(x, np.array([[5, 7]] * len(x)), 1e8, 1),
    "one element": lambda x: x.__imul__(np.arange(x.shape[1]) == 7),
    "zero": lambda x: x.fill(0),
    "a zero row": lambda x: x[0].fill(0),
    "tiny": lambda x: x.__imul__(1e-30),
    "large": lambda x: x.__imul__(1e25),
    "powers of two": lambda x: np.exp2(np.rint(6 * x), out=x),
}
KERNELS = ("integers", "floats", "tiles", "blocks")


@pytest.mark.parametrize("half", [True, False], ids=["fp16", "fp32"])
@pytest.mark.parametrize("columns", [128, 160, 576, 1536, 2080])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_error_of_each_kernel_against_fp64(kernel, columns, half, monkeypatch):
    """No kernel is much less exact than a product by BLAS in fp32, whatever is in x."""
    blocks, _ = make(Scheme((97, columns), (97, 1), half=half))
    packed = _kernel(blocks, kernel, monkeypatch)
    weight = packed.dequantized().numpy()
    for name, change in ADVERSARIAL.items():
        x = RNG.standard_normal((40 if kernel == "tiles" else 2, columns)).astype(np.float32)
        change(x)
        exact = x.astype(np.float64) @ weight.T.astype(np.float64)
        size = np.abs(x).astype(np.float64) @ np.abs(weight.T) + 1e-300
        result = packed.linear(torch.from_numpy(x)).numpy()
        ours, blas = (np.abs((y - exact) / size).max() for y in (result, x @ weight.T))
        assert ours <= 3 * blas + 2.0**-23, name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_kernel_lets_through_what_is_not_finite(kernel, value, monkeypatch):
    blocks, weight = make(Scheme((97, 160), (97, 1)))
    packed = _kernel(blocks, kernel, monkeypatch)
    x = RNG.standard_normal((40 if kernel == "tiles" else 2, 160)).astype(np.float32)
    x[1, 40] = value
    with np.errstate(invalid="ignore"):
        exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    result = packed.linear(torch.from_numpy(x)).numpy()
    finite = np.isfinite(exact)
    assert finite[0].all() and not finite[1].any()
    np.testing.assert_array_equal(result[~finite], exact[~finite])
    np.testing.assert_allclose(result[finite], exact[finite], rtol=0, atol=1e-5)


def _kernel(blocks, kernel, monkeypatch):
    """Return a packed weight that multiplies by a kernel; skip where the machine has it not."""
    if kernel == "blocks":
        monkeypatch.setattr(vector, "available", lambda: False)
    elif not (integers.AVAILABLE if kernel == "integers" else vector.available()):
        pytest.skip("this processor does not have the instructions")
    packed = PackedWeight(blocks, torch.float32)
    if kernel != "blocks":
        packed._fast._alone.as_integers = kernel == "integers"
    return packed


def test_nan_and_infinity_in_x_come_through():
    blocks, _ = make(Scheme((64, 64), (64, 1)), 0.5)
    x = torch.zeros(1, 64)
    x[0, 3] = torch.nan
    assert PackedWeight(blocks, torch.float32).linear(x).isnan().all()


@pytest.mark.parametrize(
    "left, right",
    [
        ((3, 3, 1, 8), (3, 1, 8, 5)),  # the heads of a group and their shared keys
        ((3, 2, 4, 8), (3, 1, 8, 5)),
        ((1, 3, 2, 8), (4, 1, 8, 5)),  # and one more axis that broadcasts
        ((2, 2, 8), (1, 8, 5)),
        ((2, 0, 2, 8), (2, 1, 8, 5)),
    ],
)
def test_a_product_that_broadcasts_its_right_side_is_numpys(left, right):
    a, b = (RNG.standard_normal(shape).astype(np.float32) for shape in (left, right))
    (result,) = run(save(lambda mb, a, b: mb.matmul(x=a, y=b), [left, right]), a, b)
    np.testing.assert_allclose(result, a @ b, rtol=1e-5, atol=1e-6)


# --- in a program


def quantized(numbers, scale, dtype, *, offset=None):
    """Make a linear layer of x and a quantized weight, as the exporter writes it."""
    from coremltools.converters.mil.mil import types

    kind = types.nptype_from_builtin(types.string_to_builtin(dtype))

    def build(mb, a):
        given = {} if offset is None else {"offset": offset.astype(kind)}
        weight = mb.constexpr_blockwise_shift_scale(data=numbers.astype(kind), scale=scale, **given)
        return mb.linear(x=a, weight=weight, bias=np.zeros(len(numbers), scale.dtype))

    return build


@pytest.mark.parametrize("policy", ["widen", "double", "strict"])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("blocks", [1, 4])
def test_a_linear_layer_of_a_packed_weight_is_that_of_the_expanded_one(policy, dtype, blocks):
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}[dtype]
    numbers = RNG.integers(low, high, (320, 128))
    scale = RNG.random((320, blocks)).astype(np.float16)
    offset = RNG.integers(low, high, scale.shape)
    package = save(quantized(numbers, scale, dtype, offset=offset), [(3, 128)], dtypes=["fp16"])
    plan = load_function(package, "main", get_policy(policy))._plan
    assert any(isinstance(value, PackedWeight) for value in plan.slots)
    spread = np.ones((1, 128 // blocks), int)
    weight = (numbers - np.kron(offset, spread)).astype(np.float32) * np.kron(scale, spread)
    x = RNG.standard_normal((3, 128)).astype(np.float16)
    exact = x.astype(np.float64) @ weight.astype(np.float16).astype(np.float64).T
    (result,) = run(package, x, policy=policy)
    allowed = {"widen": 2e-6, "double": 1e-14, "strict": 2.0**-11}[policy]
    assert np.abs(result - exact).max() <= allowed * np.abs(exact).max()


@pytest.mark.parametrize("policy", ["widen", "double", "strict"])
@pytest.mark.parametrize("axis, scales, zeros", [(0, (320,), ()), (-2, (), (320,)), (1, (), ())])
def test_an_affine_weight_of_ios_16_stays_packed(policy, axis, scales, zeros):
    numbers = RNG.integers(-128, 128, (320, 128)).astype(np.int8)
    scale = np.float16(RNG.random(scales) + 0.1)
    zero = np.int8(RNG.integers(-128, 128, zeros))

    def build(mb, a):
        weight = mb.constexpr_affine_dequantize(
            quantized_data=numbers, scale=scale, zero_point=zero, axis=axis
        )
        return mb.linear(x=a, weight=weight)

    package = save(build, [(3, 128)], "iOS16", dtypes=["fp16"])
    plan = load_function(package, "main", get_policy(policy))._plan
    assert any(isinstance(value, PackedWeight) for value in plan.slots)
    weight = (np.float32(numbers) - np.float32(zero.reshape(-1, 1))) * scale.reshape(-1, 1)
    weight = weight.astype(np.float32)
    x = RNG.standard_normal((3, 128)).astype(np.float16)
    exact = x.astype(np.float64) @ weight.astype(np.float16).astype(np.float64).T
    (result,) = run(package, x, policy=policy)
    allowed = {"widen": 2e-6, "double": 1e-14, "strict": 2.0**-11}[policy]
    assert np.abs(result - exact).max() <= allowed * np.abs(exact).max()


@pytest.mark.parametrize("columns", [1, 8])
def test_blocks_of_few_columns_are_expanded(columns):
    numbers = RNG.integers(-128, 128, (512, 128))
    scale = (RNG.random((512, 128 // columns)) + 0.1).astype(np.float16)
    package = save(quantized(numbers, scale, "int8"), [(2, 128)], dtypes=["fp16"])
    plan = load_function(package, "main", get_policy("widen"))._plan
    assert not any(isinstance(value, PackedWeight) for value in plan.slots)
    x = RNG.standard_normal((2, 128)).astype(np.float16)
    weight = (numbers * np.kron(scale, np.ones((1, columns)))).astype(np.float16)
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    (result,) = run(package, x)
    assert np.abs(result - exact).max() <= 2e-6 * np.abs(exact).max()


@pytest.mark.parametrize("policy", ["widen", "double"])
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_no_rows_at_all(policy, dtype):
    numbers = RNG.integers(-8, 8, (512, 128))
    layer = quantized(numbers, np.full((512, 1), 0.5, np.float16), dtype)

    def build(mb, a):
        rows = mb.gather(x=a, indices=mb.squeeze(x=mb.non_zero(x=mb.reduce_sum(x=a, axes=[1]))))
        return layer(mb, rows)

    package = save(build, [(4, 128)], dtypes=["fp16"])
    for given, rows in ((0, 0), (1, 4)):
        assert run(package, np.full((4, 128), given, np.float16), policy=policy)[0].shape == (
            rows,
            512,
        )


def test_scales_that_are_not_one_for_each_row_are_refused_not_packed_as_blocks():
    numbers = np.zeros((512, 128), np.int8)

    def build(mb, a):
        weight = mb.constexpr_affine_dequantize(
            quantized_data=numbers, scale=np.ones(128, np.float16), zero_point=np.int8(0), axis=1
        )
        return mb.linear(x=a, weight=weight)

    package = save(build, [(1, 128)], "iOS16", dtypes=["fp16"])
    block = next(iter(package.functions["main"].block_specializations.values()))
    made = next(op for op in block.operations if op.type == "constexpr_affine_dequantize")
    made.attributes["axis"].immediateValue.tensor.ints.values[0] = 0
    with pytest.raises(HarnessError, match="a parameter of shape .128. along axis 0 of .512, 128."):
        load_function(package, "main", get_policy("widen"))


def test_an_embedding_gathers_from_packed_rows():
    numbers, scale = RNG.integers(-128, 128, (1024, 64)), RNG.random((1024, 1)).astype(np.float16)

    def build(mb, a):
        table = mb.constexpr_blockwise_shift_scale(data=numbers.astype(np.int8), scale=scale)
        return mb.gather(x=table, indices=a, axis=0)

    tokens = np.array([[5, 1023, 0]], np.int32)
    package = save(build, [(1, 3)], dtypes=["int32"])
    (result,) = run(package, tokens)
    wanted = (numbers.astype(np.float32) * scale).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(result, wanted[tokens])
    with pytest.raises(HarnessError, match="gather .*an index out of range: 1024 to 1024"):
        run(package, np.array([[1024, 1024, 1024]], np.int32))


def test_an_operation_that_takes_no_packed_weight_gets_its_values():
    numbers, scale = RNG.integers(-128, 128, (384, 96)), RNG.random((384, 3)).astype(np.float16)

    def build(mb, a):
        weight = mb.constexpr_blockwise_shift_scale(data=numbers.astype(np.int8), scale=scale)
        return mb.add(x=a, y=weight), mb.gather(x=weight, indices=np.int32([3, 1]), axis=1), weight

    weight = (numbers.astype(np.float32) * np.kron(scale, np.ones((1, 32)))).astype(np.float16)
    results = run(save(build, [(384, 96)], dtypes=["fp16"]), np.zeros((384, 96), np.float16))
    for result, wanted in zip(results, (weight, weight[:, [3, 1]], weight), strict=True):
        np.testing.assert_array_equal(result, wanted.astype(np.float32))


def test_a_loaded_function_shows_a_packed_weight_dequantized():
    numbers, scale = RNG.integers(-8, 8, (384, 96)), RNG.random((384, 1)).astype(np.float16)
    package = save(quantized(numbers, scale, "int4"), [(1, 96)], dtypes=["fp16"])
    function = load_function(package, "main", get_policy("widen"))
    block = package.operations("main").operations
    name = next(op.outputs[0].name for op in block if op.type.startswith("constexpr"))
    weight = (numbers.astype(np.float32) * scale).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(function.constant(name), weight)


# --- memory

MEMORY = """
import sys, torch, psutil
from harness.artifact import Package
from harness.mil import get_policy, load_function
from pathlib import Path
for path in sys.argv[1:]:
    before = psutil.Process().memory_info().rss
    function = load_function(Package.from_folder(Path(path)), "main", get_policy("widen"))
    for name, rows in (("a", 1), ("b", 40)):
        function({"a": torch.ones(1, 1024), "b": torch.ones(40, 1024)})
print(psutil.Process().memory_info().rss - before)
"""


def test_a_loaded_function_holds_no_expanded_weight():
    def layers(count):
        def build(mb, a, b):
            for _ in range(count):
                numbers = RNG.integers(-8, 8, (1024, 1024))
                scale = RNG.random((1024, 1)).astype(np.float32)
                layer = quantized(numbers, scale, "int4")
                a, b = layer(mb, a), layer(mb, b)
            return a, b

        return save(build, [(1, 1024), (40, 1024)])

    small, large = layers(1), layers(40)  # 80 weights: 42 MB packed, 336 MB as fp32
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, small.what, large.what],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout) < 100e6


# --- threads


def is_small_with(rows, columns, dtype=np.int8):
    """Return whether a linear layer of 1024 x 1024 with this x runs on one thread."""
    numbers = RNG.integers(-8, 8, (1024, columns)).astype(dtype)

    def build(mb, a):
        if dtype is np.float32:
            return mb.linear(x=a, weight=numbers)
        scale = np.ones((1024, 1), np.float32)
        return mb.linear(x=a, weight=mb.constexpr_blockwise_shift_scale(data=numbers, scale=scale))

    package = save(build, [(rows, columns)])
    return load_function(package, "main", get_policy("widen"))._is_small


def test_a_function_of_small_operations_runs_on_one_thread():
    assert is_small_with(1, 1024)
    assert not is_small_with(64, 1024)  # a product of many rows
    assert not is_small_with(1, 1024, np.float32)  # a weight that is not packed
    assert not is_small_with(1024, 16)  # a large result


def test_threads_are_given_back_after_an_error():
    numbers = RNG.integers(-128, 128, (1024, 64)).astype(np.int8)

    def build(mb, a):
        scale = np.ones((1024, 1), np.float32)
        table = mb.constexpr_blockwise_shift_scale(data=numbers, scale=scale)
        return mb.gather(x=table, indices=a, axis=0)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        function = load_function(save(build, [(1,)], dtypes=["int32"]), "main", get_policy("widen"))
        assert function._is_small
        with pytest.raises(HarnessError, match="out of range"):
            function({"a": torch.tensor([-1])})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "has"), [("avx2", "0 True"), ("default", "0 False")], ids=["avx2", "default"]
)
def test_products_are_right_on_a_processor_with_less(capability, has):
    """torch's own variable keeps the kernels, too, from what another processor lacks."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    code = (
        "from harness.mil.packed import integers as i, vector; print(i.WIDTH, vector.available())"
    )
    products = ["-m", "pytest", "-q", "-n", "0", __file__, "-k", "fp32_sums or each_kernel"]
    for words, said in ((["-c", code], has), (products, " passed")):
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr

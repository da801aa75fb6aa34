"""What Apple's GPU and Neural Engine are reported to compute wrong, to refuse, or not to run.

No device is at hand here: each lint names a pattern that a public report has measured, and says
what the report saw. Sources: issues of coremltools (CT), ExecuTorch (ET) and other projects; and
the table of operations and the limits of sizes that ANEForge measured (`docs/op-catalog.md` and
`docs/capabilities.md` of its repository).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from harness.artifact.hazards.graph import Operation, Value
from harness.artifact.hazards.lint import Function, Hazard, at, hazard
from harness.artifact.operands import shape_text
from harness.text import counted

MAX_EXTENT = 16384
"""The longest axis of a matrix product on Neural Engines up to A15 and M3; later ones: 65536."""
MAX_CHANNELS = 65536
_GPU_BATCH = 10  # fused attention is wrong on the GPU from this batch (CT 2650)
_STATE_WIDTH = 32  # a state's last axis must be a multiple of it (CT 2631)
_MULTIPLIES = {"linear": "weight", "matmul": "y", "conv": "weight", "conv_transpose": "weight"}
_BETWEEN = ("mul", "add", "sub", "real_div", "select", "cast", "maximum", "reshape", "transpose")

# ANEForge's table says `Unsupported` on every family for all but `topk`, which a compute plan of
# macOS 27 keeps on the CPU (roboflow/rf-detr 1495).
_OFF_ENGINE = frozenset(
    (
        *("scatter", "scatter_along_axis", "scatter_nd", "one_hot", "reverse_sequence"),
        *("gru", "lstm", "rnn", "reduce_prod", "mod", "band_part", "sliding_windows", "topk"),
        *("logical_and", "logical_or", "logical_xor", "acos", "acosh", "asin", "asinh", "atanh"),
        *("cosh", "sinh", "tan", "list_gather", "list_length", "list_read", "list_scatter"),
        *("list_write", "make_list", "while_loop", "cond"),
    )
)
_RANDOM = ("random_bernoulli", "random_categorical", "random_normal", "random_uniform")


@hazard("H31")
def unequal_selects(graph: Function) -> Iterator[Hazard]:
    """Yield each `select` whose operands have unequal shapes (onnxsim 1399)."""
    for operation in graph.of_type("select"):
        shapes = {
            name: value.shape
            for name in ("cond", "a", "b")
            if (value := operation.operand(name)) is not None and value.shape is not None
        }
        if len(shapes) == 3 and any(_differ(shapes["cond"], one) for one in shapes.values()):
            text = ", ".join(f"{name} is {shape_text(shape)}" for name, shape in shapes.items())
            yield at(operation, f"{text}; the Neural Engine's compiler wants one shape")


def _differ(a: tuple[int | None, ...], b: tuple[int | None, ...]) -> bool:
    """Return whether two shapes surely differ; a flexible size may be any but 1."""
    return len(a) != len(b) or any(
        x != y and (None not in (x, y) or 1 in (x, y)) for x, y in zip(a, b, strict=True)
    )


_SIZES = {
    "reshape": ("shape",),
    "fill": ("shape",),
    "tile": ("reps",),
    "range_1d": ("start", "end", "step"),
    "slice_by_index": ("begin", "end"),
    "slice_by_size": ("size",),
    "pad": ("pad",),
    "non_zero": ("x",),
}


@hazard("H32")
def computed_sizes(graph: Function) -> Iterator[Hazard]:
    """Yield the first operation whose result has a size that the program computes."""
    found = [
        operation
        for operation in graph.of_type(*_SIZES)
        if any(_is_computed(operation, name) for name in _SIZES[operation.type])
        and any(result.shape is None or None in result.shape for result in operation.results)
    ]
    if found:
        more = f", as in {counted(len(found) - 1, 'more operation')}" if len(found) > 1 else ""
        yield Hazard(
            found[0].place,
            f"the size of its result is computed at run time{more}; plans for the Neural Engine "
            "refuse data-dependent shapes",
        )


def _is_computed(operation: Operation, name: str) -> bool:
    value = operation.operand(name)
    return value is not None and not value.is_constant


@hazard("H35")
def signed_int8(graph: Function) -> Iterator[Hazard]:
    """Yield each weight of signed int8 with zero points of 0 (CT 2114, 2675, 2677)."""
    for operation in graph.of_type("constexpr_affine_dequantize"):
        data, zero = operation.operand("quantized_data"), operation.operand("zero_point")
        is_zero = zero is None or zero.array is None or graph.bounds(zero).largest == 0
        if data is not None and data.dtype == "INT8" and is_zero:
            yield at(operation, f"int8 {shape_text(data.shape or ())} with zero point 0")


@hazard("H36")
def scaled_tables(graph: Function) -> Iterator[Hazard]:
    """Yield each scale that is applied to data that is float already (CT 2688)."""
    for operation in graph.of_type("constexpr_blockwise_shift_scale"):
        data = operation.operand("data")
        if data is not None and (data.dtype or "").startswith("FLOAT"):
            maker = data.producer
            made = f", the result of {maker.type}" if maker is not None else ""
            yield at(operation, f"its data is {data.dtype}{made}, not integers")


@hazard("H37")
def palettes_with_states(graph: Function) -> Iterator[Hazard]:
    """Yield the first palette of 4 bits in a function with states, of coremltools 9.0 (CT 2716)."""
    found = [
        operation
        for operation in graph.of_type("constexpr_lut_to_dense")
        if (indices := operation.operand("indices")) is not None and indices.dtype == "UINT4"
    ]
    if found and graph.states and graph.version in (None, (9, 0)):
        yield Hazard(
            found[0].place,
            f"{counted(len(found), 'weight')} of 4-bit palettes in a function with "
            f"{counted(len(graph.states), 'state')}",
        )


@hazard("H38")
def state_widths(graph: Function) -> Iterator[Hazard]:
    """Yield each state whose last axis is not a multiple of 32 (CT 2631)."""
    for value in graph.inputs:
        width = value.shape[-1] if value.shape else None
        if value.name in graph.states and width is not None and width % _STATE_WIDTH:
            yield Hazard(f"state '{value.name}'", f"its last axis has {width} elements")


@hazard("H39")
def fused_attention(graph: Function) -> Iterator[Hazard]:
    """Yield each fused attention (ET 15833, 16144)."""
    for operation in graph.of_type("scaled_dot_product_attention"):
        query = operation.operand("query")
        yield at(operation, f"fused attention over {shape_text((query and query.shape) or ())}")


@hazard("H40")
def batched_attention(graph: Function) -> Iterator[Hazard]:
    """Yield each attention over a batch of 10 or more (CT 2650)."""
    for softmax in graph.of_type("softmax"):
        scores, result = _scores(softmax.operand("x")), softmax.result
        if scores is None or scores.shape is None or len(scores.shape) < 3 or result is None:
            continue
        batch = scores.shape[0]
        reads = [reader.type for reader in result.readers]
        if batch is not None and batch >= _GPU_BATCH and "matmul" in reads:
            yield at(softmax, f"attention over a batch of {batch}")


def _scores(value: Value | None) -> Value | None:
    """Return the product of query and key that a softmax reads."""
    for _ in range(8):
        maker = None if value is None else value.producer
        if maker is None:
            return None
        if maker.type == "matmul":
            return value
        if maker.type not in _BETWEEN:
            return None
        computed = [one for one in maker.all_operands() if one.producer and not one.is_constant]
        value = computed[0] if computed else None
    return None


@hazard("H41")
def wide_products(graph: Function) -> Iterator[Hazard]:
    """Yield each product with a weight that is wider than the Neural Engine's limit."""
    for operation in graph.of_type(*_MULTIPLIES):
        weight = operation.operand(_MULTIPLIES[operation.type])
        if weight is None or not weight.is_constant or not weight.shape:
            continue
        limit = MAX_CHANNELS if operation.type.startswith("conv") else MAX_EXTENT
        axes = weight.shape[:2] if limit == MAX_CHANNELS else weight.shape[-2:]
        widest = max(size or 0 for size in axes)
        if widest > limit:
            yield at(operation, f"its weight is {shape_text(weight.shape)}; the limit is {limit}")


@hazard("H42")
def off_engine(graph: Function) -> Iterator[Hazard]:
    """Yield the first operation of each type that the Neural Engine does not run."""
    counts = Counter(operation.type for operation in graph.operations)
    for kind in sorted(_OFF_ENGINE & counts.keys()):
        first = next(graph.of_type(kind))
        many = f"{counts[kind]} operations of this type run" if counts[kind] > 1 else "runs"
        yield at(first, f"{many} on the CPU or the GPU")


@hazard("H43")
def random_results(graph: Function) -> Iterator[Hazard]:
    """Yield each random operation: no two runs agree, and ExecuTorch lowers some of them wrong."""
    for operation in graph.of_type(*_RANDOM):
        seed = operation.number("seed", -1)
        drawn = "a new seed in each run" if seed is None or seed < 0 else f"seed {seed:.0f}"
        yield at(operation, f"its result is random, with {drawn}")


@hazard("H44")
def crashing_searches(graph: Function) -> Iterator[Hazard]:
    """Yield what kills a process: `non_zero`, and arg-reductions of flattened values.

    Reported through ExecuTorch: 17537 (`where` and `nonzero` of one operand), 11715 (`argmax` and
    `argmin` without an axis).
    """
    for operation in graph.of_type("non_zero"):
        yield at(operation, "the size of its result depends on the data")
    for operation in graph.of_type("reduce_argmax", "reduce_argmin"):
        value = operation.operand("x")
        maker = None if value is None else value.producer
        source = None if maker is None else maker.operand("x")
        if (
            maker is not None
            and maker.type == "reshape"
            and maker.numbers("shape") == [-1]
            and source is not None
            and len(source.shape or ()) > 1
        ):
            yield at(operation, f"it searches all of {shape_text(source.shape or ())}, flattened")

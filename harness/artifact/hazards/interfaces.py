"""Inputs, outputs and states of a function that break outside the program: aliases, flexibility.

Nothing executes. What Core ML does with each is known from public reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from harness.artifact.hazards.graph import COPIES, Graph, Operation, Value
from harness.artifact.hazards.lint import Function, Hazard, at, hazard
from harness.artifact.pte import DelegateCall, TensorValue

if TYPE_CHECKING:
    from coremltools.proto.FeatureTypes_pb2 import FeatureType

    from harness.artifact import Artifact

_CORNER = 64  # rows and columns of a mask that are looked at
_WRITES = {"write_state": "data", "coreml_update_state": "value"}
_ELEMENTWISE = frozenset(
    (
        *("add", "sub", "mul", "real_div", "maximum", "minimum", "select", "clip", "square"),
        *("relu", "silu", "gelu", "sigmoid", "tanh"),
    )
)
_THROUGH = COPIES | _ELEMENTWISE | {"slice_update", "concat", "stack", "slice_by_index"}


@hazard("H33")
def outputs_written_to_states(graph: Function) -> Iterator[Hazard]:
    """Yield each output that is, or goes into, what is written to a state (CT 2713)."""
    outputs = {value: value.name for value in graph.outputs}
    seen = set[Value]()
    for write in graph.of_type(*_WRITES):
        written = write.operand(_WRITES[write.type])
        state = write.operand("input") or write.operand("state")
        for value in _sources(written, seen):
            if value in outputs:
                name = state.name if state is not None else "?"
                yield Hazard(
                    f"output '{outputs.pop(value)}'",
                    f"it is also what is written to state '{name}'",
                )


def _sources(value: Value | None, seen: set[Value]) -> Iterator[Value]:
    """Yield a value and those that it is made of, element by element; not those in `seen`."""
    queue = [value] if value is not None else []
    while queue:
        current = queue.pop()
        if current in seen or current.is_constant:
            continue
        seen.add(current)
        yield current
        maker = current.producer
        if maker is not None and maker.type in _THROUGH:
            queue += maker.all_operands()


@hazard("H45")
def mixed_flexibility(graph: Function) -> Iterator[Hazard]:
    """Yield kinds of flexible inputs that Core ML does not take together (CT 2548)."""
    kinds = _kinds(graph)
    by_kind = {kind: [n for n, k in kinds.items() if k == kind] for kind in ("list", "range", "")}
    listed, ranges, fixed = (by_kind[kind] for kind in ("list", "range", ""))
    if listed and ranges:
        yield Hazard(
            f"input '{ranges[0]}'",
            f"it has a range of shapes, and input '{listed[0]}' a list of shapes",
        )
    elif graph.states and ranges and fixed:
        yield Hazard(
            f"input '{ranges[0]}'",
            f"it has a range of shapes, and input '{fixed[0]}' of the same stateful function one "
            "shape",
        )


@hazard("H46")
def listed_shapes(graph: Function) -> Iterator[Hazard]:
    """Yield several inputs with lists of shapes, and lists of batches (CT 2271, 2730)."""
    listed = [name for name, kind in _kinds(graph).items() if kind == "list"]
    if len(listed) > 1:
        yield Hazard(
            f"input '{listed[1]}'",
            f"it and input '{listed[0]}' have lists of shapes; entries of one index go together, "
            "and no others",
        )
    for feature in graph.package.described(graph.function).input:
        shapes = feature.type.multiArrayType.enumeratedShapes.shapes
        batches = sorted({shape.shape[0] for shape in shapes if len(shape.shape) > 1})
        if len(batches) > 1:
            yield Hazard(
                f"input '{feature.name}'",
                f"its list has batches of {', '.join(map(str, batches[:8]))}",
            )


@hazard("H47")
def normalized_lists(graph: Function) -> Iterator[Hazard]:
    """Yield the first layer norm in a function with a list of shapes (CT 1909)."""
    norms = list(graph.of_type("layer_norm"))
    if norms and "list" in _kinds(graph).values():
        yield at(norms[0], "a layer norm in a function whose input has a list of shapes")


def _kinds(graph: Graph) -> dict[str, str]:
    """Return the kind of flexibility of each described input: "list", "range", or "" for none."""
    features = graph.package.described(graph.function).input
    return {feature.name: _kind(feature.type) for feature in features}


def _kind(feature: FeatureType) -> str:
    array, image = feature.multiArrayType, feature.imageType
    if image.WhichOneof("SizeFlexibility") == "enumeratedSizes":
        return "list"
    if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
        return "range"
    if len(array.enumeratedShapes.shapes) > 1:
        return "list"
    ranges = array.shapeRange.sizeRanges
    return "range" if any(one.lowerBound != one.upperBound for one in ranges) else ""


@hazard("H48")
def without_cache(graph: Function) -> Iterator[Hazard]:
    """Yield the output of a causal language model that neither takes nor returns a cache.

    It computes the whole sequence for each token. A function is one if it looks up integers in a
    table, has attention under a causal mask, and returns a score for each row of the table.
    """
    if graph.states:
        return
    tables = set(_tables(graph))
    scores = [value for value in graph.outputs if value.shape and value.shape[-1] in tables]
    if not scores or len(graph.outputs) > 1 or not _is_causal(graph):
        return
    if not _takes_cache(graph):
        yield Hazard(
            f"output '{scores[0].name}'",
            "a causal language model with no state, and with no cache among its inputs and outputs",
        )


def _tables(graph: Function) -> Iterator[int | None]:
    """Yield the number of rows of each constant table that is indexed by what inputs say."""
    for gather in graph.of_type("gather"):
        table, indices = gather.operand("x"), gather.operand("indices")
        if table is not None and table.is_constant and table.shape and indices in graph.from_inputs:
            yield table.shape[0]


def _takes_cache(graph: Function) -> bool:
    """Return whether a float input joins keys or values, or is multiplied; a mask is neither."""
    queue = [value for value in graph.inputs if (value.dtype or "").startswith("FLOAT")]
    seen = set(queue)
    while queue:
        for reader in queue.pop().readers:
            if reader.type in ("concat", "matmul", "slice_update", "scatter", "scatter_along_axis"):
                return True
            if reader.type in COPIES | {"slice_by_index", "slice_by_size", "split"}:
                new = [result for result in reader.results if result not in seen]
                seen.update(new)
                queue += new
    return False


def _is_causal(graph: Graph) -> bool:
    """Return whether the scores of an attention have a mask that hides later positions."""
    seen = set[Value]()
    for softmax in graph.of_type("softmax", "scaled_dot_product_attention"):
        name = "attn_mask" if softmax.type == "scaled_dot_product_attention" else "x"
        value = softmax.operand(name)
        if value is not None and any(_hides_later(mask) for mask in _masks(value, seen)):
            return True
    return False


def _masks(value: Value, seen: set[Value]) -> Iterator[Value]:
    """Yield the values that scores are added to or selected by; not those in `seen`."""
    queue = [] if value in seen else [value]
    while queue:
        current = queue.pop()
        yield current
        maker = current.producer
        if maker is not None and maker.type in _THROUGH | {"gather", "logical_not", "fill_like"}:
            new = [one for one in maker.all_operands() if one not in seen]
            seen.update(new)
            queue += new


def _hides_later(mask: Value) -> bool:
    maker = mask.producer
    if maker is not None and maker.type == "band_part":
        return True
    if maker is not None and maker.type in ("less", "less_equal", "greater", "greater_equal"):
        sides = [maker.operand("x"), maker.operand("y")]
        return all(side is not None and _is_position(side) for side in sides)
    array = mask.array
    if array is None or array.ndim < 2 or array.shape[-1] != array.shape[-2]:
        return False
    if array.shape[-1] < 2 or array.dtype.kind not in "fb":
        return False
    plane = array.reshape(-1, *array.shape[-2:])[0, :_CORNER, :_CORNER]
    rows, columns = np.indices(plane.shape)
    return len(np.unique(plane[columns > rows])) == 1 and bool(
        (plane[columns > rows][0] != plane[columns <= rows]).all()
    )


def _is_position(value: Value) -> bool:
    origin = value.origin(_THROUGH)
    maker: Operation | None = origin.producer
    return (maker is not None and maker.type == "range_1d") or (
        origin.array is not None and origin.array.ndim <= 2 and origin.array.size > 1
    )


def scalars_at_the_boundary(artifact: Artifact) -> Iterator[Hazard]:
    """Yield each tensor of rank 0 that a program passes to a Core ML delegate (ET 10451, 10534)."""
    for method, delegates in artifact.delegates.items():
        assert artifact.pte is not None
        plan, indices = artifact.pte.methods[method], {one.index for one in delegates}
        names = artifact.value_names(method)
        seen = set[int]()
        for call in plan.instructions:
            if not isinstance(call, DelegateCall) or call.delegate not in indices:
                continue
            for index in call.args:
                value = plan.values[index]
                if isinstance(value, TensorValue) and not value.shape and index not in seen:
                    seen.add(index)
                    yield Hazard(
                        f"method '{method}', delegate {call.delegate}",
                        f"'{names.get(index, index)}' has rank 0; Core ML's function takes [1]",
                    )

"""Plans an export: its methods, their inputs and outputs, and their partitions.

A plan has shapes, dtypes and names only; torch is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.export.options import ExportOptions, split_count
from harness.models import ModelConfig

FLOATS = {"fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Value:
    """A named tensor: an input or output of a method, or one that passes between its partitions.

    `dtype` is the one that the program declares; a Core ML function takes int64 as int32.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Rows of a weight, `start` to `stop`; all of them if it is not split."""

    weight: str
    start: int
    stop: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """One step of a method: the embedding, one block, or the head.

    Stages of one `kind` differ in names only: `prefix` begins the names of a stage's weights.
    """

    kind: str
    prefix: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    pieces: tuple[Piece, ...]

    @property
    def local_names(self) -> tuple[str, ...]:
        """The name of each piece's weight, without the prefix."""
        return tuple(piece.weight.removeprefix(self.prefix) for piece in self.pieces)

    @property
    def signature(self) -> tuple[object, ...]:
        """A key of the computation; stages that differ in names only have equal ones."""
        shapes = tuple((value.dtype, value.shape) for value in self.inputs)
        pieces = tuple(zip(self.local_names, (piece.shape for piece in self.pieces), strict=True))
        return self.kind, shapes, pieces


@dataclass(frozen=True)
class Partition:
    """One package's share of a method: consecutive stages with their inputs and outputs."""

    name: str
    stages: tuple[Stage, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The weight pieces of all stages, in order."""
        return tuple(piece for stage in self.stages for piece in stage.pieces)


@dataclass(frozen=True)
class MethodPlan:
    """One method; `prefix` begins the names of the constants that describe it."""

    name: str
    prefix: str
    input_len: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    partitions: tuple[Partition, ...]


@dataclass(frozen=True)
class PackagePlan:
    """One package: a partition of each of its methods, as a function with the method's name.

    A package that is not `multifunction` has one member; its function is selected without a name.
    """

    name: str
    members: tuple[tuple[str, Partition], ...]
    multifunction: bool

    def function_of(self, method: str) -> str | None:
        """Return the name by which a method selects its function, None in a package without one."""
        return method if self.multifunction else None


def plan_packages(methods: Sequence[MethodPlan], weight_sharing: str) -> tuple[PackagePlan, ...]:
    """Distribute partitions over packages.

    With `positional` sharing, partition i of every method goes into package i; otherwise each
    partition has a package of its own. Raises HarnessError that names two methods whose numbers of
    partitions differ: their positions then do not match.
    """
    if len(methods) == 1:
        return tuple(
            PackagePlan(part.name, ((methods[0].name, part),), False)
            for part in methods[0].partitions
        )
    if weight_sharing == "none":
        return tuple(
            PackagePlan(f"{method.name}_{part.name}", ((method.name, part),), False)
            for method in methods
            for part in method.partitions
        )
    first, *others = methods
    for other in others:
        if len(other.partitions) != len(first.partitions):
            raise HarnessError(
                f"weight_sharing positional needs as many partitions in every method: "
                f"'{first.name}' has {len(first.partitions)}, '{other.name}' has "
                f"{len(other.partitions)}; use weight_sharing none"
            )
    return tuple(
        PackagePlan(parts[0].name, tuple(zip((m.name for m in methods), parts, strict=True)), True)
        for parts in zip(*(method.partitions for method in methods), strict=True)
    )


def plan_methods(config: ModelConfig, options: ExportOptions) -> tuple[MethodPlan, ...]:
    """Return the methods of an export: `forward`, and in multifunction mode `prefill` too."""
    if options.mode == "single":
        rows = [("forward", "", options.input_len)]
    else:
        rows = [("forward", "decode_", 1), ("prefill", "prefill_", options.input_len)]
    return tuple(_plan(config, options, *row) for row in rows)


def _plan(
    config: ModelConfig, options: ExportOptions, name: str, prefix: str, input_len: int
) -> MethodPlan:
    values = _values(config, options, input_len)
    embedding, *blocks, head = _stages(config, options, values)
    runs = {"embedding": [embedding], "blocks": blocks, "head": [head]}
    if not options.graph_breaks:
        runs = {"model": [embedding, *blocks, head]}
    inputs = tuple(v for v in values.values() if v.name.startswith(_INPUTS))
    outputs = tuple(v for v in values.values() if v.name.startswith(_OUTPUTS))
    partitions = tuple(_partition(run, stages, outputs) for run, stages in runs.items())
    return MethodPlan(name, prefix, input_len, inputs, outputs, partitions)


_INPUTS = ("tokens", "mask", "freqs_", "k_cache_", "v_cache_", "last_valid_token_pos")
_OUTPUTS = ("logits", "new_k_", "new_v_")


def _values(config: ModelConfig, options: ExportOptions, input_len: int) -> dict[str, Value]:
    """Return a method's values by name, in the order of ExecuTorch's exporter."""
    real, cache_len = FLOATS[options.dtype], options.cache_len
    last_only = options.mode == "multifunction"
    layers = range(config.n_layers)

    def cache(name: str, length: int) -> Value:
        return Value(name, real, (1, config.n_kv_heads, length, config.head_dim))

    values = [
        Value("tokens", "int32", (1, input_len)),
        Value("mask", real, (1, input_len, cache_len + input_len)),
        Value("freqs_cos", real, (input_len, config.head_dim // 2)),
        Value("freqs_sin", real, (input_len, config.head_dim // 2)),
        *(cache(f"k_cache_{layer}", cache_len) for layer in layers),
        *(cache(f"v_cache_{layer}", cache_len) for layer in layers),
        *([Value("last_valid_token_pos", "int64", (1,))] if last_only else []),
        Value("logits", real, (1, 1 if last_only else input_len, config.vocab_size)),
        *(cache(f"new_k_{layer}", input_len) for layer in layers),
        *(cache(f"new_v_{layer}", input_len) for layer in layers),
        *(Value(f"hidden_{i}", real, (1, input_len, config.dim)) for i in (*layers, len(layers))),
    ]
    return {value.name: value for value in values}


def _stages(
    config: ModelConfig, options: ExportOptions, values: Mapping[str, Value]
) -> Iterator[Stage]:
    """Return the embedding, the blocks and the head; `harness.export.graph` computes them."""
    n_layers = config.n_layers
    rows: list[tuple[str, str, tuple[str, ...], list[str], list[str]]] = [
        ("embedding", "", ("tok_embeddings.",), ["tokens"], ["hidden_0"])
    ]
    for i in range(n_layers):
        reads = [f"hidden_{i}", "mask", "freqs_cos", "freqs_sin", f"k_cache_{i}", f"v_cache_{i}"]
        makes = [f"hidden_{i + 1}", f"new_k_{i}", f"new_v_{i}"]
        rows.append(("block", f"layers.{i}.", (f"layers.{i}.",), reads, makes))
    last = [name for name in ("last_valid_token_pos",) if name in values]
    rows.append(("head", "", ("norm.", "output."), [f"hidden_{n_layers}", *last], ["logits"]))
    for kind, prefix, starts, reads, makes in rows:
        yield Stage(
            kind,
            prefix,
            tuple(values[name] for name in reads),
            tuple(values[name] for name in makes),
            tuple(
                piece
                for name, shape in config.weight_shapes.items()
                if name.startswith(starts)
                for piece in _pieces(name, shape, name in config.linears, options)
            ),
        )


def _partition(name: str, stages: Sequence[Stage], method_outputs: Sequence[Value]) -> Partition:
    """Make a partition of stages: its inputs are the values that they read and do not make."""
    reads = dict.fromkeys(value for stage in stages for value in stage.inputs)
    makes = dict.fromkeys(value for stage in stages for value in stage.outputs)
    outputs = [value for value in makes if value in method_outputs or value not in reads]
    inputs = [value for value in reads if value not in makes]
    return Partition(name, tuple(stages), tuple(inputs), tuple(outputs))


def _pieces(
    name: str, shape: tuple[int, ...], is_linear: bool, options: ExportOptions
) -> Iterator[Piece]:
    """Cut a linear layer's rows into the pieces that the options ask for."""
    rows = shape[0] // (split_count(options, shape[0]) if is_linear else 1)
    for start in range(0, shape[0], rows):
        yield Piece(name, start, start + rows, (rows, *shape[1:]))

"""The options of an export, each at two values, and what an artifact holds because of them.

A trace is a row of `TRACES`: an option, its other value, the export that it changes, and its
verdict:

| verdict | what the export does with the value |
|---|---|
| changed | the artifacts differ, and each holds what its options promise |
| ignored | the artifacts are equal, and the export reports that the option has no effect |
| refused | an error, before the export starts |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.artifact import Artifact
from harness.artifact.facts import MethodFacts, artifact_facts
from harness.artifact.proto import declared_shape
from harness.export.options import ExportOptions
from harness.models import ModelConfig, Scheme

MODEL = "layers-2"
DTYPES = {"fp16": "float16", "fp32": "float32"}
BITS_OF_LINEARS = {"none": None, "c4w": (4, 0), "b4w": (4, 32)}


@dataclass(frozen=True)
class Trace:
    """An option at `value` in place of its value in `base`, and the verdict that it must get."""

    option: str
    value: Any
    base: ExportOptions
    verdict: str

    @property
    def name(self) -> str:
        """The option with its value, and what the base has apart from the mode."""
        usual = SINGLE.as_dict() | {"mode": self.base.mode}
        shown = {n: v for n, v in self.base.as_dict().items() if v != usual[n]}
        words = (f"{name}={value}" for name, value in (shown | {self.option: self.value}).items())
        return " ".join(words).replace(",", "/")

    def changed(self) -> ExportOptions:
        """Return the options with the other value; raises HarnessError when it is refused."""
        return replace(self.base, **{self.option: self.value})


SINGLE = ExportOptions(input_len=16, max_context_len=128)
MULTI = replace(SINGLE, mode="multifunction")
CUT = replace(SINGLE, target_split_size=64)
WHOLE = replace(SINGLE, target_split_size=None)

# The sizes are those of `layers-2`: linear layers of 32, 64, 192 and 512 rows, 64 columns or 192.
TRACES = (
    Trace("mode", "multifunction", SINGLE, "changed"),
    Trace("weight_sharing", "none", MULTI, "changed"),
    Trace("weight_sharing", "positional", SINGLE, "ignored"),
    Trace("weight_sharing", "none", SINGLE, "refused"),
    Trace("input_len", 8, SINGLE, "changed"),
    Trace("input_len", 8, MULTI, "changed"),
    Trace("input_len", 128, SINGLE, "refused"),
    Trace("max_context_len", 64, SINGLE, "changed"),
    Trace("max_context_len", 64, MULTI, "changed"),
    Trace("max_context_len", 16, SINGLE, "refused"),
    Trace("dtype", "fp32", SINGLE, "changed"),
    Trace("dtype", "bf16", SINGLE, "refused"),
    Trace("embedding_quantize", None, SINGLE, "changed"),
    Trace("embedding_quantize", "4,32", SINGLE, "changed"),
    Trace("embedding_quantize", "8,64", SINGLE, "ignored"),
    Trace("embedding_quantize", "8,48", SINGLE, "refused"),
    Trace("linear_quantize", "b4w", SINGLE, "changed"),
    Trace("linear_quantize", "none", SINGLE, "changed"),
    Trace("linear_quantize", "c8w", SINGLE, "refused"),
    Trace("target_split_size", 64, SINGLE, "changed"),
    Trace("target_split_size", 512, SINGLE, "ignored"),
    Trace("target_split_size", 100, SINGLE, "refused"),
    Trace("max_splits", 2, CUT, "changed"),
    Trace("max_splits", 4, SINGLE, "ignored"),
    Trace("max_splits", 4, WHOLE, "ignored"),
    Trace("max_splits", 3, CUT, "refused"),
    Trace("graph_breaks", False, SINGLE, "changed"),
    Trace("graph_breaks", False, MULTI, "changed"),
)


def promised(options: ExportOptions, config: ModelConfig) -> dict[str, Any]:
    """Return what an artifact must hold: `held` of each sound exporter's gives the same."""
    multi = options.mode == "multifunction"
    functions = 2 if multi and options.weight_sharing == "positional" else 1
    partitions = 3 if options.graph_breaks else 1
    lengths = {"forward": 1, "prefill": options.input_len}
    if not multi:
        lengths = {"forward": options.input_len}
    linears: Counter[int] = Counter()
    for rows, _ in config.linears.values():
        parts = 1
        if options.target_split_size is not None:
            parts = min(max(rows // options.target_split_size, 1), options.max_splits)
        linears[rows // parts] += parts
    embedding: Scheme = None
    if options.embedding_quantize is not None:
        bits, group = map(int, options.embedding_quantize.split(","))
        embedding = bits, group % config.dim
    return {
        "delegate calls of a method": dict.fromkeys(lengths, partitions),
        "packages": partitions * len(lengths) // functions,
        "functions of a package": {functions},
        "uses of a stored weight": {float(functions)},
        "linears by rows": {name: dict(sorted(linears.items())) for name in lengths},
        "tokens of a call": lengths,
        "positions of the logits": dict.fromkeys(lengths, 1) if multi else lengths,
        "cache length": {options.max_context_len - lengths["forward"]},
        "rows of the RoPE tables": options.max_context_len,
        "dtype": {DTYPES[options.dtype]},
        "bits and group of the embedding": embedding,
        "bits and group of the linears": BITS_OF_LINEARS[options.linear_quantize],
        "specification version": {9},  # of iOS 18, the one target of both exporters
    }


def held(artifact: Artifact, config: ModelConfig) -> dict[str, Any]:
    """Return what an artifact holds, read from its bytes."""
    from harness.models.quantize import read_scheme

    facts = artifact_facts(artifact)
    methods = {method.name: method for method in facts.methods}
    tensors = [t for m in facts.methods for t in (*m.inputs, *m.outputs)]
    floats = {tensor.dtype for tensor in tensors if tensor.dtype.startswith("float")}
    dtype = next((name for name, full in DTYPES.items() if floats == {full}), "fp16")
    scheme = read_scheme(artifact, dtype)
    return {
        "delegate calls of a method": {n: m.delegate_calls for n, m in methods.items()},
        "packages": len(facts.packages),
        "functions of a package": {len(package.functions) for package in facts.packages},
        "uses of a stored weight": {p.sharing.used / p.sharing.stored for p in facts.packages},
        "linears by rows": {
            name: dict(sorted(_linears(artifact, name).items())) for name in methods
        },
        "tokens of a call": {name: _tokens(method) for name, method in methods.items()},
        "positions of the logits": {
            name: _size(method.outputs[0].shape) // config.vocab_size
            for name, method in methods.items()
        },
        "cache length": {t.shape[2] for m in facts.methods for t in m.inputs if len(t.shape) == 4},
        "rows of the RoPE tables": artifact.constants["freqs_cos"].shape[0],
        "dtype": floats,
        "bits and group of the embedding": scheme.embedding,
        "bits and group of the linears": scheme.linear,
        "specification version": {package.specification_version for package in facts.packages},
    }


def _linears(artifact: Artifact, method: str) -> Counter[int]:
    """Count the linear operations of a method's functions by their rows."""
    found: Counter[int] = Counter()
    for delegate in artifact.delegates[method]:
        for operation in delegate.bundle.package.operations(delegate.program_function).operations:
            if operation.type == "linear":
                shape = declared_shape(operation.outputs[0].type.tensorType)
                found[shape[-1] or 0] += 1
    return found


def _tokens(method: MethodFacts) -> int:
    (tokens,) = (tensor for tensor in method.inputs if tensor.dtype == "int32")
    return _size(tokens.shape)


def _size(shape: tuple[int | None, ...]) -> int:
    size = 1
    for length in shape:
        size *= length or 0
    return size


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values of each property that differs."""
    return {
        name: (before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    }

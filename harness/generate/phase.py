"""One phase of generation, prefill or decode: the indices and shapes of its method.

They come from an artifact's constants. An artifact is untrusted: each method of `ConstantReader`
returns a value of the promised type, or raises a HarnessError that names the constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from harness.errors import HarnessError

if TYPE_CHECKING:
    import torch

    from harness.pte import TensorSpec
    from harness.runtimes.base import Method

Constants = Mapping[str, "bool | int | float | str | numpy.ndarray"]
Shape = tuple[int, ...]

FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
INTEGERS = frozenset({"int32", "int64"})
TOKENS_INPUT = 0  # the exporter puts tokens and logits first; no constant has their index
LOGITS_OUTPUT = 0


@dataclass(frozen=True)
class LayerCache:
    """The indices of one layer's caches as inputs, and of their updates as outputs.

    `length` is the number of positions that the caches hold.
    """

    k_in: int
    k_out: int
    v_in: int
    v_out: int
    length: int


@dataclass(frozen=True)
class Phase:
    """The indices of one method's inputs and outputs, both numbered from 0.

    Inputs: tokens [1, input_len]; for each length of a cache a mask [1, input_len, length +
    input_len], columns for the cache first; cos and sin [input_len, width]; caches [1, n_kv_heads,
    length, head_dim]; and, if the method returns the last token's logits only,
    `last_valid_token_pos` [1].
    Outputs: logits [1, input_len, vocab], or [1, vocab] or [1, 1, vocab] of the last valid token;
    cache updates [1, n_kv_heads, input_len, head_dim].
    """

    method: str
    input_len: int
    n_inputs: int
    masks: Mapping[int, int]  # the input by the length of the caches that it covers
    cos: int
    sin: int
    last_valid_token_pos: int | None
    caches: tuple[LayerCache, ...]
    tokens_dtype: str
    cache_dtype: str

    @property
    def cache_len(self) -> int:
        """The length of the longest caches, which hold every position."""
        return max(self.masks)

    @property
    def full_logits(self) -> bool:
        """Whether the logits cover every position of the input."""
        return self.last_valid_token_pos is None


def parse_phase(
    reader: ConstantReader,
    methods: Mapping[str, Method],
    prefix: str,
    method_name: str,
    vocab_size: int,
    cache_shape: tuple[int, int],  # n_kv_heads, head_dim
    rope_width: int,
) -> Phase:
    """Parse the constants that start with `prefix` and check them against the method's tensors."""
    if method_name not in methods:
        raise HarnessError(
            f"constant '{prefix}kv_cache_specs' describes a method '{method_name}' that the "
            "artifact does not have"
        )
    method = methods[method_name]
    input_len = reader.integer(f"{prefix or 'forward_'}input_len")
    masks = _masks(reader, prefix, method_name)
    caches = _caches(reader, prefix, method_name, masks)
    cos, sin = (reader.index(f"{prefix}freqs_{name}_input_index") for name in ("cos", "sin"))

    check = _SpecChecker(method)
    heads, head_dim = cache_shape
    length = f"{prefix or 'forward_'}input_len"
    check.input(TOKENS_INPUT, length, INTEGERS, (1, input_len))
    for cache_len, mask in masks.items():
        check.input(mask, f"{prefix}mask_specs", FLOATS, (1, input_len, cache_len + input_len))
    check.input(cos, f"{prefix}freqs_cos_input_index", FLOATS, (input_len, rope_width))
    check.input(sin, f"{prefix}freqs_sin_input_index", FLOATS, (input_len, rope_width))
    for layer in caches:
        shape = (1, heads, layer.length, head_dim)
        for index in (layer.k_in, layer.v_in):
            check.input(index, f"{prefix}kv_cache_specs", FLOATS, shape)
        for index in (layer.k_out, layer.v_out):
            check.output(index, f"{prefix}kv_cache_specs", FLOATS, (1, heads, input_len, head_dim))
    last = check.remaining_input()
    if last is None:
        check.output(LOGITS_OUTPUT, "vocab_size", FLOATS, (1, input_len, vocab_size))
    else:
        check.input(last, "last_valid_token_pos", frozenset({"int64"}), (1,))
        check.output(LOGITS_OUTPUT, "vocab_size", FLOATS, (1, vocab_size), (1, 1, vocab_size))
    floating = caches[0].k_in if caches else next(iter(masks.values()))
    return Phase(
        method=method_name,
        input_len=input_len,
        n_inputs=len(method.inputs),
        masks=masks,
        cos=cos,
        sin=sin,
        last_valid_token_pos=last,
        caches=caches,
        tokens_dtype=method.inputs[TOKENS_INPUT].dtype,
        cache_dtype=method.inputs[floating].dtype,
    )


def _masks(reader: ConstantReader, prefix: str, method: str) -> dict[int, int]:
    """Return the input of each mask by the length of its caches."""
    rows = reader.table(f"{prefix}mask_specs", 2)
    lengths = [length for _, length in rows]
    least = 1 if len(rows) > 1 else 0  # a window of nothing would be no window
    if not rows or min(lengths) < least or len(set(lengths)) < len(rows):
        raise HarnessError(
            f"{method}: constant '{prefix}mask_specs' is {[list(row) for row in rows]}; one mask "
            "for each length of a cache is expected: rows of its input and this length"
        )
    return {length: index for index, length in rows}


def _caches(
    reader: ConstantReader, prefix: str, method: str, masks: Mapping[int, int]
) -> tuple[LayerCache, ...]:
    rows = reader.table(f"{prefix}kv_cache_specs", 5)
    for row in rows:
        if row[4] not in masks:
            raise HarnessError(
                f"{method}: constant '{prefix}kv_cache_specs' gives a cache length of {row[4]}, "
                f"'{prefix}mask_specs' one of {' or '.join(map(str, masks))}; they must agree"
            )
    return tuple(LayerCache(*row) for row in rows)


class _SpecChecker:
    """Checks indices against a method's tensors, each of which may be named once."""

    def __init__(self, method: Method) -> None:
        self._method = method.name
        self._specs = {"input": method.inputs, "output": method.outputs}
        self._named_by: dict[tuple[str, int], str] = {}

    def input(self, index: int, constant: str, dtypes: frozenset[str], *shapes: Shape) -> None:
        self._check("input", index, constant, dtypes, shapes)

    def output(self, index: int, constant: str, dtypes: frozenset[str], *shapes: Shape) -> None:
        self._check("output", index, constant, dtypes, shapes)

    def remaining_input(self) -> int | None:
        """Return the only input that no constant names, if there is one."""
        inputs = range(len(self._specs["input"]))
        unnamed = [index for index in inputs if ("input", index) not in self._named_by]
        if len(unnamed) > 1:
            raise HarnessError(
                f"{self._method}: no constant names inputs {unnamed}; "
                "only one input, last_valid_token_pos, may be unnamed"
            )
        return unnamed[0] if unnamed else None

    def _check(
        self,
        side: str,
        index: int,
        constant: str,
        dtypes: frozenset[str],
        shapes: tuple[Shape, ...],
    ) -> None:
        specs: tuple[TensorSpec, ...] = self._specs[side]
        if not 0 <= index < len(specs):
            raise HarnessError(
                f"{self._method}: constant '{constant}' names {side} {index}, but the method has "
                f"{len(specs)} {side}s, numbered from 0"
            )
        if (side, index) in self._named_by:
            raise HarnessError(
                f"{self._method}: {side} {index} is named twice, by constant "
                f"'{self._named_by[side, index]}' and by '{constant}'"
            )
        self._named_by[side, index] = constant
        spec = specs[index]
        if spec.dtype not in dtypes or tuple(spec.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise HarnessError(
                f"{self._method}: {side} {index} ({spec.name}) is {spec.dtype} "
                f"{list(spec.shape)}, but constant '{constant}' makes it {wanted} of "
                f"{' or '.join(sorted(dtypes))}"
            )


@dataclass(frozen=True)
class ConstantReader:
    """The constants of one artifact, read by name and type."""

    constants: Constants

    def integer(self, name: str) -> int:
        """Return a positive integer."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise HarnessError(f"constant '{name}' is {_shown(value)}, not a positive integer")
        return value

    def index(self, name: str) -> int:
        """Return the only element of an integer tensor of shape [1]."""
        return self.table(name, 1)[0][0]

    def table(self, name: str, columns: int) -> tuple[tuple[int, ...], ...]:
        """Return the rows of an integer tensor [rows, columns], or [columns] for one row."""
        value = self._get(name)
        if not isinstance(value, numpy.ndarray) or value.dtype.kind not in "iu":
            raise HarnessError(f"constant '{name}' is {_shown(value)}, not a tensor of integers")
        if value.size == 0:
            return ()
        if value.ndim not in (1, 2) or value.shape[-1] != columns:
            raise HarnessError(
                f"constant '{name}' has shape {list(value.shape)}, expected [rows, {columns}]"
            )
        return tuple(tuple(row) for row in value.reshape(-1, columns).tolist())

    def frequencies(self, name: str) -> torch.Tensor:
        """Return a floating RoPE table [positions, width] as a tensor of the artifact's values."""
        import torch

        value = self._get(name)
        if not isinstance(value, numpy.ndarray) or value.dtype.kind != "f":
            raise HarnessError(f"constant '{name}' is {_shown(value)}, not a floating tensor")
        if value.ndim != 2 or value.size == 0:
            raise HarnessError(
                f"constant '{name}' has shape {list(value.shape)}, expected [positions, width]"
            )
        if not numpy.isfinite(value).all():
            raise HarnessError(f"constant '{name}' holds values that are not finite")
        return torch.from_numpy(numpy.array(value))  # a copy: the artifact's is read-only

    def _get(self, name: str) -> bool | int | float | str | numpy.ndarray:
        if name not in self.constants:
            raise HarnessError(
                f"constant '{name}' is missing: the artifact does not describe how to call its "
                "language model; export it with ExecuTorch's static language model exporter"
            )
        return self.constants[name]


def _shown(value: object) -> str:
    if isinstance(value, numpy.ndarray):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

"""The options of an export; the defaults are those of ExecuTorch's static-LLM exporter."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.errors import HarnessError
from harness.models import ModelConfig, Quantization, Scheme

CHOICES = {
    "mode": ("single", "multifunction"),
    "weight_sharing": ("positional", "none"),
    "dtype": ("fp16", "fp32"),
    "linear_quantize": ("none", "b4w", "c4w"),
}
LINEAR_GROUP = 32  # input columns that share a scale in b4w
LINEAR_SCHEMES: dict[str, Scheme] = {"none": None, "b4w": (4, LINEAR_GROUP), "c4w": (4, 0)}
MAX_CONTEXT_LEN = 1 << 20
FLOAT_RANGES = {"fp16": (6e-8, 65504.0), "fp32": (1.5e-45, 3.4e38)}  # of positive numbers, rounded


@dataclass(frozen=True)
class ExportOptions:
    """The options of one export; a bad value raises HarnessError that lists the allowed ones."""

    mode: str = "single"
    weight_sharing: str = "positional"
    input_len: int = 32
    max_context_len: int = 1024
    dtype: str = "fp16"
    embedding_quantize: str | None = "8,0"  # "bits,group size", group size 0: per row
    linear_quantize: str = "c4w"
    target_split_size: int | None = 1024  # None: linear layers are not split
    max_splits: int = 8
    graph_breaks: bool = True

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise _bad(self, name, " or ".join(allowed))
        if self.weight_sharing == "none" and self.mode == "single":
            raise HarnessError(
                "weight_sharing none needs mode multifunction: one method cannot share weights"
            )
        _check_size(self, "max_context_len", 2, MAX_CONTEXT_LEN)
        _check_size(self, "input_len", 1, self.max_context_len - 1, " (below max_context_len)")
        _check_size(self, "max_splits", 1, 1 << 16)
        if self.target_split_size is not None:
            _check_size(self, "target_split_size", 1, 1 << 24, ", or none")
        if type(self.graph_breaks) is not bool:
            raise _bad(self, "graph_breaks", "true or false")
        if self.embedding_quantize is not None:
            text = self.embedding_quantize
            if not isinstance(text, str) or not re.fullmatch(r"[48],[0-9]{1,8}", text, re.ASCII):
                raise _bad(
                    self,
                    "embedding_quantize",
                    "BITS,GROUP with 4 or 8 bits and group 0 for one scale per row, or none",
                )

    @property
    def cache_len(self) -> int:
        """The number of slots of every KV cache."""
        new = self.input_len if self.mode == "single" else 1
        return self.max_context_len - new

    @property
    def quantization(self) -> Quantization:
        """How the artifact holds its weights."""
        embedding = None
        if self.embedding_quantize is not None:
            bits, group = self.embedding_quantize.split(",")
            embedding = int(bits), int(group)
        return Quantization(self.dtype, embedding, LINEAR_SCHEMES[self.linear_quantize])

    def as_dict(self) -> dict[str, Any]:
        """Return the options as JSON values; `ExportOptions(**d)` reads them back."""
        return asdict(self)


def check_fit(options: ExportOptions, config: ModelConfig) -> None:
    """Raise HarnessError if the options do not fit the model's sizes.

    The exporter would fail much later, by an assertion without a message, or not at all.
    """
    if not _held(config.norm_eps, options.dtype):
        low, high = FLOAT_RANGES[options.dtype]
        raise HarnessError(
            f"norm_eps {config.norm_eps:g} becomes 0 or infinite in {options.dtype}; it must be "
            f"from {low:g} to {high:g}"
        )
    scheme = options.quantization.embedding
    if scheme and scheme[1] and config.dim % scheme[1]:
        raise HarnessError(
            f"embedding_quantize {options.embedding_quantize}: groups of {scheme[1]} do not fill a "
            f"row of {config.dim} columns (dim); choose a divisor of it, or 0"
        )
    for name, (rows, columns) in config.linears.items():
        if options.linear_quantize == "b4w" and columns % LINEAR_GROUP:
            raise HarnessError(
                f"linear_quantize b4w: groups of {LINEAR_GROUP} do not fill a row of {name}, which "
                f"has {columns} columns; use c4w or none"
            )
        splits = split_count(options, rows)
        if rows % splits:
            raise HarnessError(
                f"target_split_size {options.target_split_size} with max_splits "
                f"{options.max_splits} cuts the {rows} rows of {name} into {splits} parts of "
                "unequal size; change either"
            )


def _held(value: float, dtype: str) -> bool:
    """Return whether a number stays above 0 and finite when it is rounded to a float dtype."""
    letter = {"fp16": "<e", "fp32": "<f"}[dtype]
    try:
        return bool(struct.unpack(letter, struct.pack(letter, value))[0])
    except OverflowError:
        return False


def split_count(options: ExportOptions, rows: int) -> int:
    """Return the number of parts into which the exporter cuts a linear layer of `rows` rows."""
    if options.target_split_size is None:
        return 1
    return min(max(rows // options.target_split_size, 1), options.max_splits)


def ignored_options(
    options: ExportOptions, config: ModelConfig, given: Collection[str] = ()
) -> Iterator[str]:
    """Yield a sentence for each option without which the artifact would be the same.

    Only options in `given`, and those that differ from their defaults, are reported, and none that
    asks for nothing (`--target-split-size none`). The sentences hold for all exporters.
    """
    defaults = ExportOptions().as_dict()
    for name, reason in _without_effect(options, config):
        value = getattr(options, name)
        if name in given or value != defaults[name]:
            yield f"--{name.replace('_', '-')} {value} has no effect{reason}"


def _without_effect(options: ExportOptions, config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield each option without effect, with the rest of a sentence that gives the reason."""
    if options.mode == "single":
        yield "weight_sharing", " in --mode single: one method has nothing to share"
    yield from _cuts_without_effect(options, [rows for rows, _ in config.linears.values()])
    embedding = options.quantization.embedding
    if embedding and embedding[1] == config.dim:
        text = f"{embedding[0]},0: the one group of a row is the row"
        yield "embedding_quantize", f" that differs from {text}"
    columns = {columns for _, columns in config.linears.values()}
    if options.linear_quantize == "b4w" and columns == {LINEAR_GROUP}:
        yield "linear_quantize", " that differs from c4w: the one group of a row is the row"


def _cuts_without_effect(
    options: ExportOptions, all_rows: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Yield as `_without_effect` does; `all_rows` has the rows of each linear layer."""
    target, default = options.target_split_size, ExportOptions()
    if target is None:
        yield "max_splits", " without --target-split-size"
        return
    parts = max(rows // target for rows in all_rows)
    alike = replace(options, target_split_size=default.target_split_size)
    if parts <= 1:
        yield "target_split_size", f": no linear layer has {2 * target} rows to cut"
    elif options.max_splits == 1:
        yield "target_split_size", " with --max-splits 1"
    elif options != alike and all(
        split_count(options, rows) == split_count(alike, rows) for rows in all_rows
    ):
        text = f"{alike.target_split_size}: both cut the linear layers alike"
        yield "target_split_size", f" that differs from {text}"
    if parts <= min(options.max_splits, default.max_splits):
        text = f"--target-split-size {target} cuts no linear layer into more than {max(parts, 1)}"
        yield "max_splits", f": {text}"


def _check_size(options: ExportOptions, name: str, low: int, high: int, note: str = "") -> None:
    value = getattr(options, name)
    if type(value) is not int or not low <= value <= high:
        raise _bad(options, name, f"a whole number from {low} to {high}{note}")


def _bad(options: ExportOptions, name: str, allowed: str) -> HarnessError:
    return HarnessError(f"{name} must be {allowed}, not {getattr(options, name)!r}")

"""Parses the positions of a language model's inputs and outputs from an artifact's constants.

Both modes of the exporter have the same `ModelLayout`. The single-method mode has one `Phase` for
prefill and decode; the multifunction mode has two, with one set of caches.

A row of `kv_cache_specs` pairs a layer's cache inputs with its outputs. ExecuTorch 1.4 sorts the
rows by the *text* of the cache's name, `l0,h0`, `l1,h0`, `l10,h0`, `l2,h0`, and numbers the outputs
by row. The outputs, however, are in layer order: with eleven or more layers, rows pair one layer's
input with another layer's output. Rows with this signature are paired by layer instead, and
`ModelLayout.crossed_rows` counts the wrong ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from harness.errors import HarnessError
from harness.generate.phase import ConstantReader, Constants, LayerCache, Phase, parse_phase

if TYPE_CHECKING:
    import torch

    from harness.runtimes.base import Method

_DESCRIPTIONS = ("_input_len", "kv_cache_specs", "mask_specs")  # ends of constants' names

Mode = Literal["single", "multifunction"]

# Prefix of the constants, executable method, by phase.
_PREFIXES: dict[Mode, dict[str, tuple[str, str]]] = {
    "single": {"prefill": ("", "forward"), "decode": ("", "forward")},
    "multifunction": {"prefill": ("prefill_", "prefill"), "decode": ("decode_", "forward")},
}


@dataclass(frozen=True)
class ModelLayout:
    """How to call a language model; every index and shape is valid for its methods.

    `context` is the number of positions that can be fed. A token at position p attends to the p
    positions before it: the cache holds `cache_len` of them, the call's own input the rest. A layer
    whose caches are shorter attends to a sliding window. No position is beyond the RoPE tables.
    `freqs_cos` and `freqs_sin` are [positions, width].
    """

    mode: Mode
    vocab_size: int
    head_dim: int
    n_kv_heads: int
    n_layers: int
    context: int
    freqs_cos: torch.Tensor
    freqs_sin: torch.Tensor
    prefill: Phase
    decode: Phase
    crossed_rows: int

    @property
    def cache_len(self) -> int:
        """The number of positions that the longest caches hold, the same in both phases."""
        return self.prefill.cache_len

    @property
    def full_logits(self) -> bool:
        """Whether a prefill returns logits for every position, not for the last one only."""
        return self.prefill.full_logits


def describes_model(constants: Constants) -> bool:
    """Return whether constants describe a model to the static runner, if only in part."""
    return any(name.endswith(_DESCRIPTIONS) for name in constants)


def windows_of(constants: Constants) -> tuple[int | None, ...]:
    """Return each layer's sliding window, None for full attention; nothing if no layer has one.

    The window is the length of the layer's caches, where others are longer.
    """
    if not describes_model(constants):
        return ()
    prefix, _ = _PREFIXES[mode_of(constants)]["decode"]
    rows = sorted(ConstantReader(constants).table(f"{prefix}kv_cache_specs", 5))
    longest = max((row[4] for row in rows), default=0)
    windows = tuple(row[4] if row[4] < longest else None for row in rows)
    return windows if any(windows) else ()


def mode_of(constants: Constants) -> Mode:
    """Return the mode that an artifact's constants describe; HarnessError if there is none."""
    if "forward_input_len" in constants:
        return "single"
    if "decode_input_len" in constants or "prefill_input_len" in constants:
        return "multifunction"
    raise HarnessError(
        "there is neither a constant 'forward_input_len' nor 'decode_input_len': the artifact does "
        "not describe how to call its language model; export it with ExecuTorch's static language "
        "model exporter"
    )


def described_methods(constants: Constants) -> dict[str, str]:
    """Return the methods that the constants describe, by the prefix of these constants' names.

    They are `forward`, and `prefill` in multifunction mode.
    """
    return dict(_PREFIXES[mode_of(constants)].values())


def method_names(constants: Constants) -> tuple[str, ...]:
    """Return the methods that generation needs."""
    return tuple(described_methods(constants).values())


def parse_layout(constants: Constants, methods: Mapping[str, Method]) -> ModelLayout:
    """Parse and validate constants; `methods` holds the methods of `method_names`.

    Raises HarnessError that names the method and the constant.
    """
    mode = mode_of(constants)
    reader = ConstantReader(constants)
    cos, sin = (reader.frequencies(name) for name in ("freqs_cos", "freqs_sin"))
    if cos.shape != sin.shape:
        raise HarnessError(
            f"constants 'freqs_cos' {list(cos.shape)} and 'freqs_sin' {list(sin.shape)} "
            "differ in shape"
        )
    vocab_size, head_dim, n_kv_heads = (
        reader.integer(name) for name in ("vocab_size", "head_dim", "n_heads_per_cache")
    )
    phases = {
        phase: parse_phase(
            reader, methods, prefix, method, vocab_size, (n_kv_heads, head_dim), cos.shape[1]
        )
        for phase, (prefix, method) in _PREFIXES[mode].items()
    }
    crossed = _crossed_rows(phases["decode"].caches)
    prefill, decode = (
        replace(phases[name], caches=_by_layer(phases[name].caches)) for name in _PREFIXES[mode]
    )
    _require_one_set_of_caches(prefill, decode)
    return ModelLayout(
        mode=mode,
        vocab_size=vocab_size,
        head_dim=head_dim,
        n_kv_heads=n_kv_heads,
        n_layers=len(decode.caches),
        context=min(cos.shape[0], decode.cache_len + decode.input_len),
        freqs_cos=cos,
        freqs_sin=sin,
        prefill=prefill,
        decode=decode,
        crossed_rows=crossed,
    )


def _require_one_set_of_caches(prefill: Phase, decode: Phase) -> None:
    for what, ours, theirs in (
        ("cache length", prefill.cache_len, decode.cache_len),
        ("number of layers", len(prefill.caches), len(decode.caches)),
        ("list of masks", sorted(prefill.masks), sorted(decode.masks)),
        ("list of cache lengths", *([c.length for c in p.caches] for p in (prefill, decode))),
    ):
        if ours != theirs:
            raise HarnessError(
                f"the {what} of prefill is {ours} and that of decode {theirs} in 'kv_cache_specs' "
                "and 'mask_specs': both must use one set of caches"
            )


def _crossed_rows(rows: Sequence[LayerCache]) -> int:
    """Return how many rows the exporter's text sort has paired wrongly, 0 without its signature."""
    n = len(rows)
    text_order = sorted(range(n), key=lambda layer: f"l{layer},h0")
    inputs = [_ranks([getattr(row, name) for row in rows]) for name in ("k_in", "v_in")]
    outputs = [_ranks([getattr(row, name) for row in rows]) for name in ("k_out", "v_out")]
    if any(ranks != text_order for ranks in inputs):
        return 0
    if any(ranks != list(range(n)) for ranks in outputs):
        return 0
    return sum(layer != row for row, layer in enumerate(text_order))


def _by_layer(rows: Sequence[LayerCache]) -> tuple[LayerCache, ...]:
    """Return the rows in layer order, the order of the inputs, each with its own outputs."""
    ordered = sorted(rows, key=lambda row: row.k_in)
    if not _crossed_rows(rows):
        return tuple(ordered)
    return tuple(
        replace(cache, k_out=row.k_out, v_out=row.v_out)
        for cache, row in zip(ordered, rows, strict=True)
    )


def _ranks(values: Sequence[int]) -> list[int]:
    order = sorted(values)
    return [order.index(value) for value in values]

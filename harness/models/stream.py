"""Computes what a language model must give for many sequences, in the memory of one layer.

A layer's weights are made, used by every sequence, in fp64 and where asked in the artifact's own
precision, and freed. The output layer is computed in pieces, of which only some rows are kept.
The model is that of `harness.models.model`: whole sequences, no cache, no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from harness.errors import HarnessError
from harness.models import ModelConfig, Quantization, Surroundings, Weights
from harness.models.checkpoint import load_checkpoint
from harness.models.model import Freqs, Operations, check_tokens, whole_sequence, windowed
from harness.models.quantize import DTYPES, exported_weight

_MAX_SCORES = 1 << 24  # elements of an attention that are computed at once: 128 MB in fp64
_MAX_LOGITS = 1 << 22  # of an output layer's piece
_MAX_MAPPED = 1 << 26  # bytes read of a checkpoint's file after which it is mapped again
_ROWS = 4096  # of two weights, compared at a time
_EXACT = torch.float64


@dataclass(frozen=True)
class Passage:
    """A sequence of tokens, and what to keep of its results.

    `rows` are the positions whose logits are kept, `caches` says whether keys and values are. With
    `cost`, the artifact's own precision computes the sequence, too.
    """

    tokens: tuple[int, ...]
    rows: frozenset[int]
    caches: bool = False
    cost: bool = False

    def covers(self, other: Passage) -> bool:
        """Return whether the results of this passage contain those of another."""
        return (
            self.tokens == other.tokens
            and self.rows >= other.rows
            and self.caches >= other.caches
            and self.cost >= other.cost
        )

    def joined(self, other: Passage) -> Passage:
        """Return the passage of the same tokens that covers both."""
        caches, cost = self.caches or other.caches, self.cost or other.cost
        return Passage(self.tokens, self.rows | other.rows, caches, cost)


def whole_passage(tokens: torch.Tensor) -> Passage:
    """Return the passage of tokens [T] with all that it can keep in fp64."""
    return Passage(tuple(tokens.tolist()), frozenset(range(len(tokens))), caches=True)


@dataclass
class Cost:
    """How far eager PyTorch in the artifact's precision is from fp64; infinite for NaN.

    `logits` [T] are the largest errors by position. `caches` is the largest error of the keys and
    values, each relative to its layer's largest one.
    """

    logits: torch.Tensor
    caches: float = 0.0


@dataclass
class Computed:
    """The results of a passage in fp64.

    `largest` [T] are the largest magnitudes of the logits by position, NaN for NaN. `keys` and
    `values` have [K, T, D] for each layer, if the passage asked for them.
    """

    passage: Passage
    largest: torch.Tensor
    cost: Cost | None = None
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    _logits: list[torch.Tensor] = field(default_factory=list)

    def logits(self, positions: Iterable[int]) -> torch.Tensor:
        """Return the logits [positions, vocab] of some of the passage's rows."""
        if len(self._logits) > 1:
            self._logits = [torch.cat(self._logits, -1)]
        place = {row: number for number, row in enumerate(sorted(self.passage.rows))}
        return self._logits[0][[place[position] for position in positions]]


def checkpoint_weights(
    path: Path, config: ModelConfig, quantization: Quantization, held: Weights
) -> Weights:
    """Return a checkpoint's weights after the exporter's quantization, in the artifact's dtype.

    A weight that equals the one `held` by the artifact bit for bit is read from there the next
    time: to expand it takes less time than to quantize it again.
    """
    file = _MappedCheckpoint(path, config)
    schemes, equal = quantization.schemes(config), set[str]()
    dtype = DTYPES[quantization.dtype]

    def make(name: str) -> torch.Tensor:
        if name in equal:
            return held[name].to(dtype)
        weight = exported_weight(file[name], quantization.dtype, schemes.get(name))
        if schemes.get(name) is not None and name in held:
            have = held[name]
            if have.shape == weight.shape and same_values(have, weight):
                equal.add(name)
        return weight

    def release() -> None:
        file.release()
        held.release()

    return Weights({name: partial(make, name) for name in file.names}, held.size, release)


def same_values(have: torch.Tensor, want: torch.Tensor) -> bool:
    """Return whether two weights of one shape have equal values; NaN equals nothing."""
    have, want = torch.atleast_1d(have), torch.atleast_1d(want)
    pairs = zip(have.split(_ROWS), want.split(_ROWS), strict=True)
    return all(torch.equal(a, b.to(a.dtype)) for a, b in pairs)


class _MappedCheckpoint:
    """The tensors of a checkpoint; a release unmaps its file when much of it has been read."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self._load = partial(load_checkpoint, path, config)
        self._tensors: dict[str, torch.Tensor] | None = self._load()
        self.names = tuple(self._tensors)
        self._read = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        if self._tensors is None:
            self._tensors = self._load()
        self._read += self._tensors[name].nbytes
        return self._tensors[name]

    def release(self) -> None:
        if self._read > _MAX_MAPPED:
            self._tensors, self._read = None, 0


@dataclass
class StreamedModel:
    """A model whose weights are read layer by layer; `dtype` is the artifact's own precision.

    `tables` are the RoPE tables of all positions. `windows` has the sliding window of each layer,
    None for full attention.
    """

    config: ModelConfig
    weights: Weights
    dtype: torch.dtype
    tables: Freqs
    windows: Sequence[int | None] = ()
    _kept: list[Computed] = field(default_factory=list)
    _sensitivities: dict[Passage, dict[str, float]] = field(default_factory=dict)
    _alone: bool = False  # since a pass over several passages failed

    def computed(self, passage: Passage, more: Callable[[], Iterable[Passage]]) -> Computed:
        """Return the results of a passage, and keep them; compute `more` passages with it."""
        found = self._find(passage)
        if found is None:
            wanted: dict[tuple[int, ...], Passage] = {}
            for one in (passage, *(() if self._alone else more())):
                if self._find(one) is None:
                    wanted[one.tokens] = one.joined(wanted.get(one.tokens, one))
            try:
                self._kept += self.compute([*wanted.values()])
            except (HarnessError, MemoryError, RuntimeError):  # of another check's passage, perhaps
                if len(wanted) == 1:
                    raise
                self._alone = True
                self._kept += self.compute([passage])
            found = self._find(passage)
            assert found
        return found

    def _find(self, passage: Passage) -> Computed | None:
        return next((one for one in self._kept if one.passage.covers(passage)), None)

    @torch.no_grad()
    def compute(self, passages: Sequence[Passage]) -> list[Computed]:
        """Return the results of passages; raise HarnessError for a token that is none."""
        table = self.weights["tok_embeddings.weight"]
        pairs = [self._begun(passage, table) for passage in passages]
        del table
        for layer in range(self.config.n_layers):
            prefix = f"layers.{layer}."
            names = [name for name in self.weights if name.startswith(prefix)]
            stored = {name: self.weights[name] for name in names}
            for is_exact, dtype in ((True, _EXACT), (False, self.dtype)):
                runs = [exact if is_exact else rough for exact, rough in pairs]
                if any(runs):
                    converted = {name: weight.to(dtype) for name, weight in stored.items()}
                    ops = _ByHeads(self.config, converted, dtype)
                    self._run_layer(ops, layer, [run for run in runs if run])
                    del converted, ops
            del stored
            self.weights.release()
            for exact, rough in pairs:
                exact.keep_caches(rough)
        self._compute_logits(pairs)
        return [exact.computed for exact, _ in pairs]

    def sensitivity(self, passage: Passage) -> dict[str, float]:
        """Return how far results move when each weight is off by up to 2**-23 of itself, as fp32's.

        The largest changes of two seeded sets of such weights: `logits`, of a position's relative
        to the largest of them, and `caches`, of a layer's keys or values likewise.
        """
        passage = replace(passage, cost=False)
        if passage in self._sensitivities:
            return self._sensitivities[passage]
        wanted = self.computed(passage, tuple)
        worst, rows = {"logits": 0.0, "caches": 0.0}, sorted(passage.rows)
        for seed in range(2):
            shaken = replace(self, weights=_shaken(self.weights, seed))
            (found,) = shaken.compute([passage])
            haves = {"logits": [*found.logits(rows)], "caches": found.keys + found.values}
            wants = {"logits": [*wanted.logits(rows)], "caches": wanted.keys + wanted.values}
            for part in worst:
                for have, want in zip(haves[part], wants[part], strict=True):
                    off = _largest_errors(have.flatten(), want.flatten())
                    worst[part] = max(worst[part], float(off / (want.abs().max() or 1.0)))
        self._sensitivities[passage] = worst
        return worst

    def _begun(self, passage: Passage, table: torch.Tensor) -> tuple[_Run, _Run | None]:
        tokens = torch.tensor(passage.tokens)
        check_tokens(tokens, self.config)
        length = len(tokens)
        computed = Computed(passage, torch.zeros(length, dtype=_EXACT))
        if passage.cost:
            computed.cost = Cost(torch.zeros(length, dtype=_EXACT))
        cos, sin = self.tables
        x, here = table[tokens], (cos[:length], sin[:length])

        def run(dtype: torch.dtype) -> _Run:
            return _Run(computed, x.to(dtype), whole_sequence(self.config, here, length, dtype))

        return run(_EXACT), run(self.dtype) if passage.cost else None

    def _run_layer(self, ops: Operations, layer: int, runs: Iterable[_Run]) -> None:
        window = self.windows[layer] if self.windows else None
        for run in runs:
            around = run.around._replace(mask=windowed(run.around.mask, window))
            block = self.config.architecture.block
            run.x, *run.cache = block(ops, f"layers.{layer}.", run.x, around, None)

    def _compute_logits(self, pairs: Sequence[tuple[_Run, _Run | None]]) -> None:
        norm = {"norm.weight": self.weights["norm.weight"]}
        for run in (run for pair in pairs for run in pair if run):
            run.x = Operations(self.config, norm, run.x.dtype).norm("norm", run.x)
        longest = max(len(exact.x) for exact, _ in pairs)
        output = self.weights["output.weight"]
        for rows in output.split(max(1, _MAX_LOGITS // longest)):
            exact_rows, rough_rows = rows.to(_EXACT), rows.to(self.dtype)
            for exact, rough in pairs:
                logits = F.linear(exact.x, exact_rows)
                exact.keep_logits(logits, None if rough is None else F.linear(rough.x, rough_rows))
        self.weights.release()


@dataclass
class _Run:
    """A passage in one precision, on its way through the layers: x [T, dim], and the last cache."""

    computed: Computed
    x: torch.Tensor
    around: Surroundings
    cache: list[torch.Tensor] = field(default_factory=list)

    def keep_caches(self, rough: _Run | None) -> None:
        """Keep this layer's keys and values, and their errors."""
        computed = self.computed
        if computed.passage.caches:
            for kept, new in zip((computed.keys, computed.values), self.cache, strict=True):
                kept.append(new)
            for want, have in zip(self.cache, rough.cache if rough else (), strict=False):
                assert computed.cost
                off = _largest_errors(have.flatten(), want.flatten()) / (want.abs().max() or 1.0)
                computed.cost.caches = max(computed.cost.caches, float(off))

    def keep_logits(self, logits: torch.Tensor, rough: torch.Tensor | None) -> None:
        """Keep a piece of the logits [T, rows of the output layer], and its errors."""
        computed = self.computed
        computed.largest = torch.maximum(computed.largest, logits.abs().amax(-1))
        computed._logits.append(logits[sorted(computed.passage.rows)])
        if rough is not None:
            assert computed.cost
            off = _largest_errors(rough, logits)
            computed.cost.logits = torch.maximum(computed.cost.logits, off)


def _shaken(weights: Weights, seed: int) -> Weights:
    """Return weights in fp64, each off by up to 2**-23 of itself."""
    generator = torch.Generator().manual_seed(seed)

    def make(name: str) -> torch.Tensor:
        weight = weights[name]
        factor = torch.rand(weight.shape, generator=generator, dtype=_EXACT)
        return factor.mul_(2.0**-22).sub_(2.0**-23).add_(1).mul_(weight)

    return Weights({name: partial(make, name) for name in weights}, weights.size, weights.release)


def _largest_errors(have: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Return the largest error along the last axis, infinite for NaN."""
    return (have.double() - want).abs().amax(-1).nan_to_num(torch.inf, torch.inf)


class _ByHeads(Operations):
    """Operations whose attention over a long sequence computes a few heads at a time."""

    def attend(
        self, layer: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        per_group = q.shape[-3] // k.shape[-3]
        count = max(1, _MAX_SCORES // (per_group * mask.numel()))
        rows = max(1, _MAX_SCORES // (per_group * mask.shape[-1]))  # of one group
        attend = super().attend
        heads = [
            torch.cat(
                [
                    attend(layer, some, keys, values, seen)
                    for some, seen in zip(queries.split(rows, -2), mask.split(rows), strict=True)
                ],
                -2,
            )
            for queries, keys, values in zip(
                q.split(count * per_group, -3), k.split(count, -3), v.split(count, -3), strict=True
            )
        ]
        return torch.cat(heads, -1)

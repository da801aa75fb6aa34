"""Sliding windows and both cache styles equal an oracle that masks by definition."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from harness.errors import HarnessError
from harness.export.overlays import cached_versions, version_of
from harness.generate import generate
from harness.generate.caches import CacheStyle, Rows, Slots
from harness.generate.layout import parse_layout
from harness.generate.lookahead import Lookahead
from harness.generate.session import Session
from harness.models import Surroundings
from harness.models.model import Operations, evaluate
from harness.pte import TensorSpec
from tests.generate.eager_llama import (
    EagerMethod,
    EagerModel,
    eager_model,
    phase_constants,
    random_weights,
    small_config,
)
from tests.generate.test_session import assert_close, follow, sequence

ROOT = Path(__file__).resolve().parents[2]
INPUT_LEN, CONTEXT = 4, 21
MODES = ["single", "multifunction"]
STYLES: list[CacheStyle] = ["smart_mask", "shift_pointer"]
WINDOWS = [(None, 3), (3, None, 6), (None, 1), (4, 9, None), (None, None)]

Windows = Sequence[int | None]


class WindowedOracle(Operations):
    """Attention over a whole sequence: a token sees itself and the `window - 1` before it."""

    windows: Windows

    def attend(
        self, layer: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        window = self.windows[int(layer.split(".")[1])] or q.shape[-2]
        hidden = torch.ones(mask.shape, dtype=torch.bool).tril(-window)
        return super().attend(layer, q, k, v, mask.masked_fill(hidden, -torch.inf))


class WindowedMethod(Operations):
    """A static method with a mask for each length of a cache."""

    def attend(
        self, layer: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        return super().attend(layer, q, k, v, self.masks[k.shape[-2] - q.shape[-2]][0])

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n = self.config.n_layers
        tokens, *rest = inputs
        masks, (cos, sin), caches = (
            rest[: self.n_masks],
            rest[self.n_masks :][:2],
            rest[self.n_masks + 2 :],
        )
        self.masks = {mask.shape[2] - mask.shape[1]: mask.double() for mask in masks}
        past = [
            (k[0].double(), v[0].double())
            for k, v in zip(caches[:n], caches[n : 2 * n], strict=True)
        ]
        last = caches[2 * n] if len(caches) > 2 * n else None
        around = Surroundings(cos.double(), sin.double(), torch.empty(0))
        logits, keys, values = evaluate(self, tokens[0], around, past, last)
        return (logits[None], *(k[None] for k in keys), *(v[None] for v in values))


def windowed_model(mode: str, windows: Windows) -> EagerModel:
    """Return a model whose layers have these windows, None for full attention."""
    made = eager_model(mode, INPUT_LEN, CONTEXT, n_layers=len(windows))
    config = small_config(len(windows))
    weights = random_weights(config)
    for name, method in made.methods.items():
        length = method.inputs[0].shape[1]
        full = method.inputs[4].shape[2]
        lengths = [window or full for window in windows]
        distinct = list(dict.fromkeys(lengths))
        ops = WindowedMethod(config, weights, torch.float64)
        ops.n_masks = len(distinct)
        tokens, _, cos, sin, *others = method.inputs
        masks = [TensorSpec(f"mask{n}", (1, length, n + length), "float16") for n in distinct]
        caches = [
            replace(spec, shape=(1, config.n_kv_heads, n, config.head_dim))
            for spec, n in zip(others, [*lengths, *lengths], strict=False)
        ]
        inputs = (tokens, *masks, cos, sin, *caches, *others[len(caches) :])
        made.methods[name] = EagerMethod(name, inputs, method.outputs, ops)
        prefix = "" if mode == "single" else {"forward": "decode_", "prefill": "prefill_"}[name]
        constants = phase_constants(prefix, length, full, config.n_layers)
        more = len(distinct) - 1
        specs = constants[f"{prefix}kv_cache_specs"] + [more, 0, more, 0, 0]
        specs[:, 4] = lengths
        constants[f"{prefix}kv_cache_specs"] = specs
        constants[f"{prefix}mask_specs"] = torch.tensor(
            [[1 + i, n] for i, n in enumerate(distinct)]
        ).numpy()
        for table in ("cos", "sin"):
            constants[f"{prefix}freqs_{table}_input_index"] += more
        made.constants.update(constants)
    made.oracle._ops = WindowedOracle(config, weights, torch.float64)
    made.oracle._ops.windows = windows
    return made


def session_of(model: EagerModel, style: CacheStyle) -> Session:
    return Session(model.methods, parse_layout(model.constants, model.methods), style)


def assert_caches(session: Session, model: EagerModel, windows: Windows, tokens: list[int]) -> None:
    """Compare every layer's caches with the newest keys and values of the oracle, in order."""
    _, keys, values = model.oracle(torch.tensor(tokens))
    end = min(len(tokens), session.layout.cache_len)
    for layer, window in enumerate(windows):
        begin = max(0, end - (window or end))
        assert_close(session.keys(layer), keys[layer][:, begin:end])
        assert_close(session.values(layer), values[layer][:, begin:end])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("mode", MODES)
def test_any_split_equals_the_oracle_in_both_styles(
    mode: str, windows: Windows, style: CacheStyle
) -> None:
    model = windowed_model(mode, windows)
    for seed in range(6):
        session, rng = session_of(model, style), random.Random(seed)
        tokens, fed = sequence(CONTEXT, seed), 0
        expected, _, _ = model.oracle(torch.tensor(tokens))
        while fed < CONTEXT:
            size = rng.randint(1, min(INPUT_LEN - len(session.tail), CONTEXT - fed))
            logits = session.feed(tokens[fed : fed + size], "decode" if size == 1 else "prefill")
            fed += size
            assert_close(logits, expected[fed - len(logits) : fed])
            assert_caches(session, model, windows, tokens[:fed])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("windows", WINDOWS)
def test_a_window_that_is_rewound_goes_on_like_a_new_sequence(
    windows: Windows, style: CacheStyle
) -> None:
    model = windowed_model("single", windows)
    tokens, other = sequence(CONTEXT, seed=5), sequence(CONTEXT, seed=6)
    for fed in (9, CONTEXT):
        for back in range(fed + 1):
            session = session_of(model, style)
            session.prefill(tokens[:fed])
            session.rewind(back)
            assert session.position == back
            joined = [*tokens[:back], *other[back:]]
            expected, _, _ = model.oracle(torch.tensor(joined))
            assert_close(
                session.prefill(joined[back:]) if back < CONTEXT else expected[-1], expected[-1]
            )
            assert_caches(session, model, windows, joined)


def test_rewinding_calls_the_method_only_for_what_a_window_lost() -> None:
    session = session_of(windowed_model("single", (None, 3)), "smart_mask")
    session.prefill(sequence(9))
    assert session.calls == 3
    session.rewind(8)  # the window holds positions 6, 7, 8: the token at 8 sees 6 and 7
    assert session.calls == 3
    session.rewind(7)  # position 5 was evicted
    assert session.calls == 3 + 2
    assert session.position == 7


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("windows", WINDOWS)
def test_lookahead_equals_greedy_decoding_over_windows(windows: Windows, style: CacheStyle) -> None:
    model = windowed_model("single", windows)
    for length in (1, 3, 4, 5, 10, CONTEXT - 4, CONTEXT - 1, CONTEXT):
        session, prompt = session_of(model, style), sequence(length, seed=length)
        produced = generate(session, prompt, 100, lookahead=Lookahead(3, 1, 1))
        found = [step.token for step in produced]
        assert found == model.recomputed(prompt, CONTEXT - length + 1)
        assert_caches(session, model, windows, [*prompt, *found[:-1]])


@pytest.mark.parametrize("mode", MODES)
def test_styles_differ_only_in_where_they_place_positions(mode: str) -> None:
    model = eager_model(mode, INPUT_LEN, CONTEXT)
    sessions = [session_of(model, style) for style in STYLES]
    for session in sessions:
        follow(session, model, sequence(10), [4, 3, 1, 1, 1])
    smart, shifted = (session._caches.keys[0] for session in sessions)
    assert_close(smart[:, :, :10], shifted[:, :, -10:])
    assert not smart[:, :, 10:].any() and not shifted[:, :, :-10].any()


def test_an_unknown_style_is_refused() -> None:
    model = eager_model("single", INPUT_LEN, CONTEXT)
    with pytest.raises(
        HarnessError, match="no cache style 'ring', only smart_mask and shift_pointer"
    ):
        session_of(model, "ring")


_CACHE_MASK, _PIECES = Slots.cache_mask, Slots.pieces


def the_whole_ring_is_seen(slots: Slots, position: int, rows: Rows) -> torch.Tensor:
    """ExecuTorch before 1.5: each row sees all slots, and so more than its window."""
    return torch.where(slots.held[0, 0] >= 0, 0.0, -torch.inf)


def the_window_is_one_short(slots: Slots, position: int, rows: Rows) -> torch.Tensor:
    oldest = slots.held[0, 0] == rows.depths[:, None] + position - slots.length + 1
    shown = _CACHE_MASK(slots, position, rows)
    return shown.expand(len(rows.depths), -1).masked_fill(oldest, -torch.inf)


def the_chunk_has_no_window(slots: Slots, rows: Rows) -> torch.Tensor:
    return rows.visible


def the_ring_does_not_wrap(
    slots: Slots, position: int, first: int, count: int
) -> list[tuple[slice, slice]]:
    return _PIECES(slots, min(position, max(0, slots.length - count)), first, count)


BROKEN = [
    ("cache_mask", the_whole_ring_is_seen),
    ("cache_mask", the_window_is_one_short),
    ("near", the_chunk_has_no_window),
    ("pieces", the_ring_does_not_wrap),
]


@pytest.mark.parametrize(("name", "broken"), BROKEN)
@pytest.mark.parametrize("mode", MODES)
def test_a_broken_window_differs_from_the_oracle(
    mode: str, name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slots, name, broken)
    with pytest.raises((AssertionError, RuntimeError)):
        test_any_split_equals_the_oracle_in_both_styles(mode, (None, 3), "smart_mask")


def test_phases_with_other_windows_are_refused() -> None:
    model = windowed_model("multifunction", (None, 3))
    other = windowed_model("multifunction", (None, 5))
    model.methods["prefill"] = other.methods["prefill"]
    model.constants |= {k: v for k, v in other.constants.items() if k.startswith("prefill_")}
    with pytest.raises(HarnessError, match=r"list of masks of prefill is \[5, 20\] and that of"):
        parse_layout(model.constants, model.methods)


def test_a_cache_without_a_mask_of_its_length_is_refused() -> None:
    model = windowed_model("single", (None, 3))
    model.constants["kv_cache_specs"][1, 4] = 5
    with pytest.raises(
        HarnessError, match="gives a cache length of 5, 'mask_specs' one of 17 or 3"
    ):
        parse_layout(model.constants, model.methods)


@pytest.mark.parametrize("lengths", ["12,12", "20,5,8,3", "24,4,16", "2,24,1"])
def test_masks_and_caches_are_those_of_executorchs_own_manager(lengths: str) -> None:
    environment = dict(os.environ)
    if len(set(lengths.split(","))) > 1:  # before 1.5 each row sees the whole ring
        newer = [f for f in cached_versions() if Version(version_of(f)) >= Version("1.5")]
        if not newer:
            pytest.skip("no ExecuTorch 1.5 is at hand: harness export --exporter executorch@1.5.1")
        environment["PYTHONPATH"] = os.pathsep.join([str(newer[-1]), str(ROOT)])
    command = [sys.executable, "-m", "tests.generate.manager", lengths]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500

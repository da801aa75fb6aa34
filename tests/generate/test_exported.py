"""Lookahead, interleaved sessions and sliding windows on programs of ExecuTorch's exporter."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.artifact import open_artifact
from harness.cli import main
from harness.fixtures import model
from harness.fixtures.cache import exported, fixture
from harness.generate import generate
from harness.generate.lookahead import Lookahead
from harness.generate.session import Session
from harness.generate.tokenizer import load_tokenizer
from harness.models.checkpoint import load_checkpoint
from harness.models.config import load_params
from harness.models.model import Oracle
from tests.generate.export_windows import WINDOWS
from tests.generate.test_caches import STYLES, WindowedOracle

ROOT = Path(__file__).resolve().parents[2]

TEXTS = [
    "Today is Friday. Tomorrow is",
    "a b a b a b a b a b a b",
    "one two three one two three one two three",
]


@pytest.fixture(scope="module")
def tiny() -> Path:
    return exported("tiny", replace(model("tiny").options, mode="single"))


@pytest.mark.parametrize("text", TEXTS)
def test_lookahead_equals_greedy_decoding_to_the_last_position(tiny: Path, text: str) -> None:
    session = Session.open(tiny, "mil:widen")
    prompt = load_tokenizer(fixture("tiny").tokenizer).encode(text)
    plain = [step.token for step in generate(session, prompt, 500)]
    calls = session.calls
    for sizes in (Lookahead(5, 2, 2), Lookahead(3, 4, 4), Lookahead(2, 8, 8)):
        session.reset()
        assert [s.token for s in generate(session, prompt, 500, lookahead=sizes)] == plain
        assert session.calls <= 0.75 * calls  # tiny's sayings repeat themselves


def test_sessions_on_one_program_take_turns(tiny: Path) -> None:
    artifact = open_artifact(tiny)
    encode = load_tokenizer(fixture("tiny").tokenizer).encode
    prompts = [encode(text) for text in TEXTS]
    alone = []
    for prompt in prompts:
        session = Session.open(artifact, "mil:widen")
        alone.append([step.token for step in generate(session, prompt, 20)])
    sessions = [Session.open(artifact, "mil:widen") for _ in TEXTS]
    modes = (None, Lookahead(5, 2, 2), None)
    steps = [
        generate(session, prompt, 20, lookahead=mode)
        for session, prompt, mode in zip(sessions, prompts, modes, strict=True)
    ]
    turns = zip(*steps, strict=True)
    assert [[step.token for step in found] for found in zip(*turns, strict=True)] == alone


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export tiny by ExecuTorch with the window of each layer as the length of its caches."""
    path = tmp_path_factory.mktemp("windows") / "windows.pte"
    command = [sys.executable, "-m", "tests.generate.export_windows", str(path)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=600)
    return path


@pytest.mark.parametrize("style", STYLES)
def test_windows_of_an_exported_program_evict(windowed: Path, style: str) -> None:
    session = Session.open(windowed, "mil:widen", style=style)
    assert [cache.length for cache in session.layout.decode.caches] == [5, 32, 19, 5]
    made = fixture("tiny")
    config = load_params(made.params)
    weights = load_checkpoint(made.checkpoint, config)
    oracle = Oracle(config, weights)
    oracle._ops = WindowedOracle(config, weights, torch.float64)
    oracle._ops.windows = WINDOWS
    tokens = torch.randint(512, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    tables = session.layout.freqs_cos, session.layout.freqs_sin
    expected, keys, values = oracle(torch.tensor(tokens), tables)
    found = [session.prefill_all(tokens[:13])]
    found += [session.decode(token)[None] for token in tokens[13:]]
    torch.testing.assert_close(torch.cat(found).double(), expected, rtol=0, atol=1e-3)
    for layer, window in enumerate(WINDOWS):
        held = slice(32 - (window or 32), 32)
        for mine, theirs in ((session.keys, keys), (session.values, values)):
            torch.testing.assert_close(
                mine(layer).double(), theirs[layer][:, held], rtol=0, atol=1e-3
            )


@pytest.mark.parametrize("runtime", ["mil:widen", "eager:fp32"])
def test_a_program_with_windows_passes_every_check(windowed: Path, runtime: str) -> None:
    made = fixture("tiny")
    words = ["check", windowed, "--checkpoint", made.checkpoint, "--params", made.params]
    assert main([*map(str, words), "--runtime", runtime]) == 0


def test_lookahead_over_windows_of_an_exported_program_is_greedy(windowed: Path) -> None:
    session = Session.open(windowed, "mil:widen")
    prompt = load_tokenizer(fixture("tiny").tokenizer).encode(TEXTS[0])
    plain = [step.token for step in generate(session, prompt, 100)]
    session.reset()
    assert [s.token for s in generate(session, prompt, 100, lookahead=Lookahead(3, 2, 2))] == plain
    assert session.position == 40

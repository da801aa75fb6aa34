"""Perplexity, divergence and agreement are those of transformers on the same weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cli import main
from harness.errors import HarnessError
from harness.export.coreml import export
from harness.export.options import ExportOptions
from harness.generate.session import Session
from harness.measure.text import Estimate, TextMeasure, TextResult
from harness.subject import Subject

CONTEXT = 24
VOCAB = 300
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "rms_norm_eps": 1e-5,
}
TOKENS = torch.randint(VOCAB, (60,), generator=torch.Generator().manual_seed(9)).tolist()
WIDE = ["mil:widen", "eager:fp32"]


def save(folder: Path, noise: float, vocab_size: int = VOCAB) -> Any:
    """Save a Llama of transformers whose weights are off by noise; return it in fp64."""
    sizes = {**SIZES, "vocab_size": vocab_size}
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0, 0.2) if "norm" in name else parameter.normal_(0, 0.2)
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model.double()


def exports_of(folder: Path) -> dict[str, Path]:
    """Export the model in a folder in both modes, in fp32 and without quantization."""
    options = ExportOptions(
        input_len=4,
        max_context_len=CONTEXT,
        dtype="fp32",
        embedding_quantize=None,
        linear_quantize="none",
        target_split_size=None,
    )
    model = folder / "model"
    return {
        mode: export(model, model / "config.json", replace(options, mode=mode), folder / mode)
        for mode in ("single", "multifunction")
    }


class Material:
    """A model of transformers and another near it, with exports of the first in both modes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = save(folder / "model", 0.0)
        self.other = save(folder / "other", 0.01)
        self.exports = exports_of(folder)

    def subject(self, mode: str, of: str | None) -> Subject:
        """Return the export, held against the model of a folder or against its own weights."""
        if of is None:
            return Subject(self.exports[mode])
        return Subject(self.exports[mode], self.folder / of, self.folder / of / "config.json")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(tmp_path_factory.mktemp("text"))


def by_definition(model: Any, tokens: list[int], context: int) -> torch.Tensor:
    """Return the log probabilities [tokens - 1, vocab] of what follows each token, by chunks."""
    starts = range(0, len(tokens) - 1, context)
    with torch.no_grad():
        rows = [model(torch.tensor([tokens[:-1][s : s + context]])).logits[0] for s in starts]
    return torch.cat(rows).log_softmax(-1)


def losses(table: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    return torch.tensor([-float(table[i, token]) for i, token in enumerate(tokens[1:])])


def last(measure: TextMeasure, tokens: list[int] = TOKENS) -> TextResult:
    *_, result = measure.measure(tokens)
    assert result.predicted == len(tokens) - 1
    return result


def near(found: Estimate, values: torch.Tensor, rel: float = 1e-4) -> None:
    assert found.value == pytest.approx(float(values.double().mean()), rel=rel)
    deviation = float(values.double().std()) / math.sqrt(len(values))
    assert found.standard_error == pytest.approx(deviation, rel=rel, abs=1e-12)


@pytest.mark.parametrize("mode", ["single", "multifunction"])
@pytest.mark.parametrize("context", [None, 2, 7])
def test_perplexity_is_that_of_transformers(
    material: Material, mode: str, context: int | None
) -> None:
    wanted = losses(by_definition(material.model, TOKENS, context or CONTEXT), TOKENS)
    perplexity = math.exp(float(wanted.double().mean()))
    error = perplexity * float(wanted.double().std()) / math.sqrt(len(wanted))
    result = last(TextMeasure(material.subject(mode, None), WIDE, context))
    assert result.oracle is not None
    for figures in (result.oracle, *result.runtimes.values()):
        assert figures["perplexity"].value == pytest.approx(perplexity, rel=1e-5)
        assert figures["perplexity"].standard_error == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("mode", ["single", "multifunction"])
@pytest.mark.parametrize("unquantized", [False, True])
def test_distance_from_another_model_is_that_of_transformers(
    material: Material, mode: str, unquantized: bool
) -> None:
    have, want = (by_definition(m, TOKENS, CONTEXT) for m in (material.model, material.other))
    divergence = (want.exp() * (want - have)).sum(-1)
    agrees = (want.argmax(-1) == have.argmax(-1)).double()
    ratio = math.exp(float((losses(have, TOKENS) - losses(want, TOKENS)).double().mean()))
    assert 0.5 < agrees.mean() < 1 and divergence.mean() > 1e-3  # there is something to measure
    subject = material.subject(mode, "other")
    for figures in last(TextMeasure(subject, WIDE, None, unquantized)).runtimes.values():
        near(figures["kl_divergence"], divergence, rel=1e-3)
        near(figures["top1_agreement"], agrees)
        assert figures["perplexity_over_oracle"].value == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("mode", ["single", "multifunction"])
def test_a_sound_artifact_agrees_with_its_checkpoint(material: Material, mode: str) -> None:
    for figures in last(TextMeasure(material.subject(mode, "model"), WIDE)).runtimes.values():
        assert figures["top1_agreement"] == Estimate(1.0, 0.0)
        assert 0 <= figures["kl_divergence"].value < 1e-9
        assert figures["perplexity_over_oracle"].value == pytest.approx(1, abs=1e-6)


def test_without_the_oracle_the_perplexity_is_the_same(material: Material) -> None:
    subject = material.subject("multifunction", None)
    with_oracle = last(TextMeasure(subject, ["mil:widen"])).runtimes["mil:widen"]
    result = last(TextMeasure(subject, ["mil:widen"], has_oracle=False))
    assert result.oracle is None
    assert result.runtimes == {"mil:widen": {"perplexity": with_oracle["perplexity"]}}


def test_each_chunk_starts_from_empty_caches_and_gives_a_result(material: Material) -> None:
    seen: list[tuple[str, int, int]] = []
    measure = TextMeasure(material.subject("single", None), ["mil:widen"])
    results = list(measure.measure(TOKENS, lambda *step: seen.append(step)))
    assert [result.predicted for result in results] == [24, 48, 59]
    (again, *_) = measure.measure(TOKENS)
    assert again == results[0]
    assert seen[0] == ("chunk 1 of 3: oracle", 0, 59)
    assert seen[-1] == ("chunk 3 of 3: mil:widen", 56, 59)


def test_a_cache_that_outlives_its_chunk_would_be_seen(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = TextMeasure(material.subject("single", None), ["eager:fp32"], context=8)
    monkeypatch.setattr(Session, "reset", lambda session: None)
    (figures,) = last(measure, TOKENS[:17]).runtimes.values()
    assert figures["kl_divergence"].value > 1e-3


def test_what_cannot_be_measured_is_one_sentence(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = material.subject("single", None)
    with pytest.raises(HarnessError, match="--context 25: a chunk has 2 to 24 tokens"):
        TextMeasure(subject, ["mil:widen"], context=25)
    with pytest.raises(HarnessError, match="give --checkpoint too"):
        TextMeasure(subject, ["mil:widen"], unquantized=True)
    measure = TextMeasure(subject, ["mil:widen"])
    with pytest.raises(HarnessError, match="the text has 2 tokens: three at least are needed"):
        next(measure.measure(TOKENS[:2]))
    whole = Session.prefill_all

    def overflowing(session: Session, tokens: list[int]) -> torch.Tensor:
        logits = whole(session, tokens)
        logits[-1, 7] = torch.inf if session.position == 12 else logits[-1, 7]
        return logits

    monkeypatch.setattr(Session, "prefill_all", overflowing)
    with pytest.raises(HarnessError, match="mil:widen: the logits of position 11 of the text are"):
        next(measure.measure(TOKENS))


SENTENCES = "Today is Friday. Tomorrow is Saturday. One and two is three. " * 20


def call(tmp_path: Path, *options: str, text: bytes = SENTENCES.encode()) -> int:
    file = tmp_path / "text.txt"
    file.write_bytes(text)
    return main(["text", "coreml:tiny/multifunction", "--text", str(file), *options])


def test_a_user_reads_a_table_or_an_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--runtime", "mil:widen", "--runtime", "eager:fp32"]
    assert call(tmp_path, *both, "--max-tokens", "40") == 0
    out, err = capsys.readouterr()
    assert "only the first 40 tokens are measured; see --max-tokens" in err
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["oracle", *both[1::2]]
    assert "over 39 predicted tokens, in chunks of 128 (multifunction)" in out
    assert call(tmp_path, *both, "--max-tokens", "40", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["runtimes"]) == both[1::2]
    widen, eager = (row["perplexity"] for row in result["runtimes"].values())
    assert 1 < widen["value"] < 10 and widen["value"] == pytest.approx(eager["value"], rel=1e-4)
    assert f"{widen['value']:.4f} ± {widen['standard_error']:.4f}" in out


def test_an_interruption_keeps_what_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TextMeasure.measure

    def interrupted(*arguments: Any) -> Any:
        yield next(whole(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(TextMeasure, "measure", interrupted)
    assert call(tmp_path, "--json") == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["predicted"] == 128
    assert "harness text: interrupted after 128 of " in err


BAD = [
    ([], b"na\xefve", "text.txt: byte 2 is not UTF-8"),
    ([], b"", "the text has 1 token: three"),
    (["--max-tokens", "2"], b"text", "--max-tokens must be at least 3, not 2"),
    (["--context", "129"], b"text", "--context 129: a chunk has 2 to 128 tokens"),
    (["--runtime", "abacus"], b"text", "no runtime 'abacus'"),
]


@pytest.mark.parametrize(("options", "text", "expected"), BAD)
def test_a_bad_call_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    text: bytes,
    expected: str,
) -> None:
    assert call(tmp_path, *options, text=text) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("harness text: ") and expected in err
    assert err.count("\n") == 1

"""The streamed model gives what the oracle gives, and holds the weights of one layer at a time."""

import weakref
from functools import partial

import pytest
import torch

from harness.errors import HarnessError
from harness.fixtures.small_llama import write_model
from harness.models import Quantization, Weights
from harness.models import stream as room
from harness.models.checkpoint import load_checkpoint
from harness.models.config import load_params, parse_params
from harness.models.model import Oracle, rope_tables
from harness.models.quantize import exported_weights
from harness.models.stream import Passage, StreamedModel, checkpoint_weights, whole_passage
from tests.models.test_model import CONFIG, PARAMS, WEIGHTS, random_tokens

WINDOWS = [None, 4, 7]
WRONG = "layers.1.feed_forward.w2.weight"


def streamed(weights=WEIGHTS, windows=(), **changes):
    makers = {name: partial(weights.__getitem__, name) for name in weights}
    config = parse_params(PARAMS | changes)
    tables = rope_tables(config, 24)
    return StreamedModel(config, Weights(makers, 1 << 30), torch.float16, tables, windows)


def passage(tokens, **options):
    return Passage(tuple(tokens.tolist()), frozenset(range(len(tokens))), **options)


def assert_same(found, wanted, tokens):
    logits, keys, values = wanted
    torch.testing.assert_close(found.logits(range(len(tokens))), logits)
    torch.testing.assert_close([*found.keys, *found.values], [*keys, *values])
    torch.testing.assert_close(found.largest, logits.abs().amax(-1))


@pytest.mark.parametrize("windows", [(), WINDOWS])
def test_each_sequence_gives_what_the_oracle_gives(windows, monkeypatch):
    monkeypatch.setattr(room, "_MAX_SCORES", 200)  # of one key-value head at most
    monkeypatch.setattr(room, "_MAX_LOGITS", 70)
    texts = [random_tokens(length, seed=length) for length in (1, 7, 18)]
    oracle = Oracle(CONFIG, WEIGHTS, windows=windows)
    found = streamed(windows=windows).compute([whole_passage(text) for text in texts])
    for text, one in zip(texts, found, strict=True):
        assert_same(one, oracle(text), text)


def test_the_cost_is_the_error_of_the_same_model_in_fp16():
    text = random_tokens(18)
    (found,) = streamed().compute([passage(text, caches=True, cost=True)])
    tables = rope_tables(CONFIG, len(text))
    exact, rough = (Oracle(CONFIG, WEIGHTS, d)(text, tables) for d in (torch.float64, torch.half))
    off = (rough[0].double() - exact[0]).abs().amax(-1)
    torch.testing.assert_close(found.cost.logits, off, rtol=0.1, atol=0)
    pairs = zip([*rough[1], *rough[2]], [*exact[1], *exact[2]], strict=True)
    caches = max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)
    assert found.cost.caches == pytest.approx(caches, rel=0.1)


def test_overflow_costs_infinity():
    large = {name: w * (1e7 if "embed" in name else 1) for name, w in WEIGHTS.items()}
    (found,) = streamed(large).compute([passage(random_tokens(9), cost=True)])
    assert found.cost.logits.isinf().any() and found.largest.isfinite().all()


def test_at_most_one_layer_is_alive():
    alive = weakref.WeakSet()
    most = 0

    def make(name):
        nonlocal most
        weight = WEIGHTS[name].clone()
        alive.add(weight)
        most = max(most, len(alive))
        return weight

    model = streamed()
    model.weights = Weights({name: partial(make, name) for name in WEIGHTS}, 1 << 30)
    model.compute([passage(random_tokens(5), cost=True)])
    assert most <= len(WEIGHTS) // CONFIG.n_layers + 1


def test_passages_are_computed_once_and_together():
    model, first, second = streamed(), passage(random_tokens(9)), passage(random_tokens(5, seed=1))
    made = []
    model.weights.makers["norm.weight"] = lambda: made.append(1) or WEIGHTS["norm.weight"]
    model.computed(first, lambda: (second,))
    wider = Passage(second.tokens, frozenset((4,)))
    assert model.computed(second, tuple) is model.computed(wider, tuple)
    assert made == [1]
    model.computed(passage(random_tokens(9), caches=True), tuple)
    assert made == [1, 1]


def test_a_token_outside_the_vocabulary_is_refused():
    with pytest.raises(HarnessError, match="token 120 is outside the vocabulary of 120"):
        streamed().compute([Passage((3, 120), frozenset((1,)))])


@pytest.fixture
def exported(tmp_path):
    """Return a checkpoint's path, its config and quantization, and the weights that they give."""
    path, params = write_model(tmp_path)
    config, quantization = load_params(params), Quantization("fp16", (8, 32), (4, 32))
    wanted = exported_weights(load_checkpoint(path, config), config, quantization)
    return path, config, quantization, wanted


def test_weights_equal_to_the_artifacts_are_read_from_there(exported, monkeypatch):
    path, config, quantization, wanted = exported
    stored = {name: weight.float() for name, weight in wanted.items()}
    stored[WRONG] = stored[WRONG] * 2
    makers = {name: partial(stored.__getitem__, name) for name in stored}
    quantized, quantize = [], room.exported_weight
    monkeypatch.setattr(
        room, "exported_weight", lambda *given: quantized.append(1) or quantize(*given)
    )
    weights = checkpoint_weights(path, config, quantization, Weights(makers, 1 << 30))
    for _ in range(2):
        for name, want in wanted.items():
            found = weights[name]
            assert found.dtype == want.dtype and torch.equal(found, want), name
    schemes = quantization.schemes(config)
    again = [name for name in wanted if schemes.get(name) is None or name == WRONG]
    assert len(quantized) == len(wanted) + len(again)


def test_a_checkpoint_is_mapped_again_after_much_of_it_was_read(exported, monkeypatch):
    path, config, quantization, wanted = exported
    loads, load = [], room.load_checkpoint
    monkeypatch.setattr(room, "load_checkpoint", lambda *given: loads.append(1) or load(*given))
    monkeypatch.setattr(room, "_MAX_MAPPED", wanted["norm.weight"].nbytes)
    held = Weights({}, 1 << 30)
    weights = checkpoint_weights(path, config, quantization, held)
    for name, want in wanted.items():
        assert torch.equal(weights[name], want)
        weights.release()
    assert len(loads) > 5


def test_a_name_is_found_without_its_weight():
    def make():
        raise AssertionError("the weight was made")

    weights = Weights({"norm.weight": make}, 1)
    assert "norm.weight" in weights and "other" not in weights
    assert not weights.keys() ^ {"norm.weight"}


def test_a_small_model_is_kept_and_a_larger_one_is_not():
    for size, is_kept in ((1 << 10, True), (1 << 30, False)):
        weights = Weights({"norm.weight": lambda: torch.ones(4)}, size)
        assert (weights["norm.weight"] is weights["norm.weight"]) is is_kept


def test_sensitivity_is_small_but_where_large_weights_cancel():
    text = random_tokens(5)
    found = streamed().sensitivity(passage(text, caches=True))
    assert found.keys() == {"logits", "caches"} and all(1e-8 < x < 1e-6 for x in found.values())
    weights = {name: weight.clone() for name, weight in WEIGHTS.items()}
    for name, weight in weights.items():
        if name.endswith(("wo.weight", "w2.weight")):
            weight.zero_()  # x remains the embedding
    weights["tok_embeddings.weight"] = torch.ones_like(weights["tok_embeddings.weight"])
    weights["norm.weight"] = torch.ones_like(weights["norm.weight"])
    plain = streamed(weights).sensitivity(passage(text))["logits"]
    output = weights["output.weight"] = weights["output.weight"].double()
    output[:, 0] += 1e4
    output[:, 1] -= 1e4
    assert streamed(weights).sensitivity(passage(text))["logits"] > 1000 * plain


def test_a_passage_of_another_check_that_fails_hides_no_result():
    text = random_tokens(5)
    bad = Passage((CONFIG.vocab_size,), frozenset([0]))
    found = streamed().computed(whole_passage(text), lambda: [bad])
    assert_same(found, Oracle(CONFIG, WEIGHTS)(text, rope_tables(CONFIG, 5)), text)
    with pytest.raises(HarnessError, match="vocabulary"):
        streamed().computed(bad, tuple)

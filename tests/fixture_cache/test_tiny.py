"""The trained model in the repository: these tests measure the quality that it claims."""

import hashlib
import json

import pytest
import torch

from harness.fixtures import tiny
from harness.fixtures.grammar import RULES
from harness.fixtures.quality import MASTERED, cases, quality, tokens_of
from harness.fixtures.train_tiny import SCHEMES, Trained, rounded, train, train_tokenizer
from harness.generate.tokenizer import load_tokenizer
from harness.models.checkpoint import load_checkpoint
from harness.models.config import load_params
from harness.models.model import Oracle
from harness.models.quantize import exported_weights

RECIPE = json.loads((tiny.STORED / "recipe.json").read_text())
TOKENIZER = tiny.STORED / "tokenizer.model"
CONFIG = load_params(tiny.STORED / "params.json")


@pytest.fixture(scope="module")
def weights():
    return load_checkpoint(tiny.STORED / "checkpoint.safetensors", CONFIG)


def test_the_kept_files_are_those_of_the_recipe_and_small():
    for name in tiny.KEPT:
        data = (tiny.STORED / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == RECIPE["sha256"][name], name
        assert len(data) < 4e6
    assert RECIPE["sha256"].keys() == set(tiny.KEPT)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_speaks_as_the_recipe_says_and_nearly_always_right(weights, scheme):
    """The oracle measures it on the weights of an export with these options."""
    held = exported_weights(weights, CONFIG, SCHEMES[scheme])
    found = quality(held, CONFIG, TOKENIZER)
    recorded = RECIPE["quality"][scheme]
    assert found == pytest.approx(recorded, rel=2e-3)
    assert found["right"] >= 0.99
    assert found["right, other rules"] > 0.5
    assert found["perplexity of what follows"] < 1.02
    assert found["margin"] > 5


def test_every_case_of_the_conformance_suite_is_right_with_a_margin(weights):
    """This holds in each scheme: a wrong word in the suite is then the artifact's fault."""
    tokenizer = load_tokenizer(TOKENIZER)
    for options in SCHEMES.values():
        oracle = Oracle(CONFIG, exported_weights(weights, CONFIG, options), torch.float32)
        for case in (case for case in cases(4 * len(RULES)) if case.saying.rule in MASTERED):
            prompt, wanted = tokens_of(case, tokenizer)
            found = oracle(torch.tensor(prompt + wanted))[0][len(prompt) - 1 : -1]
            best = found.topk(2)
            assert best.indices[:, 0].tolist() == wanted, case
            assert (best.values[:, 0] - best.values[:, 1]).min() > 0.5, case


def test_a_damaged_model_is_told_from_the_sound_one(weights):
    broken = dict(weights)
    name = "layers.1.attention.wv.weight"
    broken[name] = weights[name].roll(1, 0)
    found = quality(broken, CONFIG, TOKENIZER, count=60)
    assert found["right"] < 0.8 and found["perplexity"] > RECIPE["quality"]["fp32"]["perplexity"]


def test_a_few_steps_of_the_recipe_are_the_same_bit_by_bit():
    tokenizer, threads = TOKENIZER.read_bytes(), torch.get_num_threads()
    first, again, longer = (train(tokenizer, steps) for steps in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], longer[name]) for name in first)
    assert torch.get_num_threads() == threads


def test_the_tokenizer_is_made_again_with_the_same_pieces():
    import sentencepiece

    kept = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    again = sentencepiece.SentencePieceProcessor(model_proto=train_tokenizer())
    assert [again.id_to_piece(i) for i in range(512)] == [kept.id_to_piece(i) for i in range(512)]


def test_what_is_trained_computes_what_the_oracle_computes(weights):
    tokens = torch.randint(512, (2, 40), generator=torch.Generator().manual_seed(0))
    found = Trained(CONFIG, {n: w.double() for n, w in weights.items()}).logits(tokens)
    for row, text in zip(found, tokens, strict=True):
        wanted = Oracle(CONFIG, weights)(text)[0]
        torch.testing.assert_close(row, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("group", [0, 32])
def test_rounding_leaves_fifteen_levels_and_passes_gradients_through(group):
    weight = torch.randn(8, 64, requires_grad=True)
    snapped = rounded(weight, group)
    for row in snapped.detach().view(-1, group or 64):
        assert len(row.unique()) <= 15
        assert (row - row.unique()[:, None]).abs().min(0).values.max() < 1e-6
    assert (snapped - weight).abs().max() <= weight.abs().max() / 7 / 2 + 1e-6
    snapped.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_the_built_folder_holds_the_kept_weights(tmp_path, weights):
    tiny.build(tmp_path)
    config = load_params(tmp_path / "params.json")
    built = load_checkpoint(tmp_path / "checkpoint.pth", config)
    assert all(torch.equal(built[name], weights[name]) for name in weights)
    assert load_tokenizer(tmp_path / "tokenizer.model").size == config.vocab_size


def test_the_model_is_grouped_and_deep_enough_to_be_cut():
    assert CONFIG.n_layers >= 3 and CONFIG.n_heads > CONFIG.n_kv_heads > 1


@pytest.mark.parametrize("text", ["Hello, the weather", "naïve 🦙\n\t", "0123", "\x01\x7f", "a  b"])
def test_any_text_comes_back(text):
    tokenizer = load_tokenizer(TOKENIZER)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_activations_are_healthy_on_text_that_means_nothing(weights):
    """Checks feed random tokens too, on which caches and logits must neither vanish nor explode."""
    tokens = torch.randint(512, (100,), generator=torch.Generator().manual_seed(0))
    found, keys, values = Oracle(CONFIG, weights)(tokens)
    assert 1 < found.std() < 12
    assert all(0.1 < cache.std() < 8 for cache in keys + values)

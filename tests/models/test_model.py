"""Compares the oracle with Hugging Face's Llama, and the static model with the oracle."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.errors import HarnessError
from harness.fixtures.random_model import random_weights
from harness.models.config import parse_params
from harness.models.model import Oracle, StaticModel, rope_tables

PARAMS = {
    "dim": 48,
    "n_layers": 3,
    "n_heads": 6,
    "n_kv_heads": 2,
    "head_dim": 16,
    "hidden_dim": 80,
    "vocab_size": 120,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
CONFIG = parse_params(PARAMS)
WEIGHTS = random_weights(CONFIG, seed=3)
SCALED = {"use_scaled_rope": True, "rope_scale_factor": 8}
CONTEXT = 24


def random_tokens(length, seed=0):
    return torch.randint(
        CONFIG.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)
    )


def to_halves(weight, n_heads):
    """Reorder the rows of a q or k weight from Meta's pairs to Hugging Face's halves."""
    rows, columns = weight.shape
    pairs = weight.view(n_heads, rows // n_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def hugging_face(params, weights):
    """Return transformers' Llama in fp64 with the same weights."""
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": params["rope_theta"]}
    if params.get("use_scaled_rope"):
        rope |= {
            "rope_type": "llama3",
            "factor": float(params["rope_scale_factor"]),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    config = transformers.LlamaConfig(
        hidden_size=params["dim"],
        intermediate_size=params["hidden_dim"],
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"],
        head_dim=params["head_dim"],
        vocab_size=params["vocab_size"],
        rms_norm_eps=params["norm_eps"],
        rope_parameters=rope,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    names = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    heads = {"attention.wq": params["n_heads"], "attention.wk": params["n_kv_heads"]}
    state = {
        "model.embed_tokens.weight": weights["tok_embeddings.weight"],
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights["output.weight"],
    }
    for layer in range(params["n_layers"]):
        for ours, theirs in names.items():
            weight = weights[f"layers.{layer}.{ours}.weight"]
            if ours in heads:
                weight = to_halves(weight, heads[ours])
            state[f"model.layers.{layer}.{theirs}.weight"] = weight
    model = transformers.LlamaForCausalLM(config).double().eval()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("scaling", [{}, SCALED], ids=["plain", "llama3"])
def test_the_oracle_equals_hugging_face(scaling):
    params = {**PARAMS, **scaling}
    tokens = random_tokens(40)
    with torch.no_grad():
        expected = hugging_face(params, WEIGHTS)(tokens[None], use_cache=True)
    logits, keys, values = Oracle(parse_params(params), WEIGHTS)(tokens)
    # transformers computes its RoPE tables in fp32 even in an fp64 model: 1e-6 of the scale
    torch.testing.assert_close(logits, expected.logits[0], rtol=0, atol=2e-5)
    for layer in range(CONFIG.n_layers):
        cached = expected.past_key_values.layers[layer]
        halves = torch.cat((keys[layer][..., ::2], keys[layer][..., 1::2]), dim=-1)
        torch.testing.assert_close(halves, cached.keys[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(values[layer], cached.values[0], rtol=0, atol=2e-5)


def test_the_wrong_rope_layout_would_fail_that_comparison():
    swapped = dict(WEIGHTS)
    for layer in range(CONFIG.n_layers):
        for name, n_heads in (("wq", CONFIG.n_heads), ("wk", CONFIG.n_kv_heads)):
            key = f"layers.{layer}.attention.{name}.weight"
            swapped[key] = to_halves(WEIGHTS[key], n_heads)
    tokens = random_tokens(40)
    difference = Oracle(CONFIG, WEIGHTS)(tokens)[0] - Oracle(CONFIG, swapped)(tokens)[0]
    assert difference.abs().max() > 0.1


def test_scaled_rope_matters_to_that_comparison():
    config = parse_params({**PARAMS, **SCALED})
    plain, scaled = rope_tables(CONFIG, 40), rope_tables(config, 40)
    assert (plain[0] - scaled[0]).abs().max() > 1e-3


def test_a_token_does_not_see_those_after_it():
    tokens = random_tokens(20)
    oracle = Oracle(CONFIG, WEIGHTS)
    whole, start = oracle(tokens)[0], oracle(tokens[:11])[0]
    torch.testing.assert_close(whole[:11], start, rtol=0, atol=1e-12)


def test_tables_from_the_caller_are_used():
    tokens, oracle = random_tokens(8), Oracle(CONFIG, WEIGHTS)
    exact = rope_tables(CONFIG, 8)
    rounded = tuple(table.half() for table in exact)
    assert torch.equal(oracle(tokens)[0], oracle(tokens, exact)[0])
    difference = (oracle(tokens)[0] - oracle(tokens, rounded)[0]).abs().max()
    assert 0 < difference < 0.05


def test_no_token_is_an_error_and_so_is_one_outside_the_vocabulary():
    oracle = Oracle(CONFIG, WEIGHTS)
    for tokens, sentence in (
        (torch.zeros(0, dtype=torch.long), "non-empty row"),
        (torch.tensor([1, -1]), "token -1 is outside"),
        (torch.tensor([1, 120]), "token 120 is outside the vocabulary of 120"),
    ):
        with pytest.raises(HarnessError, match=sentence):
            oracle(tokens)


def run_in_chunks(method, tokens, sizes, input_len, cache_len, dtype, last_only=False):
    """Feed tokens in chunks of these sizes, padded to input_len, and write the caches.

    Returns logits [T, vocab] (of each chunk's last token only, if `last_only`), and the caches.
    """
    shape = (1, CONFIG.n_kv_heads, cache_len, CONFIG.head_dim)
    caches = [torch.zeros(shape, dtype=dtype) for _ in range(2 * CONFIG.n_layers)]
    tables = rope_tables(CONFIG, CONTEXT + input_len)
    position, rows = 0, []
    for size in sizes:
        padded = torch.zeros(1, input_len, dtype=torch.int32)
        padded[0, :size] = tokens[position : position + size]
        mask = torch.full((1, input_len, cache_len + input_len), -torch.inf)
        mask[:, :, :position] = 0
        mask[:, :, cache_len:] = torch.full((input_len, input_len), -torch.inf).triu(1)
        freqs = [table[position : position + input_len] for table in tables]
        last = [torch.tensor([size - 1])] if last_only else []
        logits, *updates = method(padded, mask, *freqs, *caches, *last)
        assert logits.shape == (1, 1 if last_only else input_len, CONFIG.vocab_size)
        room = min(size, cache_len - position)  # the last step need not store anything
        for cache, update in zip(caches, updates, strict=True):
            assert update.shape == (1, CONFIG.n_kv_heads, input_len, CONFIG.head_dim)
            cache[:, :, position : position + room] = update[:, :, :room]
        rows.append(logits[0] if last_only else logits[0, :size])
        position += size
    return torch.cat(rows), caches


def random_splits(length, most, count=6):
    generator = torch.Generator().manual_seed(length)
    for _ in range(count):
        sizes, left = [], length
        while left:
            sizes.append(min(left, int(torch.randint(1, most + 1, (), generator=generator))))
            left -= sizes[-1]
        yield sizes


@pytest.mark.parametrize("input_len", [1, 5])
def test_the_static_form_equals_the_oracle_however_the_prompt_is_split(input_len):
    cache_len = CONTEXT - 1
    tokens = random_tokens(CONTEXT)
    expected, keys, values = Oracle(CONFIG, WEIGHTS)(tokens)
    method = StaticModel(CONFIG, WEIGHTS, torch.float64)
    for sizes in random_splits(CONTEXT, input_len):
        logits, caches = run_in_chunks(method, tokens, sizes, input_len, cache_len, torch.float64)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)
        for cache, whole in zip(caches, keys + values, strict=True):
            torch.testing.assert_close(cache[0], whole[:, :cache_len], rtol=0, atol=1e-11)


def test_last_valid_token_pos_selects_one_row():
    tokens = random_tokens(CONTEXT)
    expected = Oracle(CONFIG, WEIGHTS)(tokens)[0]
    method = StaticModel(CONFIG, WEIGHTS, torch.float64)
    sizes = [5, 2, 5, 1, 5, 5, 1]
    logits, _ = run_in_chunks(method, tokens, sizes, 5, CONTEXT - 1, torch.float64, last_only=True)
    ends = torch.tensor(sizes).cumsum(0) - 1
    torch.testing.assert_close(logits, expected[ends], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.03), (torch.float32, 1e-4)], ids=["fp16", "fp32"]
)
def test_the_static_form_computes_in_its_own_dtype(dtype, tolerance):
    tokens = random_tokens(CONTEXT)
    expected = Oracle(CONFIG, WEIGHTS)(tokens)[0]
    method = StaticModel(CONFIG, WEIGHTS, dtype)
    logits, caches = run_in_chunks(method, tokens, [5, 5, 5, 5, 4], 5, CONTEXT - 1, dtype)
    assert {tensor.dtype for tensor in (logits, *caches)} == {dtype}
    error = (logits.double() - expected).abs().max()
    assert torch.finfo(dtype).eps / 10 < error < tolerance


def test_fp16_does_not_overflow_in_the_norm():
    """x * x is infinite in fp16 for |x| > 255, so our eager model normalises in fp32."""
    wide = dict(WEIGHTS)
    wide["tok_embeddings.weight"] = WEIGHTS["tok_embeddings.weight"] * 1000
    tokens = random_tokens(5)
    assert wide["tok_embeddings.weight"][tokens].abs().max() > 255
    half, exact = (
        run_in_chunks(StaticModel(CONFIG, wide, dtype), tokens, [5], 5, CONTEXT - 1, dtype)[0]
        for dtype in (torch.float16, torch.float64)
    )
    assert (half.double() - exact).abs().max() < 0.02 * exact.abs().max()


def test_a_wrong_number_of_inputs_is_an_error():
    with pytest.raises(HarnessError, match=r"takes 10 inputs, .* got 3"):
        StaticModel(CONFIG, WEIGHTS)(*[torch.zeros(1)] * 3)


def test_a_tied_output_layer_stays_one_tensor():
    tied = dict(WEIGHTS)
    tied["output.weight"] = tied["tok_embeddings.weight"]
    eager = StaticModel(CONFIG, tied)
    assert eager.weights["output.weight"] is eager.weights["tok_embeddings.weight"]


MEMORY = """
import psutil, torch
from harness.fixtures.random_model import random_weights
from harness.models.config import parse_params
from harness.models.model import Oracle
from harness.child import peak_memory

sizes = {"dim": 512, "n_layers": 16, "n_heads": 8, "hidden_dim": 2048, "vocab_size": 32000}
config = parse_params(sizes | {"norm_eps": 1e-5, "rope_theta": 1e4})
weights = random_weights(config, seed=3)
held = psutil.Process().memory_info().rss
assert Oracle(config, weights)(torch.tensor([1, 2, 3]))[0].isfinite().all()
print(8 * sum(w.numel() for w in weights.values()), peak_memory() - held)
"""


def test_an_oracle_in_fp64_does_not_hold_its_weights_twice():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    in_fp64, took = map(int, done.stdout.split())
    assert 0 <= took < 0.4 * in_fp64


def test_a_rounded_attention_scale_is_the_one_that_is_used():
    """An fp16 artifact with heads of 24 columns holds 0.2041, not 24 ** -0.5."""
    tokens, exact = random_tokens(8), CONFIG.head_dim**-0.5
    given = Oracle(replace(CONFIG, attention_scale=exact), WEIGHTS)(tokens)[0]
    other = Oracle(replace(CONFIG, attention_scale=exact * 1.0002), WEIGHTS)(tokens)[0]
    default = Oracle(CONFIG, WEIGHTS)(tokens)[0]
    assert torch.equal(given, default)
    assert (other - default).abs().max() > 1e-5

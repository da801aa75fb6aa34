"""Compares oracle, static model and quantized weights with ExecuTorch's own eager model.

The exporter's module takes many seconds to import, so it is loaded once.
"""

import json
from types import SimpleNamespace

import pytest
import torch

from harness.export.options import ExportOptions
from harness.fixtures.random_model import random_weights
from harness.models.config import parse_params
from harness.models.model import Oracle, StaticModel, rope_tables
from harness.models.quantize import exported_weights

PARAMS = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "hidden_dim": 96,
    "vocab_size": 256,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "use_scaled_rope": True,
}
CONFIG = parse_params(PARAMS)
WEIGHTS = random_weights(CONFIG, seed=5)
CONTEXT, INPUT_LEN = 40, 8


@pytest.fixture(scope="module")
def exporter():
    pytest.importorskip("executorch")
    from executorch.examples.apple.coreml.llama import export_static_llm_coreml

    return export_static_llm_coreml


@pytest.fixture(scope="module")
def load(exporter, tmp_path_factory):
    """load(full_logits) -> (model, model args), loaded as in the exporter."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.save(WEIGHTS, folder / "checkpoint.pth")
    (folder / "params.json").write_text(json.dumps(PARAMS))
    return lambda full_logits: exporter.load_model(
        str(folder / "checkpoint.pth"), str(folder / "params.json"), CONTEXT, full_logits
    )


@pytest.mark.parametrize("full_logits", [True, False], ids=["single", "multifunction"])
@torch.no_grad()
def test_one_call_of_the_static_form_equals_the_exporters_model(load, full_logits):
    model, _ = load(full_logits)
    cache_len, filled = CONTEXT - 1, 13
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(CONFIG.vocab_size, (1, INPUT_LEN), generator=generator)
    mask = torch.full((1, INPUT_LEN, cache_len + INPUT_LEN), -torch.inf)
    mask[:, :, :filled] = 0
    mask[:, :, cache_len:] = torch.full((INPUT_LEN, INPUT_LEN), -torch.inf).triu(1)
    cos, sin = (table[filled : filled + INPUT_LEN].float() for table in rope_tables(CONFIG, 60))
    shape = (1, CONFIG.n_kv_heads, cache_len, 16)
    caches = [torch.randn(shape, generator=generator) for _ in range(2 * CONFIG.n_layers)]
    ids = [f"l{layer},h0" for layer in range(CONFIG.n_layers)]
    state = tuple(dict(zip(ids, part, strict=True)) for part in (caches[:2], caches[2:]))
    options = {
        "masks": {cache_len: mask},
        "freqs_cos_override": cos,
        "freqs_sin_override": sin,
        "in_cache_state": state,
    }
    last = [] if full_logits else [torch.tensor([5])]
    if last:
        options["last_valid_token_pos"] = last[0]
    logits, update = model(tokens, options)
    keys, values = update["out_cache_state"]
    expected = (logits, *(keys[i] for i in ids), *(values[i] for i in ids))

    actual = StaticModel(CONFIG, WEIGHTS, torch.float32)(tokens, mask, cos, sin, *caches, *last)

    assert [a.shape for a in actual] == [e.shape for e in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_oracle_equals_executorchs_chunked_prefill(exporter, load):
    model, model_args = load(True)
    manager = exporter.StaticAttentionIOManager(
        model_args, INPUT_LEN, CONTEXT - INPUT_LEN, style="smart_mask", mask_val=-torch.inf
    )
    tokens = torch.randint(CONFIG.vocab_size, (27,), generator=torch.Generator().manual_seed(2))
    logits = manager.prefill(model, tokens.tolist())  # three whole chunks, and three tokens more
    expected, keys, values = Oracle(CONFIG, WEIGHTS)(tokens)
    torch.testing.assert_close(logits[0].double(), expected, rtol=0, atol=5e-5)
    for layer in range(CONFIG.n_layers):
        key = manager.k_caches[f"l{layer},h0"][0, :, :27].double()
        value = manager.v_caches[f"l{layer},h0"][0, :, :27].double()
        torch.testing.assert_close(key, keys[layer], rtol=0, atol=5e-5)
        torch.testing.assert_close(value, values[layer], rtol=0, atol=5e-5)


@torch.no_grad()
def test_exact_rope_tables_round_to_those_of_the_exporter(exporter, load):
    _, model_args = load(True)
    theirs = exporter.Rope(model_args).get_freqs(None, CONTEXT)
    for exact, table in zip(rope_tables(CONFIG, CONTEXT), theirs, strict=True):
        torch.testing.assert_close(exact.float(), table, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"linear_quantize": "b4w", "embedding_quantize": "4,32"},
        {"dtype": "fp32", "embedding_quantize": "8,16"},
        {"linear_quantize": "none", "embedding_quantize": None},
        {"target_split_size": 32, "max_splits": 4},
    ],
    ids=lambda given: ",".join(f"{k}={v}" for k, v in given.items()) or "defaults",
)
@torch.no_grad()
def test_exported_weights_equal_the_exporters_bit_for_bit(exporter, load, given):
    options = ExportOptions(**given)
    theirs = transformed_weights(exporter, load, options)
    ours = exported_weights(WEIGHTS, CONFIG, options.quantization)
    assert ours.keys() == theirs.keys() == WEIGHTS.keys()
    for name, weight in ours.items():
        assert weight.dtype == theirs[name].dtype and torch.equal(weight, theirs[name]), name
    changed = sum(not torch.equal(ours[name].float(), WEIGHTS[name]) for name in ours)
    assert changed > 0  # something was rounded, or there was nothing to compare


def transformed_weights(exporter, load, options):
    """Return the weights of the exporter's model after its casting, splitting and quantizing."""
    quantize = None if options.linear_quantize == "none" else options.linear_quantize
    args = SimpleNamespace(
        target_split_size=options.target_split_size,
        max_splits=options.max_splits,
        embedding_quantize=options.embedding_quantize,
        linear_quantize=quantize,
        no_graph_breaks=True,
    )
    dtype = {"fp16": torch.float16, "fp32": torch.float32}[options.dtype]
    model = exporter._transform_eager_model(load(True)[0], args, dtype)
    parts = {}
    for name, weight in model.named_parameters():
        for old, new in (("wqs.0", "wq"), ("wks.0", "wk"), ("wvs.0", "wv")):
            name = name.replace(old, new)
        whole = f"{name.split('.ops.')[0].removesuffix('.weight')}.weight"
        dense = weight.dequantize() if hasattr(weight, "qdata") else weight.detach()
        parts.setdefault(whole, []).append(dense)  # splits come in the order of their rows
    return {name: torch.cat(rows) for name, rows in parts.items()}

"""The files that ExecuTorch's exporter gets in place of a user's files."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import HarnessError
from harness.export.meta_files import meta_files
from harness.fixtures.random_model import random_weights
from harness.models.checkpoint import load_checkpoint
from harness.models.config import load_params, parse_params

PARAMS = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 64, "use_scaled_rope": True}
WEIGHTS = random_weights(parse_params(PARAMS), seed=0)
HUGGING_FACE = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
    "tie_word_embeddings": True,
}
SCALING = {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}


@pytest.fixture
def given(tmp_path):
    """given(weights, params) writes the two and returns the result of meta_files."""

    def given(params, name, save):
        (tmp_path / "work").mkdir()
        (tmp_path / "params.json").write_text(json.dumps(params))
        save(tmp_path / name)
        return meta_files(tmp_path / name, tmp_path / "params.json", tmp_path / "work")

    return given


def test_metas_own_checkpoint_is_passed_on_as_it_is(given, tmp_path):
    checkpoint, params = given(PARAMS, "model.pth", lambda path: torch.save(WEIGHTS, path))
    assert checkpoint == tmp_path / "model.pth"
    assert load_params(params) == parse_params(PARAMS)


def test_metas_names_in_safetensors_become_a_pth(given):
    checkpoint, _ = given(PARAMS, "m.safetensors", lambda path: save_file(WEIGHTS, path))
    stored = torch.load(checkpoint, weights_only=True)
    assert stored.keys() == WEIGHTS.keys()
    assert all(torch.equal(stored[name], WEIGHTS[name]) for name in WEIGHTS)


def test_hugging_faces_files_become_metas_with_the_same_weights(given, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**HUGGING_FACE))
    checkpoint, params = given(HUGGING_FACE, "model", model.save_pretrained)
    wanted = load_checkpoint(tmp_path / "model", load_params(tmp_path / "params.json"))
    stored = torch.load(checkpoint, weights_only=True)
    assert "output.weight" not in stored  # the exporter's child ties it
    for name, weight in stored.items():
        assert torch.equal(weight, wanted[name]), name
    found = load_checkpoint(checkpoint, load_params(params))
    assert found.keys() == wanted.keys()


def test_the_exporter_accepts_every_key_that_it_is_given(given):
    """The exporter's own dataclass takes the keys; an unknown one raises a TypeError there."""
    pytest.importorskip("executorch")
    from executorch.examples.models.llama.model_args import ModelArgs

    _, params = given(PARAMS, "model.pth", lambda path: torch.save(WEIGHTS, path))
    args = ModelArgs(**json.loads(params.read_text()))
    assert (args.hidden_dim, args.n_kv_heads, args.head_dim) == (256, 2, 16)
    assert (args.use_scaled_rope, args.rope_scale_factor) == (True, 8)


@pytest.mark.parametrize("change", [{"low_freq_factor": 2.0}, {"original": 4096}])
def test_a_scaling_that_metas_params_cannot_express_is_refused(given, change):
    scaling = {**SCALING, "original_max_position_embeddings": 8192, **change}
    scaling["original_max_position_embeddings"] = scaling.pop("original", 8192)
    with pytest.raises(HarnessError, match="only knows RoPE scaling with a low factor of 1 and"):
        given({**HUGGING_FACE, "rope_scaling": scaling}, "model", lambda path: None)


def test_a_full_disk_is_one_sentence(tmp_path, fill_disk):
    save_file(WEIGHTS, tmp_path / "m.safetensors")
    (tmp_path / "given.json").write_text(json.dumps(PARAMS))
    fill_disk()
    wanted = f"{tmp_path}/checkpoint.pth: cannot be written (File too large)"
    with pytest.raises(HarnessError, match=f"^{re.escape(wanted)}$"):
        meta_files(tmp_path / "m.safetensors", tmp_path / "given.json", tmp_path)


def test_the_norms_of_qwen3_get_the_names_of_static_attention(given):
    params = PARAMS | {"use_qk_norm": True, "qk_norm_before_rope": True}
    weights = random_weights(parse_params(params), seed=0)
    checkpoint, written = given(params, "model.pth", lambda path: torch.save(weights, path))
    stored = torch.load(checkpoint, weights_only=True)
    wanted = {name.replace("_norm_fn", "_norm") for name in weights}
    assert stored.keys() == wanted and "layers.0.attention.q_norm.weight" in wanted
    assert load_params(written) == parse_params(params)

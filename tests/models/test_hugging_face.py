"""Hugging Face's checkpoints against transformers' own Llama: same files, same logits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.errors import HarnessError
from harness.models import RopeScaling
from harness.models.checkpoint import is_tied, load_checkpoint
from harness.models.config import load_params
from harness.models.model import Oracle

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 300,
    "rms_norm_eps": 1e-5,
}
SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # so that positions of a short text are stretched
}
KINDS = {
    "grouped": {},
    "multi": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "single": {"num_key_value_heads": 1, "head_dim": 32},
    "scaled": {"rope_parameters": {**SCALING, "rope_theta": 500000.0}},
    "scaled and tied": {
        "rope_parameters": {**SCALING, "rope_theta": 10000.0},
        "tie_word_embeddings": True,
    },
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def save(transformers, tmp_path):
    """save(sizes, **how) -> transformers' own model; its files are in tmp_path."""

    def save(change=None, dtype=torch.float32, **how):
        torch.manual_seed(3)
        config = transformers.LlamaConfig(**{**SIZES, **(change or {})})
        model = transformers.LlamaForCausalLM(config).eval()
        with torch.no_grad():  # transformers starts with norms of one, which hide a swapped norm
            for name, parameter in model.named_parameters():
                parameter.normal_(1.0, 0.2) if "norm" in name else parameter.normal_(0, 0.2)
        model = model.to(dtype)
        model.save_pretrained(tmp_path, **how)
        return model

    return save


def assert_same_logits(model, folder, checkpoint=None):
    config = load_params(folder / "config.json")
    weights = load_checkpoint(checkpoint or folder, config)
    reloaded = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(300, (150,), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = reloaded(tokens[None]).logits[0].double()
    found = Oracle(config, weights)(tokens)[0]
    assert found.std() > 0.5  # there is something to compare
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))
    return weights


@pytest.mark.parametrize("change", KINDS.values(), ids=list(KINDS))
def test_the_oracle_on_its_files_gives_the_logits_of_transformers(save, tmp_path, change):
    weights = assert_same_logits(save(change), tmp_path)
    assert is_tied(weights) == change.get("tie_word_embeddings", False)


def test_a_checkpoint_in_several_files_is_read_by_its_index(save, tmp_path):
    model = save(max_shard_size="60KB")
    index = tmp_path / "model.safetensors.index.json"
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(model, tmp_path)
    assert_same_logits(model, tmp_path, index)


def test_bfloat16_stays_what_it_is(save, tmp_path):
    model = save({"tie_word_embeddings": True}, torch.bfloat16)
    weights = assert_same_logits(model, tmp_path, tmp_path / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_torch_files_of_hugging_faces_names_are_read_too(save, tmp_path):
    model = save()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_logits(model, tmp_path, tmp_path / "pytorch_model.bin")


def test_forgetting_the_order_of_rope_would_be_seen(save, tmp_path, monkeypatch):
    model = save()
    monkeypatch.setattr("harness.models.checkpoint._interleaved", lambda weights, config: weights)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_logits(model, tmp_path)


def edited(tmp_path, **changes):
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {"model_type": "llama", **SIZES}
    path.write_text(json.dumps({k: v for k, v in (config | changes).items() if v != "gone"}))
    return path


def test_both_spellings_of_rope_parameters_mean_the_same(tmp_path):
    new = load_params(edited(tmp_path, rope_parameters={**SCALING, "rope_theta": 500000.0}))
    old = load_params(
        edited(tmp_path, rope_parameters="gone", rope_scaling=SCALING, rope_theta=500000.0)
    )
    assert new == old
    assert (new.rope_theta, new.rope_scaling) == (500000.0, RopeScaling(32.0, 4.0, 1.0, 64))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model_type": "mixtral"},
            'model_type = "mixtral" is not supported; only "llama" or "qwen3" is',
        ),
        ({"attention_bias": True}, "attention_bias = true is not supported; only false is"),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported'),
        ({"quantization_config": {"bits": 4}}, "quantization_config = .* is not supported"),
        ({"novelty": 1}, "unknown key 'novelty'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling of type 'yarn' is not supported"),
        ({"rope_scaling": {"type": "llama3"}}, "of type 'llama3' lacks factor, high_freq_factor"),
        ({"rope_scaling": [8]}, r"rope_scaling must be an object, not \[8\]"),
        ({"hidden_size": "gone"}, "dim is missing"),
        ({"rms_norm_eps": "small"}, "norm_eps must be a number above 0"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused_by_key(tmp_path, change, sentence):
    path = edited(tmp_path, **change)
    with pytest.raises(HarnessError, match=sentence) as caught:
        load_params(path)
    assert str(path) in str(caught.value)


def test_problems_are_listed_under_the_names_of_the_file(save, tmp_path):
    model = save()
    state = model.state_dict()
    del state["model.norm.weight"]
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(2, 3)
    state["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    state["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)  # of older files
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(HarnessError) as caught:
        load_checkpoint(tmp_path / "bad.pth", load_params(tmp_path / "config.json"))
    assert str(caught.value).endswith(
        "does not fit its params: model.norm.weight is missing; "
        "'model.layers.0.self_attn.q_proj.bias' is not expected; "
        "model.layers.0.mlp.up_proj.weight has shape [2, 3], not [96, 64]"
    )


def test_an_output_layer_is_only_left_out_where_the_config_ties_it(save, tmp_path):
    model = save()
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    torch.save(state, tmp_path / "untied.pth")
    with pytest.raises(HarnessError, match="lm_head.weight is missing"):
        load_checkpoint(tmp_path / "untied.pth", load_params(tmp_path / "config.json"))
    torch.save(model.state_dict(), tmp_path / "differs.pth")
    with pytest.raises(HarnessError, match=r"lm_head.weight differs from model.embed_tokens"):
        tied = load_params(edited(tmp_path, tie_word_embeddings=True))
        load_checkpoint(tmp_path / "differs.pth", tied)


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/a.safetensors", "a/b.safetensors", "a.pth", "", 3, None]
)
def test_an_index_that_names_another_place_is_refused(save, tmp_path, name):
    save(max_shard_size="60KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(HarnessError, match="is not allowed as a file"):
        load_checkpoint(tmp_path, load_params(tmp_path / "config.json"))


def test_an_index_and_its_files_must_agree(save, tmp_path):
    save(max_shard_size="60KB")
    config = load_params(tmp_path / "config.json")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    last = index["weight_map"].pop("model.norm.weight")
    path.write_text(json.dumps(index))
    with pytest.raises(HarnessError, match=f"it and {last} disagree about model.norm.weight"):
        load_checkpoint(path, config)
    (tmp_path / last).unlink()
    with pytest.raises(HarnessError, match=f"files are missing beside it: {last}"):
        load_checkpoint(path, config)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": []}', "[" * 100_000])
def test_an_index_that_is_none_is_one_sentence(tmp_path, text):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text("{" + text)
    with pytest.raises(HarnessError, match="is not an index of a checkpoint"):
        load_checkpoint(path, load_params(edited(tmp_path)))


def test_a_damaged_safetensors_file_is_one_sentence(save, tmp_path):
    save()
    config, path = load_params(tmp_path / "config.json"), tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in (9, 10, 300, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(HarnessError, match="is not a safetensors file that loads") as caught:
            load_checkpoint(path, config)
        assert "\n" not in str(caught.value)


def test_a_folder_without_a_checkpoint_says_what_it_looked_for(tmp_path):
    with pytest.raises(HarnessError, match="none of model.safetensors.index.json, .* is in this"):
        load_checkpoint(tmp_path, load_params(edited(tmp_path)))


def test_weights_are_mapped_and_not_read(tmp_path):
    """Opening 400 MB of weights takes a tenth of that memory, including q and k."""
    from safetensors.torch import save_file

    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 200_000}
    config = load_params(edited(tmp_path, **sizes))
    names = config.hugging_face_names
    shapes = {names[n]: s for n, s in config.weight_shapes.items()}
    save_file({n: torch.zeros(s) for n, s in shapes.items()}, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size > 400e6
    code = (
        "import psutil, sys, torch\n"
        "from harness.models.checkpoint import load_checkpoint\n"
        "from harness.models.config import load_params\n"
        "before = psutil.Process().memory_info().rss\n"
        "weights = load_checkpoint(sys.argv[1], load_params(sys.argv[1] + '/config.json'))\n"
        "print(psutil.Process().memory_info().rss - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    (tmp_path / "model.safetensors").unlink()
    assert int(done.stdout) < 40e6

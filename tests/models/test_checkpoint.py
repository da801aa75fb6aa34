import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import HarnessError
from harness.fixtures.random_model import random_weights
from harness.models import Quantization
from harness.models.checkpoint import is_tied, load_checkpoint
from harness.models.config import parse_params

CONFIG = parse_params({"dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 8, "hidden_dim": 32})


def saved(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    return path


def test_weights_come_back_as_they_were_saved(tmp_path):
    weights = random_weights(CONFIG, seed=1)
    for content in (weights, {"model": weights}):
        loaded = load_checkpoint(saved(tmp_path, content), CONFIG)
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], weights[name]) for name in weights)
        assert not is_tied(loaded)


def test_metas_names_are_read_from_safetensors_and_from_metas_folder(tmp_path):
    weights = random_weights(CONFIG, seed=1)
    save_file(weights, tmp_path / "weights")  # recognised by its content, not by its name
    torch.save(weights, tmp_path / "consolidated.00.pth")
    for path in (tmp_path / "weights", tmp_path):
        loaded = load_checkpoint(path, CONFIG)
        assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    (tmp_path / "consolidated.01.pth").touch()
    with pytest.raises(HarnessError, match=r"cut into several consolidated.NN.pth; join them"):
        load_checkpoint(tmp_path, CONFIG)


def test_a_missing_output_layer_is_the_embedding(tmp_path):
    weights = random_weights(CONFIG, seed=1)
    del weights["output.weight"]
    loaded = load_checkpoint(saved(tmp_path, weights), CONFIG)
    assert is_tied(loaded)
    assert torch.equal(loaded["output.weight"], weights["tok_embeddings.weight"])


def test_the_rope_table_of_llama_2_files_is_left_out(tmp_path):
    weights = random_weights(CONFIG, seed=1) | {"rope.freqs": torch.ones(4)}
    assert "rope.freqs" not in load_checkpoint(saved(tmp_path, weights), CONFIG)


def test_everything_that_does_not_fit_is_in_one_error(tmp_path):
    weights = random_weights(CONFIG, seed=1)
    del weights["norm.weight"]
    weights["layers.0.attention.wq.weight"] = torch.zeros(3, 4)
    weights["layers.0.attention.wk.weight"] = torch.zeros(16, 16, dtype=torch.int8)
    weights["layers.0.attention.wv.weight"] = "text"
    weights["layers.9.extra"] = torch.zeros(1)
    with pytest.raises(HarnessError) as caught:
        load_checkpoint(saved(tmp_path, weights), CONFIG)
    for part in (
        "norm.weight is missing",
        "'layers.9.extra' is not expected",
        "layers.0.attention.wq.weight has shape [3, 4], not [16, 16]",
        "layers.0.attention.wk.weight is torch.int8, not a floating-point tensor",
        "layers.0.attention.wv.weight is str, not a floating-point tensor",
    ):
        assert part in str(caught.value)


UNFIT = {
    "sparse": (lambda w: w.to_sparse(), "is sparse_coo, not a dense tensor"),
    "compressed": (lambda w: w.to_sparse_csr(), "is sparse_csr, not a dense tensor"),
    "without values": (lambda w: w.to("meta"), "is on the device meta, without values"),
    "repeated": (
        lambda w: w[:1, :1].clone().expand(w.shape),
        "is a view that repeats the values of a smaller one",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("name", ["tok_embeddings.weight", "output.weight"])
def test_a_tensor_that_holds_its_values_in_another_way_is_one_clear_error(tmp_path, kind, name):
    change, sentence = UNFIT[kind]
    weights = random_weights(CONFIG, seed=1)
    weights[name] = change(weights[name])
    for tied in (None, True):
        with pytest.raises(HarnessError, match=f"{name} {sentence}"):
            load_checkpoint(
                saved(tmp_path, weights), replace(CONFIG, tied=tied), Quantization("fp16")
            )


def test_a_stray_name_of_hugging_face_does_not_make_the_rest_unexpected(tmp_path):
    stray = {"lm_head.weight": torch.zeros(3, 3), "layers.9.foo.weight": torch.zeros(1)}
    with pytest.raises(HarnessError) as caught:
        load_checkpoint(saved(tmp_path, random_weights(CONFIG, seed=1) | stray), CONFIG)
    expected = "'lm_head.weight' is not expected; 'layers.9.foo.weight' is not expected"
    assert str(caught.value).endswith(f"does not fit its params: {expected}")


def test_a_long_list_of_problems_is_cut(tmp_path):
    with pytest.raises(HarnessError, match=r"; and \d+ more$"):
        load_checkpoint(saved(tmp_path, {}), CONFIG)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code in the checkpoint was executed",))


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", pickle.dumps(Trap()), b"PK\x03\x04" + b"\0" * 64]
)
def test_a_file_that_is_no_checkpoint_is_one_clear_error(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(HarnessError, match="neither safetensors nor a dict of tensors") as caught:
        load_checkpoint(path, CONFIG)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    with pytest.raises(HarnessError, match="without executing code"):
        load_checkpoint(saved(tmp_path, {"norm.weight": Trap()}), CONFIG)


def test_a_truncated_checkpoint_is_one_clear_error(tmp_path):
    path = saved(tmp_path, random_weights(CONFIG, seed=1))
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 23):
        path.write_bytes(whole[:length])
        with pytest.raises(HarnessError):
            load_checkpoint(path, CONFIG)


@pytest.mark.parametrize("entry", ["data.pkl", "data/0"])
def test_an_entry_that_claims_more_than_the_file_has_is_never_allocated(tmp_path, entry):
    path = saved(tmp_path, random_weights(CONFIG, seed=1))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    name = data.index(f"/{entry}".encode(), directory)  # in the central directory
    start = data.rindex(b"PK\x01\x02", 0, name)
    data[start + 24 : start + 28] = (0x7FFFFFFF).to_bytes(4, "little")  # the size of its content
    path.write_bytes(data)
    with pytest.raises(HarnessError, match=r"its entries claim 2,147,\d+,\d+ bytes, and the file"):
        load_checkpoint(path, CONFIG)


def test_a_missing_file_and_a_bare_tensor_are_refused(tmp_path):
    with pytest.raises(HarnessError, match=r"absent.pth: cannot be read \(No such file"):
        load_checkpoint(tmp_path / "absent.pth", CONFIG)
    with pytest.raises(HarnessError, match="must hold a dict of tensors, not Tensor"):
        load_checkpoint(saved(tmp_path, torch.zeros(1)), CONFIG)

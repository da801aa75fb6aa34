"""The child's changes to the exporter's module, on a stand-in for that module."""

import argparse
from types import SimpleNamespace

import pytest
import torch

from harness.errors import HarnessError
from harness.export._executorch_child import arguments, patch
from harness.export.options import ExportOptions

REQUEST = {"checkpoint": "c.pth", "params": "p.json", "output": "o.pte"}


class Model(torch.nn.Module):
    def __init__(self, **devices):
        super().__init__()
        self.tok_embeddings = torch.nn.Embedding(4, 2)
        self.norm = torch.nn.Linear(2, 2, bias=False, device=devices.get("norm", "cpu"))
        self.output = torch.nn.Linear(2, 4, bias=False, device=devices.get("output", "cpu"))


def exporter(model=None):
    return SimpleNamespace(
        main=None,
        argparse=argparse,
        save_pte_program=None,
        load_model=lambda *args, **kwargs: (model, "model args"),
        MULTIMETHOD_WEIGHT_SHARING_STRATEGY=SimpleNamespace(POSITIONAL="shared", DISABLED="apart"),
    )


def test_the_command_line_says_what_it_can():
    line = arguments(REQUEST, ExportOptions(mode="multifunction", graph_breaks=False))
    assert "--checkpoint=c.pth" in line and "--embedding_quantize=8,0" in line
    assert line[-2:] == ["--multifunction", "--no_graph_breaks"]


def test_the_command_line_leaves_out_what_it_cannot_say():
    options = ExportOptions(linear_quantize="none", embedding_quantize=None, target_split_size=None)
    words = " ".join(arguments(REQUEST, options))
    assert not any(word in words for word in ("None", "none", "quantize", "split_size"))


def test_what_the_command_line_cannot_say_is_in_what_the_parser_returns():
    module = exporter()
    options = ExportOptions(linear_quantize="none", embedding_quantize=None, target_split_size=None)
    patch(module, options)
    parser = module.argparse.ArgumentParser()
    for name in ("linear_quantize", "embedding_quantize", "target_split_size", "max_splits"):
        parser.add_argument(f"--{name}", default="of the script")
    assert vars(parser.parse_args(["--max_splits=8"])) == {
        "linear_quantize": None,
        "embedding_quantize": None,
        "target_split_size": None,
        "max_splits": "8",
    }


def test_sharing_is_switched_off_only_when_asked():
    module = exporter()
    patch(module, ExportOptions(mode="multifunction"))
    assert module.MULTIMETHOD_WEIGHT_SHARING_STRATEGY.POSITIONAL == "shared"
    patch(module, ExportOptions(mode="multifunction", weight_sharing="none"))
    assert module.MULTIMETHOD_WEIGHT_SHARING_STRATEGY.POSITIONAL == "apart"
    assert module.MULTIMETHOD_WEIGHT_SHARING_STRATEGY.DISABLED == "apart"  # a checkout may name it


def test_a_tied_output_layer_becomes_a_copy_of_the_embedding():
    model = Model(output="meta")
    module = exporter(model)
    patch(module, ExportOptions())
    assert module.load_model("c", "p", 64) == (model, "model args")
    assert torch.equal(model.output.weight, model.tok_embeddings.weight)
    assert model.output.weight.data_ptr() != model.tok_embeddings.weight.data_ptr()


def test_an_output_layer_of_its_own_is_kept():
    model = Model()
    before = model.output.weight
    module = exporter(model)
    patch(module, ExportOptions())
    module.load_model("c", "p", 64)
    assert model.output.weight is before


def test_any_other_layer_without_weights_is_an_error():
    module = exporter(Model(norm="meta"))
    patch(module, ExportOptions())
    with pytest.raises(HarnessError, match=r"no weights for norm\.weight"):
        module.load_model("c", "p", 64)


def test_a_full_disk_is_an_error_and_not_a_truncated_program(tmp_path):
    class Program:
        def write_to_file(self, file):
            file.write(b"half")
            raise OSError("no space left on device")

    module = exporter()
    patch(module, ExportOptions())
    with pytest.raises(OSError, match="no space left"):
        module.save_pte_program(Program(), str(tmp_path / "model.pte"))


def test_another_exporter_is_refused_by_what_it_lacks():
    module = exporter()
    del module.load_model, module.main
    with pytest.raises(HarnessError, match=r"has no main, load_model; versions 1\.2 to"):
        patch(module, ExportOptions())

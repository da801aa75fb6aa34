"""Checks of an artifact whose model computes NaN name the NaN, not an odd figure."""

import pytest
import torch

from harness.checks import accuracy, artifact_checks
from harness.errors import HarnessError
from harness.fixtures.small_llama import export_small, subject, write_model
from harness.subject import Subject

QUERIES = "layers.0.attention.wq.weight"


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Return a folder with a model whose queries are NaN, and its export."""
    folder = tmp_path_factory.mktemp("broken")
    checkpoint, _ = write_model(folder)
    weights = torch.load(checkpoint)
    weights[QUERIES].fill_(torch.nan)
    torch.save(weights, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.models.checkpoint._beyond", lambda *given: ())
        export_small(folder, folder / "out", linear_quantize="none")
    return folder


@pytest.mark.parametrize("check", ["parity", "residues"])
def test_weights_that_are_nan_are_named(broken, check):
    for runtime in ("mil:strict", "mil:widen"):
        judged = Subject(broken / "out")
        with pytest.raises(HarnessError) as caught:
            list(artifact_checks()[check].findings(judged, runtime))
        cause = f"the artifact's weights hold NaN or infinity, in {QUERIES}"
        assert str(caught.value).startswith("the reference itself, PyTorch in fp64, gives NaN or")
        assert str(caught.value).endswith(cause)


def test_a_checkpoint_that_holds_nan_is_named(broken):
    judged = subject(broken, broken / "out", linear_quantize="none")
    with pytest.raises(HarnessError, match="the checkpoint's weights hold NaN or infinity, in"):
        list(artifact_checks()["parity"].findings(judged, "mil:widen"))


def test_a_model_that_overflows_its_precision_is_told(broken):
    judged = Subject(broken / "out")
    judged.measured["precision"] = dict.fromkeys(accuracy.PARTS, torch.inf)
    with pytest.raises(HarnessError, match="the model overflows fp16, and no tolerance can be"):
        accuracy.tolerances(judged, "mil:strict")

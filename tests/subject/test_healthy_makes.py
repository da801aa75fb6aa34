"""What correct artifacts of other makes once got a complaint for; and a wrong one beside each."""

import pytest
import torch
from coremltools.proto import FeatureTypes_pb2, Model_pb2

from harness.artifact import open_artifact
from harness.artifact.pte import TensorValue
from harness.checks.metadata import _misfit
from harness.cli import main
from harness.runtimes import get_runtime
from harness.suites.healthy.other_models import OTHERS
from harness.suites.healthy.other_modules import IMAGE, classifier, recurrent


def swapped() -> torch.nn.Module:
    """Return the LSTM with two gates of one weight in each other's place."""
    module = recurrent()
    weight = module.lstm.weight_hh_l0
    i, f, g, o = weight.data.chunk(4)
    weight.data = torch.cat([i, f, o, g])
    return module


@pytest.mark.parametrize("policy", ["strict", "widen"])
def test_a_classifier_gives_the_probabilities_in_the_order_of_its_labels(tmp_path, policy):
    path = tmp_path / "classifier.mlpackage"
    OTHERS[path.name].write(path)
    method = get_runtime(f"mil:{policy}").load(open_artifact(path), "main")
    image = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))
    (found,) = method(image)
    assert [spec.shape for spec in method.outputs] == [(-1,)]
    torch.testing.assert_close(found, classifier()(image), atol=1e-3, rtol=0)


def test_the_gates_of_an_lstm_may_be_in_core_mls_order_and_no_other(tmp_path):
    path = tmp_path / "lstm.mlpackage"
    OTHERS[path.name].write(path)
    reference = f"{__name__}:swapped", "harness.suites.healthy.other_modules:recurrent"
    words = ["check", str(path), "--check", "reference-weights", "--reference"]
    assert [main([*words, one]) for one in reference] == [1, 0]


@pytest.mark.parametrize(("height", "problem"), [(40, ""), (41, "[1, 3, 8 to 40, 21]")])
def test_a_program_may_pass_any_shape_of_a_range_and_no_other(height, problem):
    feature = Model_pb2.FeatureDescription(name="x")
    array = feature.type.multiArrayType
    array.dataType = FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    array.shape.extend((1, 3, 8, 21))
    for low, high in ((1, 1), (3, 3), (8, 40), (21, 21)):
        array.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
    found = _misfit(TensorValue("float32", (1, 3, height, 21), None), feature, set())
    assert (problem in found) if problem else not found

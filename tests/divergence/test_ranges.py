"""Margins to the limits of fp16, by operation."""

import json
import math

import numpy as np
import pytest
import torch

from harness.cli import main
from harness.divergence import range_json
from harness.divergence.recording import Place, record
from harness.mil import get_policy, load_function, observed
from harness.mil.ranges import RangeMonitor
from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants import of_weights as weights
from harness.suites.mutants.edit import Export
from tests.mil.programs import save


def measured(build, array):
    function = load_function(save(build, [array.shape], dtype="fp16"), "main", get_policy("widen"))
    monitor = RangeMonitor()
    with observed(monitor):
        function({"a": torch.from_numpy(array)})
    return {row.operation: row for row in monitor.worst()}


def test_a_square_has_the_margin_of_what_is_squared():
    row = measured(lambda mb, a: mb.mul(x=a, y=a), np.full((4,), 25.59, np.float16))["mul"]
    assert row.square_margin == pytest.approx(10, rel=1e-2)
    assert row.overflow_margin == pytest.approx(100, rel=2e-2) and row.margin == row.square_margin


def test_an_overflow_has_a_margin_below_one():
    row = measured(lambda mb, a: mb.mul(x=a, y=a), np.full((4,), 300, np.float16))["mul"]
    assert row.margin < 1 and row.peak == 90000


def test_a_product_of_two_values_is_no_square():
    row = measured(lambda mb, a: mb.mul(x=a, y=mb.relu(x=a)), np.ones(4, np.float16))["mul"]
    assert row.square_margin is None and row.overflow_margin == 65504


def test_subnormal_values_are_counted_among_those_that_are_not_zero():
    array = np.array([0, 1, 1e-5, -1e-5], np.float16)
    row = measured(lambda mb, a: mb.relu(x=a), array)["relu"]
    assert row.subnormal_fraction == 1 / 2 and row.nonzero == 2


def test_infinities_are_a_masks_and_zeros_have_no_margin():
    array = np.array([0, -np.inf], np.float16)
    row = measured(lambda mb, a: mb.mul(x=a, y=np.float16(1)), array)["mul"]
    assert row.nonzero == 0 and math.isinf(row.margin)
    assert range_json(row)["overflow_margin"] is None


@pytest.mark.parametrize("zero", [None, 3])
def test_values_that_a_scale_clips_are_counted(zero):
    array = np.array([10, 0.1, 0, -0.05, -10], np.float16)
    given = {} if zero is None else {"zero_point": np.int8(zero)}
    package = save(
        lambda mb, a: mb.quantize(
            input=a, scale=np.float16(0.1 / 120), output_dtype="int8", **given
        ),
        [array.shape],
        dtype="fp16",
    )
    function = load_function(package, "main", get_policy("widen"))
    monitor = RangeMonitor()
    recording, _ = record(function, {"a": torch.from_numpy(array)}, Place("main", None, "main"))
    (step,) = [step for step in recording.steps if step.operation == "quantize"]
    monitor.quantized(step, recording.operands(step))
    (row,) = monitor.worst()
    assert (row.clipped, row.quantized) == (2, 5)  # 0.1 itself is 120, or 123
    assert range_json(row)["clipped_fraction"] == 2 / 5


def test_the_command_shows_margins_and_fails_on_an_overflow(capsys, tmp_path):
    sound = Subjects(lambda stage: None).get("tiny", "single").artifact.path
    assert main(["bisect", str(sound), "--ranges"]) == 0
    assert "to the square's" in capsys.readouterr().out
    export = Export(sound)
    weights.huge_activations(export)
    broken = export.save(tmp_path / "huge.pte")
    assert main(["bisect", str(broken), "--ranges", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["operation"] == "mul" and rows[0]["square_margin"] < 1

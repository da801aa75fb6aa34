"""Failures of real converters that people have reported come with what to do about them."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import ConversionError
from harness.remedies import conversion_remedy
from tests.hazards.programs import converted, traced

ROOT = Path(__file__).parents[2]


class Grouped(nn.Module):
    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class Double(nn.Module):
    def forward(self, x):
        return x * 2


class Views(nn.Module):
    def forward(self, x):
        b, t, c = x.shape
        return x.view(b, t, 2, c // 2)


def grouped(target):
    import coremltools as ct

    example = (torch.rand(1, 8, 16, 32), torch.rand(1, 2, 16, 32), torch.rand(1, 2, 16, 32))
    inputs = [ct.TensorType(name=n, shape=x.shape) for n, x in zip("qkv", example, strict=True)]
    converted(traced(Grouped(), *example), target=target, inputs=inputs)


def scaled_image():
    import coremltools as ct

    image = ct.ImageType(
        name="x", shape=(1, 3, 8, 8), scale=[1 / 127.5, 1 / 255, 1.0], bias=[0] * 3
    )
    converted(traced(Double(), torch.rand(1, 3, 8, 8)), inputs=[image])


def flexible_view():
    import coremltools as ct

    shape = (1, ct.RangeDim(1, 8, default=4), 8)
    converted(traced(Views(), torch.rand(1, 4, 8)), inputs=[ct.TensorType(name="x", shape=shape)])


def bytes_through_executorch():
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import to_edge_transform_and_lower

    class Absolute(nn.Module):
        def forward(self, x):
            return x.abs()

    exported = torch.export.export(Absolute(), (torch.ones(3, dtype=torch.uint8),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        to_edge_transform_and_lower(exported, partitioner=[CoreMLPartitioner()])


@pytest.mark.parametrize(
    ("convert", "remedy"),
    [
        (lambda: grouped("iOS17"), "repeat_interleave"),
        (lambda: grouped("iOS18"), "repeat_interleave"),
        (scaled_image, "inside the model"),
        pytest.param(
            flexible_view,
            "numpy<2.4",
            marks=pytest.mark.skipif(
                tuple(map(int, np.__version__.split(".")[:2])) < (2, 4), reason="numpy before 2.4"
            ),
        ),
        (bytes_through_executorch, "cast them"),
    ],
)
def test_a_reported_failure_comes_with_its_remedy(convert, remedy):
    with pytest.raises(Exception) as caught:
        convert()
    kind, reason = type(caught.value).__name__, str(caught.value)
    assert remedy in conversion_remedy(kind, reason), (kind, reason)
    assert remedy in str(ConversionError("the model", kind, reason))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("ValueError", "Incompatible dim 1 in shapes (1, 8) vs. (3, 2)"),
        ("ValueError", "Incompatible dim 3 in shapes (1, 3, 8, 8) vs. (1, 3, 8, 9)"),
        ("KeyError", "'layers.0.weight'"),
        ("RuntimeError", "out of memory"),
    ],
)
def test_another_failure_has_none(kind, reason):
    assert conversion_remedy(kind, reason) == ""
    assert str(ConversionError("the model", kind, reason)) == f"the model: {kind}: {reason}"


@pytest.mark.linux
def test_a_script_under_the_shim_says_it_after_the_traceback(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import torch\n{}[torch.uint8]\n")
    command = [sys.executable, "-m", "harness", "shim", "--", sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and lines[-2] == "KeyError: torch.uint8"
    assert lines[-1].startswith("harness shim: known: ") and "cast them" in lines[-1]

"""The memory of our export does not grow by a model's weights with the number of its functions.

coremltools' `save_multifunction` loads all functions with all their weights (coremltools 2351).
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.artifact import open_artifact
from harness.artifact.facts import storage
from harness.fixtures.small_llama import PARAMS, write_model
from harness.models.config import parse_params

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"dim": 512, "n_layers": 1, "hidden_dim": 1024, "vocab_size": 32000}
WEIGHTS = sum(2 * math.prod(s) for s in parse_params(PARAMS | SIZES).weight_shapes.values())
MEASURE = """
import json, resource, sys
from harness.export import coreml, plan
from harness.export.options import ExportOptions

def methods(config, options):
    names = ["forward", "prefill", *(f"prefill_{i}" for i in range(2, int(sys.argv[2])))]
    rows = [(name, f"{name}_", 1 + number) for number, name in enumerate(names)]
    return tuple(plan._plan(config, options, *row) for row in rows[: int(sys.argv[2])])

coreml.plan_methods = methods
options = ExportOptions(
    mode="multifunction", input_len=16, max_context_len=64, target_split_size=None,
    embedding_quantize=None, linear_quantize="none",
)
folder = sys.argv[1]
coreml.export(f"{folder}/checkpoint.pth", f"{folder}/params.json", options, sys.argv[3])
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, **SIZES)
    return folder


def peak_of(model, functions, output):
    """Export so many functions; return the most memory that the process held, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(model), str(functions), str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(open_artifact(output).packages[0].functions) == functions
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * int(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_eight_functions_need_no_more_memory_for_weights_than_one(model, tmp_path):
    """Seven more copies of the weights would be 490 MB; half of one is the bound."""
    one, eight = (peak_of(model, count, tmp_path / str(count)) for count in (1, 8))
    assert storage(open_artifact(tmp_path / "8")).stored == WEIGHTS > 65e6
    assert eight - one < WEIGHTS / 2

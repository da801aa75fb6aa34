"""`coreml:iphone` through coremltools' own remote devices; `phone.py` is the iPhone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.export.options import ExportOptions
from harness.fixtures.cache import exported
from tests.runtimes import phone

ROOT = Path(__file__).parents[2]
COMMON = """
import json, os, sys
from pathlib import Path
from harness.artifact import open_artifact
from harness.errors import HarnessError
from harness.runtimes.iphone import IPhoneRuntime
from harness.runtimes.isolated import IsolatedRuntime

class Phone(IPhoneRuntime):
    def _compile(self, package):  # coremltools has the project of its app on macOS only
        from coremltools.models.ml_program.experimental.remote_device import _ModelRunnerAppBuilder

        project = Path(os.environ["TEST_IPHONE"], "modelrunner")
        _ModelRunnerAppBuilder._get_project_path = staticmethod(lambda: project)
        return super()._compile(package)
"""


@pytest.fixture
def run(tmp_path):
    """run(script, *arguments, **variables): the script's last line, as JSON, beside an iPhone."""
    programs, folder = tmp_path / "programs", tmp_path / "iphone"
    for made in (programs, folder / "modelrunner" / "ModelRunner.xcworkspace"):
        made.mkdir(parents=True)
    phone.install(programs)

    def start(text, *arguments, **variables):
        (folder / "devices.json").write_text(json.dumps([phone.DEVICE]))
        (tmp_path / "its_phone.py").write_text(COMMON)
        (tmp_path / "script.py").write_text(f"from its_phone import *\n{text}")
        environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": f"{tmp_path}:{ROOT}:{os.environ.get('PYTHONPATH', '')}",
            "HARNESS_CACHE": str(tmp_path / "cache"),
            "HARNESS_IPHONE_TEAM": "A1B2C3D4E5",
            "TEST_IPHONE": str(folder),
            "TEST_IPHONE_PYTHON": sys.executable,
            **variables,
        }
        command = [sys.executable, "-m", "harness", "shim", "--", sys.executable, "-W", "ignore"]
        done = subprocess.run(
            [*command, str(tmp_path / "script.py"), *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    start.folder, start.cache = folder, tmp_path / "cache"
    return start


BOTH = """
import torch
from harness.runtimes.coreml import CoreMLRuntime

artifact = open_artifact(sys.argv[1])
iphone, here = IsolatedRuntime(Phone, "iphone"), CoreMLRuntime("cpu_only").load(artifact, "forward")
torch.manual_seed(0)
inputs = [
    torch.randn(spec.shape).to(getattr(torch, spec.dtype))
    if "float" in spec.dtype
    else torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
    for spec in here.inputs
]
wanted = here(*inputs)
facts, results = iphone.profile(artifact, "forward", inputs)
same = [torch.equal(a, b) for a, b in zip(results, wanted, strict=True)]
print(json.dumps({"why": iphone.unavailable(), "name": iphone.name, "same": same, "facts": facts}))
"""


def test_a_method_runs_there_with_its_own_times_and_placement(run):
    path = exported("tiny", ExportOptions(mode="multifunction"))
    found = run(BOTH, str(path))
    assert found["why"] is None and found["name"] == "coreml:iphone"
    assert len(found["same"]) > 4 and all(found["same"])
    facts = found["facts"]
    assert facts["devices"] == ["iPhone with iOS 18.5 (22F76)"]
    assert facts["units"] == "CPU_AND_NE"
    for name in ("cold load", "cached load", "first prediction"):
        own, call = facts[name]
        assert 0 < own < call
    assert len(facts["warm prediction"]) == 10
    placed = [row for row in facts["placement"] if row["preferred"] == "Neural Engine"]
    assert len(placed) > len(facts["placement"]) / 2 and placed[0]["cost"] == 0.5
    assert placed[0]["supported"] == ["CPU"]
    assert (run.folder / "builds").read_text().splitlines() == ["A1B2C3D4E5"]
    left = [path for path in run.cache.rglob("requests") if path.is_dir()]
    assert left == []  # what was exchanged is removed


REASONS = """
from harness.runtimes import iphone

reasons = []
for devices, variables in json.loads(sys.argv[1]):
    iphone._connected.cache_clear()
    Path(os.environ["TEST_IPHONE"], "devices.json").write_text(json.dumps(devices))
    os.environ |= variables
    reasons.append(IPhoneRuntime("iphone").unavailable())
print(json.dumps(reasons))
"""
OTHER = {**phone.DEVICE, "connectionProperties": {"tunnelState": "disconnected"}}
NAMELESS = {"result": "of another version"}
TEAM = "HARNESS_IPHONE_TEAM"


def test_what_is_missing_is_the_reason(run):
    cases = [
        ([phone.DEVICE], {}),
        ([], {}),
        ([OTHER], {}),
        ([phone.DEVICE], {TEAM: ""}),
        (NAMELESS, {}),
    ]
    here, none, apart, unsigned, unknown = run(REASONS, json.dumps(cases))
    assert here is None
    assert none == apart == "no iPhone is connected to this Mac"
    assert unsigned == f"an iPhone is connected, but {TEAM} names no team to sign coremltools' app"
    assert unknown.startswith("coremltools cannot list the connected devices: No 'devices' field")


REFUSED = """
try:
    IsolatedRuntime(Phone, "iphone").load(open_artifact(sys.argv[1]), "forward")
except HarnessError as error:
    print(json.dumps(str(error)))
"""


def test_an_app_that_cannot_be_signed_is_one_sentence(run):
    message = run(
        REFUSED, str(exported("tiny")), HARNESS_IPHONE_TEAM="", HARNESS_IPHONE_BUNDLE="org.runner"
    )
    assert message == (
        "coremltools cannot start its app on the iPhone: [Error Code 1] None; is "
        f"{TEAM} right, and is the iPhone unlocked?"
    )

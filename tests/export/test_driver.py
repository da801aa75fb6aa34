"""The driver of ExecuTorch's exporter, with a real child process and a stand-in exporter in it."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch

from harness.errors import HarnessError
from harness.export import executorch
from harness.export.options import ExportOptions
from harness.fixtures.random_model import random_weights
from harness.models.config import parse_params

ROOT = Path(__file__).resolve().parents[2]
PARAMS = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 64, "hidden_dim": 64}
WEIGHTS = random_weights(parse_params(PARAMS), seed=0)


@pytest.fixture
def export(tmp_path, monkeypatch):
    """export(behaviour) -> path of the result; tmp_path/out and tmp_path/tmp hold the leftovers."""
    for name in ("out", "tmp", "in"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "params.json").write_text(json.dumps(PARAMS))
    torch.save(WEIGHTS, tmp_path / "in" / "checkpoint.pth")
    monkeypatch.setattr(executorch, "CHILD", "stand_in_child")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("STAND_IN_SKIPS_CHECKPOINT", "1")
    monkeypatch.setenv("STAND_IN_PIDS", str(tmp_path / "pids"))

    def run(behaviour, progress=None, **options):
        monkeypatch.setenv("STAND_IN", behaviour)
        return executorch.export(
            tmp_path / "in" / "checkpoint.pth",
            tmp_path / "in" / "params.json",
            ExportOptions(**options),
            tmp_path / "out" / "model.pte",
            progress,
        )

    return run


def left_behind(tmp_path):
    return sorted(p.name for folder in ("out", "tmp") for p in (tmp_path / folder).iterdir())


def test_the_exporter_gets_its_command_line_and_a_private_folder(export, tmp_path):
    stages = []
    asked = json.loads(export("write", stages.append, input_len=8, max_splits=3).read_text())
    assert "--input_len=8" in asked["argv"] and "--max_splits=3" in asked["argv"]
    assert asked["cwd"] == asked["tmp"] != str(Path.cwd())
    assert not Path(asked["tmp"]).exists()
    assert stages[:2] == [executorch.CHECKING, executorch.STARTING]
    assert stages[2:] == ["loading the checkpoint", "capturing the graph"]
    assert left_behind(tmp_path) == ["model.pte"]


def test_it_works_in_a_folder_that_cannot_be_written(export, tmp_path, monkeypatch):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    monkeypatch.chdir(locked)
    assert export("write").is_file()
    assert not list(locked.iterdir())


def test_a_failure_names_the_stage_the_reason_and_a_log(export, tmp_path):
    with pytest.raises(
        HarnessError, match="while capturing the graph: ValueError: cannot lower"
    ) as e:
        export("fail")
    log = Path(str(e.value).rpartition("Log: ")[2])
    assert "A second line that says less." in log.read_text()
    assert "\n" not in str(e.value)
    assert left_behind(tmp_path) == [log.name]


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("write_nothing", "while .* ended without an error but wrote nothing. Log: "),
        ("die", "SIGKILL: the exporter was killed, perhaps because memory ran out"),
        ("exit_early", "exit status 9: the last words"),
    ],
)
def test_a_quiet_end_is_a_failure_too(export, tmp_path, behaviour, sentence):
    with pytest.raises(HarnessError, match=sentence):
        export(behaviour)
    assert not list((tmp_path / "out").iterdir())


def test_an_older_export_survives_a_failure(export, tmp_path):
    (tmp_path / "out" / "model.pte").write_text("older")
    with pytest.raises(HarnessError):
        export("fail")
    assert (tmp_path / "out" / "model.pte").read_text() == "older"


def test_an_interrupt_ends_the_child_and_its_children_and_leaves_nothing(export, tmp_path):
    def interrupt(stage):
        if stage == "lowering to Core ML":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export("hang", interrupt)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 and wait_until_gone(pids)
    assert left_behind(tmp_path) == []


def test_the_child_and_its_children_end_when_its_parent_is_killed(export, tmp_path, monkeypatch):
    """No parent cleans up: the child ends because its standard input closes."""
    code = (
        "import os, sys\n"
        "from harness.export import executorch, options\n"
        "executorch.CHILD = 'stand_in_child'\n"
        "end = lambda stage: os._exit(7) if stage == 'lowering to Core ML' else None\n"
        "executorch.export(*sys.argv[1:3], options.ExportOptions(), sys.argv[3], end)\n"
    )
    monkeypatch.setenv("STAND_IN", "hang")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    words = [str(tmp_path / p) for p in ("in/checkpoint.pth", "in/params.json", "out/model.pte")]
    assert subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT).returncode == 7
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 and wait_until_gone(pids)


def wait_until_gone(pids):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(p) and is_running(p) for p in pids):
            return True
        time.sleep(0.05)
    return False


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_the_child_refuses_is_our_own_sentence(export, tmp_path, monkeypatch):
    monkeypatch.delenv("STAND_IN_SKIPS_CHECKPOINT")
    params = {**PARAMS, "use_scaled_rope": True, "low_freq_factor": 2.0}
    (tmp_path / "in" / "params.json").write_text(json.dumps(params))
    with pytest.raises(HarnessError, match="only knows RoPE scaling .* not 2 and 8192$"):
        export("write")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (None, "checkpoint.pth does not fit its params: norm.weight is missing$"),
        (torch.full((32,), torch.nan), "cannot be exported in fp16: norm.weight holds NaN$"),
    ],
)
def test_a_checkpoint_is_refused_before_a_process_starts(
    export, tmp_path, monkeypatch, change, sentence
):
    monkeypatch.setattr(executorch, "Child", None)
    weights = {name: value for name, value in WEIGHTS.items() if name != "norm.weight"}
    changed = {} if change is None else {"norm.weight": change}
    torch.save(weights | changed, tmp_path / "in" / "checkpoint.pth")
    with pytest.raises(HarnessError, match=sentence):
        export("write")
    assert left_behind(tmp_path) == []


def test_options_that_do_not_fit_fail_before_a_process_starts(export, tmp_path, monkeypatch):
    monkeypatch.setattr(executorch, "Child", None)
    with pytest.raises(HarnessError, match="groups of 64 do not fill"):
        export("write", embedding_quantize="4,64")


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path):
    params = tmp_path / "params.json"
    params.write_text(json.dumps(PARAMS))
    for output, sentence in (
        (tmp_path / "absent" / "model.pte", "cannot write into .*absent: No such file"),
        (tmp_path, "it is a folder; name a file in it"),
    ):
        with pytest.raises(HarnessError, match=sentence):
            executorch.export("c.pth", params, ExportOptions(), output)

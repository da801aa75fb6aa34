"""Where an export works: folders that cannot be written, full disks, two at once, and SIGTERM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cli import main
from harness.export import executorch
from harness.files import Kind, partial_folder
from harness.fixtures.small_llama import content, export_small, write_model

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--input-len", "4", "--max-context-len", "24", "--target-split-size", "none")
UNWRITABLE = "/proc"  # even for root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def whole(model):
    """Return the content of our export."""
    return content(export_small(model, model / "whole"))


def words(model, output, exporter="coreml"):
    source = ("--checkpoint", model / "checkpoint.pth", "--params", model / "params.json")
    return [str(w) for w in ("export", *source, "--exporter", exporter, *SMALL, "-o", output)]


def started(arguments, cwd=ROOT, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "HARNESS_CACHE"}
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments, "-q"],
        env=environment | {"PYTHONPATH": str(ROOT)} | variables,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


@pytest.mark.linux
def test_an_export_needs_no_folder_but_its_outputs(model, whole, tmp_path):
    """Home, temporary folder and working folder cannot be written: Python finds another for it."""
    nowhere = {"HOME": f"{UNWRITABLE}/none", "TMPDIR": UNWRITABLE}
    process = started(words(model, tmp_path / "out"), cwd=UNWRITABLE, **nowhere)
    assert process.communicate()[1] == "" and process.returncode == 0
    assert content(tmp_path / "out") == whole


@pytest.mark.linux
def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HARNESS_CACHE", f"{UNWRITABLE}/cache")
    output = tmp_path / "out"
    assert main(["export", "--model", "tiny", "--exporter", "coreml", "-o", str(output)]) == 2
    error = capsys.readouterr().err
    assert "cannot make the cache folder /proc/cache" in error and "set HARNESS_CACHE" in error
    assert error.count("\n") == 1 and not output.exists()


@pytest.mark.parametrize("exporter", ["coreml", "executorch"])
@pytest.mark.linux
def test_an_output_folder_that_cannot_be_written_is_one_sentence(model, capsys, exporter):
    output = f"{UNWRITABLE}/out" + (".pte" if exporter == "executorch" else "")
    assert main(words(model, output, exporter)) == 2
    error = capsys.readouterr().err
    assert f"cannot write into {UNWRITABLE}" in error and error.count("\n") == 1


@pytest.mark.parametrize("exporter", ["coreml", "executorch"])
def test_a_disk_that_is_full_is_one_sentence(
    model, tmp_path, monkeypatch, capsys, fill_disk, exporter
):
    monkeypatch.setattr(executorch, "CHILD", "stand_in_child")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{ROOT}")
    monkeypatch.setenv("STAND_IN", "write_much")
    monkeypatch.setenv("STAND_IN_SKIPS_CHECKPOINT", "1")
    (folder := tmp_path / "folder").mkdir()
    fill_disk()
    output = folder / ("out.pte" if exporter == "executorch" else "out")
    assert main(words(model, output, exporter)) == 2
    error = capsys.readouterr().err
    assert "File too large" in error and error.count("\n") == 1
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_two_exports_at_once_leave_two_whole_folders_or_one(model, whole, tmp_path):
    outputs = [tmp_path / name for name in ("one", "two", "one")]
    both = [started(words(model, output)) for output in outputs]
    for process in both:
        assert process.communicate()[1] == "" and process.returncode == 0
    assert [content(tmp_path / name) for name in ("one", "two")] == [whole, whole]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


SWAP = """
import sys
from pathlib import Path
from harness.files import Kind, partial_folder
for number in range(100):
    with partial_folder(Path(sys.argv[1]), Kind("mark", ("*",)), replace=True) as folder:
        (folder / "mark").write_text(sys.argv[2])
        (folder / "other").write_text(sys.argv[2])
"""


def test_folders_that_are_replaced_at_the_same_moment_stay_whole(tmp_path):
    output = tmp_path / "out"
    with partial_folder(output, Kind("mark", ("*",))) as folder:
        (folder / "mark").write_text("first")
    command = [sys.executable, "-c", SWAP, str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    swapping = [
        subprocess.Popen([*command, name], env=environment, stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    for process in swapping:
        assert process.communicate()[1] == ""
    assert set(content(output)) == {"mark", "other"}
    assert len(set(content(output).values())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sigterm_ends_an_export_as_an_interrupt_does(model, tmp_path):
    (tmp_path / "tmp").mkdir()
    process = started(words(model, tmp_path / "out"), TMPDIR=str(tmp_path / "tmp"))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1] == "harness export: interrupted\n"
    assert process.returncode == 143
    left = [p.name for p in (tmp_path / "tmp").iterdir() if "torchinductor" not in p.name]
    assert left == [] and [path.name for path in tmp_path.iterdir()] == ["tmp"]

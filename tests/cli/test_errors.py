"""The command line prints one sentence for an error."""

import errno
import platform
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from harness.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")


def test_a_name_in_a_file_cannot_drive_the_terminal(tmp_path, capsys):
    path = tmp_path / "model\x1b[2J.pte"
    path.write_bytes(b"no program")
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr().err
    assert "\x1b" not in printed and "model\\x1b[2J.pte" in printed


@pytest.mark.linux
@pytest.mark.parametrize("words", [["models"], ["models", "--json"]])
@pytest.mark.parametrize("buffer", [1, 1 << 20])  # it fails at a print, and at the last flush
def test_an_output_on_a_full_disk_is_one_sentence(monkeypatch, capsys, words, buffer):
    with FULL.open("w", buffering=buffer) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words) == 2
    wanted = "harness models: standard output cannot be written (No space left on device)\n"
    assert capsys.readouterr().err == wanted


def test_a_process_with_a_full_or_closed_output_ends_with_one_sentence():
    """Python's own exit adds nothing: it would try to print the rest again."""
    command = f"{sys.executable} -m harness models --quiet"  # progress shows after 2 s
    places = {">&-": "standard output is closed; send it to a file, or to /dev/null"}
    if platform.system() == "Linux":
        places[f">{FULL}"] = "standard output cannot be written (No space left on device)"
    for place, sentence in places.items():
        done = subprocess.run(
            ["/bin/sh", "-c", f"{command} {place}"], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (2, f"harness models: {sentence}\n")


def test_a_full_disk_elsewhere_is_not_taken_for_the_output(monkeypatch, capsys):
    def run(args):
        raise OSError(errno.ENOSPC, "No space left on device", "elsewhere")

    monkeypatch.setitem(COMMANDS, "models", COMMANDS["models"]._replace(run=run))
    assert main(["models"]) == 2
    wanted = "harness models: [Errno 28] No space left on device: 'elsewhere'\n"
    assert capsys.readouterr().err == wanted


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_suite_is_one_sentence(monkeypatch, capsys, number, status):
    def interrupted(words, plugins):  # as pytest does
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            return pytest.ExitCode.INTERRUPTED

    monkeypatch.setattr(pytest, "main", interrupted)
    assert main(["conformance"]) == status
    assert capsys.readouterr().err == "harness conformance: interrupted\n"


def test_a_folder_that_was_removed_is_one_sentence(tmp_path, monkeypatch, capsys):
    package = tmp_path / "a.mlpackage"
    package.mkdir()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["combine", f"{package}:main", "-o", "out.mlpackage"]) == 2
    assert capsys.readouterr().err.startswith("harness combine: ")


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("goes_on", [True, False])  # whether the command ends before it is resent
def test_a_signal_in_a_finalizer_ends_the_command(monkeypatch, capsys, number, status, goes_on):
    """Python reports and drops what a finalizer raises."""

    class Owner:
        pass

    def run(args):
        for _ in range(2):  # the second signal lands in a finalizer, too
            owner = Owner()
            weakref.finalize(owner, signal.raise_signal, number)
            del owner
        for _ in range(500 if goes_on else 0):
            time.sleep(0.01)
        ended.append(goes_on)
        return 0

    ended = []
    monkeypatch.setitem(COMMANDS, "models", COMMANDS["models"]._replace(run=run))
    assert main(["models"]) == status
    assert capsys.readouterr().err == "harness models: interrupted\n"
    assert ended == ([] if goes_on else [False])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_argument_too_many_shows_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "a", "b"])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: harness inspect ") and "arguments: b" in printed


@pytest.mark.parametrize("command", ["check", "inspect", "bench", "run"])
def test_a_file_that_cannot_be_read_is_refused_before_a_command_imports(
    monkeypatch, tmp_path, capsys, command
):
    monkeypatch.setitem(COMMANDS, command, COMMANDS[command]._replace(run=lambda args: 1 / 0))
    (empty := tmp_path / "empty.pte").touch()
    for path in (empty, tmp_path / "nowhere.pte"):
        words = ["--prompt", "a", "--tokenizer", "t.json"] if command == "run" else []
        assert main([command, str(path), *words]) == 2
        assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["chek", "m.pte"], "did you mean 'check'?"),
        (["check", "m.pte", "--chekpoint", "c"], "--chekpoint: did you mean '--checkpoint'?"),
        (["export", "--chekpoint=c", "-o", "o"], "--chekpoint: did you mean '--checkpoint'?"),
        (["export", "--model", "tiny", "--mode", "singel", "-o", "o"], "did you mean 'single'?"),
    ],
)
def test_a_misspelled_command_option_or_choice_gets_the_nearest(capsys, words, hint):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"; {hint}\n")


def test_a_word_that_nothing_is_near_gets_no_hint(capsys):
    for words in (["xyz"], ["check", "m.pte", "--zzzz"], ["check"], ["check", "--check"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["bench", "tiny+b4", "-q"], "'b4' is not one of none, b4w, c4w; did you mean 'b4w'?\n"),
        (["bench", "tiny", "--runtime", "mil:strct"], "did you mean 'mil:strict'? choose from"),
        (["export", "--model", "tinny", "-o", "o"], "did you mean 'tiny'? there are tiny, "),
        (["bisect", "tiny", "--method", "forwar"], "did you mean 'forward'? there are forward"),
    ],
)
def test_a_misspelled_name_gets_the_nearest(capsys, words, hint):
    assert main(words) == 2
    assert hint in capsys.readouterr().err


def test_an_empty_prompt_is_told_what_a_prompt_needs(capsys):
    assert main(["run", "m.pte", "--tokenizer", "t", "--prompt", ""]) == 2
    wanted = "harness run: --prompt is empty: a prompt needs one token or more: give a text\n"
    assert capsys.readouterr().err == wanted

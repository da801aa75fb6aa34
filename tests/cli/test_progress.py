"""A command that takes long shows what it does: lines in a log, a bar on a terminal."""

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from harness.cli import progress as module
from harness.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    monkeypatch.setattr(module, "_REDRAW", 0.01)


def shown(stream, monkeypatch, quiet=False):
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("reading", quiet) as progress:
        time.sleep(0.2)
        progress("checking parity", 3, 7)
        time.sleep(0.2)
        progress.hide()
        before = stream.getvalue()
        time.sleep(0.1)
        assert stream.getvalue() == before, "it was drawn over what the command prints"
        progress("a stage that is over at once")
    return stream.getvalue()


def test_a_log_gets_a_line_for_each_long_stage(fast, monkeypatch):
    lines = shown(io.StringIO(), monkeypatch).splitlines()
    assert [re.sub(r"^ +\d+\.\d s  ", "", line) for line in lines] == [
        "reading",
        "checking parity (3 of 7 done)",
    ]


def test_a_terminal_gets_one_line_that_vanishes(fast, monkeypatch):
    text = shown(Terminal(), monkeypatch)
    assert "\n" not in text
    assert "reading" in text and re.search(r"checking parity: .*\| 3 of 7, 00:00", text)
    assert text.endswith("\r\x1b[K")


def test_quiet_shows_nothing(fast, monkeypatch):
    assert shown(io.StringIO(), monkeypatch, quiet=True) == ""


def test_a_stage_that_lasts_is_said_again(fast, monkeypatch):
    monkeypatch.setattr(module, "_REMINDER", 0.1)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("a long one"):
        time.sleep(0.5)
    assert len(stream.getvalue().splitlines()) >= 3


def test_short_stages_that_follow_one_another_are_said(fast, monkeypatch):
    monkeypatch.setattr(module, "_REMINDER", 0.2)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("first") as progress:
        for number in range(30):
            progress(f"stage {number}")
            time.sleep(0.03)
    assert 2 <= stream.getvalue().count("stage") <= 6


def test_a_log_is_never_silent_for_more_than_ten_seconds():
    assert module._REMINDER <= 10


def test_a_short_command_shows_nothing_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "harness", "models"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, timeout=60)
    os.close(theirs)
    os.set_blocking(ours, False)
    with pytest.raises(OSError):  # nothing to read
        os.read(ours, 100)
    os.close(ours)
    assert done.returncode == 0


@pytest.mark.parametrize("words", [["--version"], ["models", "--json"]])
def test_the_module_is_the_command(words):
    command = [sys.executable, "-m", "harness", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


def test_conformance_refuses_what_pytest_does_not_know():
    command = [sys.executable, "-m", "harness", "conformance", "--no-such-option"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr

"""A command that takes long shows what it does: lines in a log, a bar on a terminal."""

import io
import re
import subprocess
import sys
import time

import pytest

from harness.cli import progress as module
from harness.cli.progress import Progress
from harness.suites.terminal.watch import MAX_SILENCE, drawn, watch

REMINDER = module._REMINDER  # the fixture of all tests changes it


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    monkeypatch.setattr(module, "_PATIENCE_ON_TERMINAL", 0.05)
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
    assert REMINDER <= 10


def test_a_short_command_shows_nothing_on_a_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("a short one"):
        time.sleep(0.3)
    assert stream.getvalue() == ""


def test_a_command_shows_a_sign_of_life_on_a_terminal_and_leaves_nothing_of_it(tmp_path):
    """The line of progress is not drawn over what is printed, nor into it."""
    code = (
        "import sys, time; from harness.cli.output import checked_output\n"
        "from harness.cli.progress import Progress\n"
        "with Progress('computing') as progress, checked_output(progress):\n"
        "    time.sleep(1.2); print('begun, ', end='', flush=True); time.sleep(0.6)\n"
        "    print('ended', flush=True); time.sleep(0.6); print('noted', file=sys.stderr)\n"
        "    progress('a stage of ' + 'many words ' * 20, 1, 2); time.sleep(1.2)"
    )
    found = watch([sys.executable, "-c", code], columns=60)
    assert found.status == 0 and found.screen == ["begun, ended", "noted"]
    lines = drawn(found.output)
    assert lines[0].startswith("computing  00:0") and "| 1 of 2, 00:0" in lines[-1]
    assert max(map(len, lines)) < 60
    assert "begun, ended" in found.output, "progress was drawn into a line"
    assert found.longest.judged < MAX_SILENCE


@pytest.mark.parametrize("words", [["--version"], ["models", "--json", "-q"]])
def test_the_module_is_the_command(words):
    command = [sys.executable, "-m", "harness", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


def test_conformance_refuses_what_pytest_does_not_know():
    command = [sys.executable, "-m", "harness", "conformance", "--no-such-option"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr


def test_a_suite_shows_its_running_test_and_each_failure_at_once(tmp_path):
    tests = {"slow": "time.sleep(1.5)", "bad": "assert 1 == 2", "last": "time.sleep(1.5)"}
    lines = ["import time", *(f"def test_{name}(): {code}" for name, code in tests.items())]
    (tmp_path / "test_it.py").write_text("\n".join(lines))
    code = (
        "import pytest, sys; from harness.cli.output import checked_output\n"
        "from harness.cli.progress import Progress, suite_plugin\n"
        "with Progress('starting') as progress, checked_output(progress, exactly=True):\n"
        "    words = ['test_it.py', '-rfE', '-o', 'console_output_style=classic', *sys.argv[1:]]\n"
        "    sys.exit(pytest.main(words, [suite_plugin(progress)]))"
    )
    found = watch([sys.executable, "-c", code], folder=tmp_path)
    lines = drawn(found.output)
    assert any(re.match(r"slow: .* 0 of 3", line) for line in lines)
    assert any(re.match(r"last: .* 2 of 3", line) for line in lines)
    failure, *others = [line for line in found.screen if line.startswith("FAILED")]
    assert failure == "FAILED bad: assert 1 == 2" and len(others) == 1, "and in the summary"
    assert found.status == 1 and found.screen[-1].strip("= ").startswith("1 failed, 2 passed")
    assert found.longest.judged < MAX_SILENCE
    dots = watch([sys.executable, "-c", code, "-v"], folder=tmp_path)
    assert "test_it.py::test_slow PASSED" in dots.screen

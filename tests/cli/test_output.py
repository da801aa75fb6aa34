"""What commands print fits a terminal, has colours there, and is plain elsewhere."""

import io
import re
import sys

import pytest

from harness.cli.output import print_fitted, print_painted

PASS = "pass  parity: prefill error 0.1 (<= 0.2); decode error 0.1 (<= 0.2)"
REMEDY = "      remedy    List the names in the order of the function"
LINES = f"{PASS}\nfail  \x1b[2Jx\n{REMEDY}\n\n  better 3\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def printed(monkeypatch):
    """Return a function that prints to a stream, and returns what it holds."""

    def printed(stream, text):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("COLUMNS", "40")
        print_painted(text)
        return stream.getvalue()

    return printed


def test_a_pipe_gets_the_lines_as_they_are(printed):
    assert printed(io.StringIO(), LINES) == LINES.replace("\x1b", "\\x1b")


def test_a_terminal_gets_lines_of_its_width_with_the_outcomes_in_colours(printed):
    text = printed(Terminal(), LINES)
    plain = re.sub(r"\x1b\[\d*m", "", text)
    assert plain.split() == LINES.replace("\x1b", "\\x1b").split()
    assert max(map(len, plain.splitlines())) <= 40 and "\n      0.2); decode" in plain
    assert "      remedy    List the names in the\n                order" in plain
    assert text.startswith("\x1b[32mpass\x1b[0m  parity") and "\n  \x1b[32mbetter" in text
    assert "\n\x1b[31mfail\x1b[0m  \\x1b[2Jx\n" in text, "the artifact's own sequence is escaped"


def test_no_color_leaves_a_terminal_without_colours(printed, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed(Terminal(), LINES)


def test_a_table_wraps_its_column_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    rows, shown = [("tiny", "many words " * 9, "128")], []
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stdout", stream)
        print_fitted(rows, ("model", "what it is", "context"), column=1)
        shown.append(stream.getvalue().splitlines())
    assert len(shown[0]) == 3 and len(shown[1]) > 3
    assert max(map(len, shown[1])) <= 60 < len(shown[0][2])

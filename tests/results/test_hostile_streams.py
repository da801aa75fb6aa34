"""Hostile streams do not harm the reader or the drawings: they are untrusted input."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from harness.cli import main
from harness.errors import HarnessError
from harness.report import wants_colours
from harness.results import Figure, InvalidStream, Writer, read_run
from harness.results.lines import parse_line
from tests.results.runs import HEADER, PARITY, SKIPPED, lines_of, write_lines, write_run

HOSTILE = '"><img src=x onerror=alert(1)><script>\ud800\x1b]0;x\x07'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"type": "case", "type": "footer"}', "same key twice"),
        (b'{"type": NaN}', "not JSON"),
        (b'{"type": 1e999}', "out of range"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "limit"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b" " * ((1 << 20) + 1), "longer than"),
        (b"[]", "is not of type 'object'"),
        (b'{"type": "other"}', "'other' is not one of"),
    ],
)
def test_a_line_made_to_hurt_is_refused(line, problem):
    with pytest.raises(ValueError, match=problem):
        parse_line(line)


def test_a_file_too_large_is_refused_unread(tmp_path, monkeypatch):
    path = write_run(tmp_path / "run.jsonl", PARITY)
    monkeypatch.setattr("harness.results.MAX_FILE_BYTES", 10)
    with pytest.raises(InvalidStream, match="is larger than"):
        read_run(path)


def test_a_fact_that_no_float_can_hold_is_refused(tmp_path):
    path = write_run(tmp_path / "run.jsonl", PARITY)
    records = lines_of(path)
    records[1]["facts"]["pte bytes"] = 10**400  # percent of it cannot be computed
    with pytest.raises(InvalidStream, match="line 2: facts: pte bytes"):
        read_run(write_lines(path, records))
    with pytest.raises(HarnessError, match="cannot be recorded"):
        write_run(path, replace(PARITY, facts={"pte bytes": 10**400}))


def test_the_json_of_a_comparison_is_no_run_and_the_message_says_so(tmp_path):
    path = tmp_path / "gate.json"
    path.write_text('{\n  "type": "gate"\n}\n')
    with pytest.raises(InvalidStream, match="line 1: .* not a JSON document such as"):
        read_run(path)


def test_a_stream_cut_anywhere_is_refused(tmp_path):
    whole = write_run(tmp_path / "run.jsonl", PARITY, SKIPPED).read_bytes()
    lines_end = {index for index, byte in enumerate(whole) if byte == ord("\n")}
    cut = tmp_path / "cut.jsonl"
    # Only the last newline may be missing; every other byte matters.
    for length in sorted({*range(0, len(whole) - 2, 23), *lines_end, len(whole) - 2}):
        if length < len(whole) - 1:
            cut.write_bytes(whole[:length])
            with pytest.raises(InvalidStream):
                read_run(cut)


def test_another_schema_is_refused(tmp_path):
    path = write_run(tmp_path / "run.jsonl", PARITY)
    records = lines_of(path)
    records[0]["schema"] = 3
    with pytest.raises(InvalidStream, match="line 1: schema: 3 is not one of"):
        read_run(write_lines(path, records))


def test_a_case_written_twice_is_refused_when_it_is_written(tmp_path):
    with pytest.raises(HarnessError, match="ran twice"), Writer(tmp_path / "x", HEADER) as writer:
        writer.add(PARITY)
        writer.add(PARITY)
    assert not (tmp_path / "x").exists()


def test_a_pass_that_compared_nothing_cannot_even_be_made():
    with pytest.raises(HarnessError, match="compared nothing has not passed"):
        replace(PARITY, comparisons=0)


def hostile_run(tmp_path):
    case = replace(PARITY, outcome="fail", reason=HOSTILE, facts={HOSTILE: HOSTILE})
    case = replace(case, figures={HOSTILE: Figure(2.0, "", 1.0)})
    header = replace(HEADER, options={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE})
    return write_run(tmp_path / "run.jsonl", case, header=header)


class Elements(HTMLParser):
    """Collects the names of all elements and attributes of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_the_page_is_self_contained_whatever_a_result_says(tmp_path):
    main(["report", str(hostile_run(tmp_path)), "-o", str(tmp_path)])
    page = Elements()
    page.feed((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert not page.tags & {"img", "iframe", "object", "base", "embed", "audio", "video"}
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("<script") == 1 and "script-src 'sha256-" in text  # its own; see tests/report
    active = {"style", "src", "srcdoc", "srcset", "action", "formaction"}
    assert not {name for name in page.attributes if name in active or name.startswith("on")}
    links = re.findall(r'href="([^"]*)"', text)
    assert links and all(link.startswith(("#", "data:image/svg+xml,")) for link in links)


def test_junit_stays_well_formed_whatever_a_result_says(tmp_path):
    main(["report", str(hostile_run(tmp_path)), "-o", str(tmp_path)])
    (failure,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("failure")
    assert "\\ud800\\x1b]0;x\\x07" in failure.get("message")


def test_the_terminal_is_not_driven_by_a_result(tmp_path, capsys):
    assert main(["report", str(hostile_run(tmp_path))]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed


def test_report_says_by_its_status_how_the_run_went(tmp_path, capsys):
    good = write_run(tmp_path / "good.jsonl", PARITY, SKIPPED)
    assert main(["report", str(good), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["pass"] == 1
    assert main(["report", str(tmp_path / "missing.jsonl")]) == 2
    assert main(["report", str(good), "-o", str(good)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_are_for_a_terminal_that_did_not_refuse_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colours(Terminal()) and not wants_colours(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colours(Terminal())

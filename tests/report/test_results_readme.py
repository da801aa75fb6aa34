"""results/README.md describes a stream correctly."""

import json
import re
from pathlib import Path

import pytest

import harness.report
import harness.results
from harness.results import OUTCOMES, read_run

README = Path(__file__).parents[2] / "results" / "README.md"
SCHEMA = Path(harness.results.__file__).parent / "schema.json"
RECORDS = ("header", "case", "footer", "figure", "finding", "histogram", "profile")
NAMED = set(re.findall(r"`([^`\n]+)`", README.read_text()))


def block(language):
    (found,) = re.findall(rf"``{language}\n(.*?)``", README.read_text(), re.DOTALL)
    return found


def test_the_example_is_a_stream(tmp_path):
    (tmp_path / "run.jsonl").write_text(block("json"))
    run = read_run(tmp_path / "run.jsonl")
    assert run.footer.passed and [case.outcome for case in run.cases] == ["pass", "skip"]


def test_the_code_reads_the_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "conformance.jsonl").write_text(block("json"))
    exec(compile(block("python"), str(README), "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        "conformance/parity[tiny,single,mil:widen] pass {'decode error': 2e-07}",
        "conformance/parity[tiny,single,executorch] skip {}",
    ]


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_of_the_schema_is_described(record):
    fields = json.loads(SCHEMA.read_text())["$defs"][record]["properties"]
    assert not set(fields) - NAMED


def test_every_outcome_and_drawing_is_described():
    assert not set(OUTCOMES) - NAMED
    assert not set(harness.report.DRAWINGS) - NAMED

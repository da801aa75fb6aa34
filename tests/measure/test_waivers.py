"""A waiver excuses what it names until its day; one that excuses nothing is noted."""

import json
from dataclasses import replace
from datetime import date

import pytest

from harness.cli import main
from harness.errors import HarnessError
from harness.fixtures.project import read_project
from harness.measure import GateResult, Metric
from harness.measure.verdicts import Waiver
from tests.results.runs import PARITY, write_run

TODAY = date(2026, 6, 1)
WORSE = Metric(PARITY.id, "decode error", "figure", "1", "2", "regression", "why")
OTHER = Metric(PARITY.id, "pte bytes", "fact", "1", "2", "regression", "why")


def waived(*waivers, metrics=(WORSE, OTHER)):
    return GateResult(metrics, ()).waiving(waivers, TODAY)


def waiver(case=PARITY.id, metric="decode error", expires=date(2026, 6, 1)):
    return Waiver(case, "issue 7", expires, metric)


def test_a_waiver_excuses_what_it_names_and_nothing_else():
    result = waived(waiver())
    assert [metric.verdict for metric in result.metrics] == ["waived", "regression"]
    assert result.metrics[0].reason == "issue 7, until 2026-06-01: why"
    assert result.status == 1 and waived(waiver(metric="*")).status == 0


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("*", True),
        ("conformance/parity[tiny,*", True),
        ("*,mil:widen]", True),
        ("conformance/parity[atiny]*", False),  # brackets are no set of characters
        ("conformance/parity", False),
    ],
)
def test_brackets_of_an_id_are_themselves(pattern, matches):
    assert waiver(pattern).matches(PARITY.id, "decode error") is matches


def test_an_expired_waiver_is_as_if_not_there_and_noted():
    result = waived(waiver(expires=date(2026, 5, 31)))
    assert result.status == 1 and result.counts["waived"] == 0
    (note,) = result.notes
    assert note.startswith("Expired, and excuses nothing") and "issue 7" in note


def test_a_waiver_of_nothing_is_noted():
    (note,) = waived(waiver(metric="prefill error")).notes
    assert note.startswith("No metric has the names of the waiver of")
    (note,) = waived(waiver(), metrics=(replace(WORSE, verdict="same"),)).notes
    assert note.startswith("Nothing is worse that the waiver of") and "remove it" in note


def test_a_change_and_an_undecided_metric_are_waived_too():
    metrics = tuple(replace(WORSE, verdict=verdict) for verdict in ("changed", "inconclusive"))
    assert waived(waiver(), metrics=metrics).status == 0


def test_the_gate_reads_waivers_of_the_project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    worse = replace(PARITY, facts={**PARITY.facts, "operations": 598})
    runs = [
        str(write_run(tmp_path / f"{name}.jsonl", case))
        for name, case in (("a", PARITY), ("b", worse))
    ]
    assert main(["gate", *runs]) == 1
    row = 'case = "conformance/*"\nmetric = "operations"\nissue = "issue 7"\nexpires = 9999-01-01'
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "harness.toml").write_text(f"[[waivers]]\n{row}\n")
    monkeypatch.chdir(tmp_path / "inner")
    capsys.readouterr()
    assert main(["gate", *runs]) == 0
    printed = capsys.readouterr().out
    assert "waived" in printed and "issue 7, until 9999-01-01" in printed
    assert main(["gate", *runs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["waived"] == 1


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"case": "*", "issue": "7", "expire": date(2027, 1, 1)}, "did you mean 'expires'?"),
        ({"case": "*", "issue": "7"}, "'expires' is a required property"),
        ({"case": "*", "issue": "7", "expires": "31.1.2027"}, "give a date, as 2027-01-31"),
        ({"case": "*", "issue": "7", "expires": 2027}, "give a date, as 2027-01-31"),
    ],
)
def test_a_bad_waiver_is_refused_with_its_place(tmp_path, row, sentence):
    with pytest.raises(HarnessError) as caught:
        read_project(tmp_path / "harness.toml", {"waivers": [row]})
    assert "waivers" in str(caught.value) and sentence in str(caught.value)


def test_a_date_may_be_a_text(tmp_path):
    rows = [{"case": "*", "issue": "7", "expires": "2027-01-31"}]
    (found,) = read_project(tmp_path / "harness.toml", {"waivers": rows}).waivers
    assert found.expires == date(2027, 1, 31)

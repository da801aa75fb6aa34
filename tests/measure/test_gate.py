"""The gate distinguishes regressions from other changes, by verdict and exit status."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from harness.cli import main
from harness.fixtures.project import EXAMPLE
from harness.measure import GateResult, Metric
from harness.results import Figure
from tests.results.runs import HEADER, PARITY, SKIPPED, write_run

SLOW = replace(HEADER, machine={**HEADER.machine, "cpu": "another"})


@pytest.fixture
def gate(tmp_path, capsys):
    """Compare a run of PARITY with other cases; return (exit status, verdicts by metric)."""

    def compare(*cases, header=HEADER, arguments=()):
        base = write_run(tmp_path / "base.jsonl", PARITY, SKIPPED)
        head = write_run(tmp_path / "head.jsonl", *cases, header=header)
        status = main(["gate", str(base), str(head), "--json", *arguments])
        printed = capsys.readouterr()
        if status == 2:
            return status, printed.err
        metrics = json.loads(printed.out)["metrics"]
        return status, {m["name"]: m["verdict"] for m in metrics if m["case"] == PARITY.id}

    return compare


def with_figure(name, value):
    old = PARITY.figures[name]
    figure = Figure(value, old.unit, old.bound, old.better)
    return replace(PARITY, figures={**PARITY.figures, name: figure})


def with_fact(name, value):
    return replace(PARITY, facts={**PARITY.facts, name: value})


def test_a_run_against_itself_passes(gate):
    status, verdicts = gate(PARITY, SKIPPED)
    assert status == 0 and set(verdicts.values()) == {"same"}


@pytest.mark.parametrize(
    ("case", "metric"),
    [
        (with_fact("operations", 598), "operations"),
        (with_fact("pte bytes", 600_000), "pte bytes"),
        (with_figure("decode error", 5e-6), "decode error"),
        (with_figure("decode", 6.5), "decode"),
        (replace(PARITY, comparisons=500), "comparisons"),
        (replace(PARITY, figures={}), "decode error"),
        (replace(PARITY, outcome="fail", reason="off"), "outcome"),
        (
            replace(PARITY, outcome="crash", signal="SIGSEGV", reason="x", figures={}),
            "outcome",
        ),
        (replace(PARITY, outcome="skip", reason="not here", figures={}), "outcome"),
    ],
)
def test_what_got_worse_is_a_regression(gate, case, metric):
    status, verdicts = gate(case, SKIPPED)
    assert status == 1 and verdicts[metric] == "regression"


def test_runs_without_a_case_in_common_are_nothing_to_compare(gate):
    status, message = gate(replace(PARITY, fixture="other"), SKIPPED)
    assert status == 2 and "Nothing could be compared" in message


@pytest.mark.parametrize(
    ("case", "metric", "verdict"),
    [
        (with_fact("pte bytes", 570_000), "pte bytes", "better"),
        (with_fact("pte bytes", 579_000), "pte bytes", "same"),
        (with_fact("operations", 590), "operations", "better"),
        (with_figure("decode error", 1e-7), "decode error", "same"),
        (with_figure("decode error", 1e-6), "decode error", "same"),
        (with_figure("decode", 3.1), "decode", "same"),
        (with_figure("decode", 5.5), "decode", "unjudged"),
        (with_figure("decode", 2.0), "decode", "better"),
    ],
)
def test_what_got_better_or_stayed_within_its_margin_passes(gate, case, metric, verdict):
    status, verdicts = gate(case, SKIPPED)
    assert status == 0 and verdicts[metric] == verdict


def test_another_fact_is_a_change_that_its_name_accepts(gate):
    case = with_fact("opset", "CoreML7")
    status, verdicts = gate(case, SKIPPED)
    assert status == 1 and verdicts["opset"] == "changed"
    status, verdicts = gate(case, SKIPPED, arguments=["--accept", "opset"])
    assert status == 0 and verdicts["opset"] == "accepted"


OTHERS = [
    SLOW,
    replace(HEADER, machine={**HEADER.machine, "capability": "AVX512"}),
    replace(HEADER, machine={**HEADER.machine, "threads": 1}),
    replace(HEADER, mac={"model": "Mac14,3"}),
    replace(HEADER, merged=2),
]


@pytest.mark.parametrize("header", OTHERS)
def test_time_on_another_machine_decides_nothing_and_an_error_does(gate, header):
    case = with_figure("decode", 30.0)
    status, verdicts = gate(case, SKIPPED, header=header)
    assert status == 0 and verdicts["decode"] == "unjudged"
    assert verdicts["decode error"] == "same"
    worse = with_figure("decode error", 5e-6)
    assert gate(worse, SKIPPED, header=header)[0] == 1


def test_a_regression_is_told_before_what_is_undecided(gate):
    slow = Figure(3.5, "ms/token", spread=1.0)
    undecided = replace(PARITY, figures={**PARITY.figures, "decode": slow})
    margin = ["--margin", "decode=10"]
    assert gate(undecided, SKIPPED, arguments=margin)[0] == 4
    assert gate(undecided, SKIPPED, arguments=[*margin, "--allow-inconclusive"])[0] == 0
    both = replace(undecided, facts={**PARITY.facts, "operations": 598})
    assert gate(both, SKIPPED, arguments=[*margin, "--allow-inconclusive"])[0] == 1


def test_a_shard_is_compared_with_the_same_shard_only(gate):
    status, message = gate(PARITY, header=replace(HEADER, shard={"index": 2, "count": 5}))
    assert status == 2 and "HEAD is shard 2 of 5: merge all of them first" in message


def metric(verdict, accept=""):
    return Metric("artifact", "m", "fact", "a", "b", verdict, accept=accept)


def test_a_change_fails_until_it_is_accepted_by_its_name():
    result = GateResult((metric("changed", "program"), metric("changed", "weights")), ())
    assert result.status == 1 and result.unaccepted == ("program", "weights")
    partly = result.accepting(["program"])
    assert partly.status == 1 and partly.unaccepted == ("weights",)
    accepted = result.accepting(["weights", "program", "program"])
    assert accepted.status == 0 and accepted.counts["accepted"] == 2 and not accepted.notes


def test_a_regression_cannot_be_accepted_and_a_name_of_no_change_is_noted():
    result = GateResult((metric("regression", "program"),), ()).accepting(["program"])
    assert result.status == 1 and "--accept program: there is no change" in result.notes[0]


def test_a_name_by_which_nothing_can_be_accepted_is_refused(gate):
    status, message = gate(PARITY, SKIPPED, arguments=["--accept", "nonsense"])
    assert status == 2 and "--accept nonsense: no change has this name" in message
    assert (
        "weights, tables, constants, " in message and "bounds, " in message and "opset" in message
    )
    _, message = gate(PARITY, SKIPPED, arguments=["--accept", "opse"])
    assert "did you mean 'opset'?" in message
    assert gate(PARITY, SKIPPED, arguments=["--accept", "opset", "--accept", "weights"])[0] == 0


def test_the_option_that_would_accept_is_printed(tmp_path, capsys, monkeypatch):
    result = GateResult((metric("changed", "weights"),), ())
    monkeypatch.setattr("harness.measure.compare_runs", lambda *given: result)
    run = str(write_run(tmp_path / "run.jsonl", PARITY))
    assert main(["gate", run, run]) == 1
    printed = capsys.readouterr().out
    assert "To accept what changed: --accept weights\n" in printed and "FAILED" in printed
    assert main(["gate", run, run, "--accept", "weights"]) == 0


def test_other_options_make_facts_and_figures_inconclusive(gate):
    other = replace(HEADER, options={**HEADER.options, "seed": 7})
    _, verdicts = gate(with_fact("operations", 1), SKIPPED, header=other)
    assert verdicts["operations"] == "inconclusive"


@pytest.mark.parametrize("option", ["measure", "check", "runtime"])
def test_options_that_choose_cases_hide_no_change_of_those_that_both_runs_have(gate, option):
    other = replace(HEADER, options={**HEADER.options, option: ["other"]})
    assert gate(PARITY, SKIPPED, header=other)[0] == 0
    status, verdicts = gate(with_fact("pte bytes", 700_000), SKIPPED, header=other)
    assert status == 1 and verdicts["pte bytes"] == "regression"
    assert verdicts["operations"] == "same"


def test_a_case_that_was_not_asked_for_is_no_regression_and_does_not_pass(tmp_path, capsys):
    sizes = replace(PARITY, check="sizes")
    base = write_run(tmp_path / "base.jsonl", PARITY, sizes)
    other = replace(HEADER, options={**HEADER.options, "measure": False})
    head = write_run(tmp_path / "head.jsonl", PARITY, header=other)
    assert main(["gate", str(base), str(head)]) == 4
    printed = capsys.readouterr().out
    assert "HEAD was perhaps not asked for this case" in printed and "run both alike" in printed
    head = write_run(tmp_path / "head.jsonl", PARITY)
    assert main(["gate", str(base), str(head)]) == 1


def test_a_margin_of_ones_own(gate):
    assert gate(with_figure("decode", 3.5), SKIPPED, arguments=["--margin", "decode=20"])[0] == 0
    assert gate(with_figure("decode", 3.5), SKIPPED, arguments=["--margin", "decode=10"])[0] == 1
    status, message = gate(PARITY, SKIPPED, arguments=["--margin", "decod=20"])
    assert status == 2 and "has this name" in message


def test_a_margin_of_the_project_that_matches_nothing_is_noted(gate, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "harness.toml").write_text('[margins]\ndecod = 1\n"decode" = 20\n')
    assert gate(with_figure("decode", 3.5), SKIPPED)[0] == 0
    assert gate(with_figure("decode", 3.5), SKIPPED, arguments=["--margin", "decode=10"])[0] == 1
    assert main(["gate", "base.jsonl", "base.jsonl"]) == 0
    assert "Note: The margin of decod is not used: no figure" in capsys.readouterr().out
    assert gate(PARITY, SKIPPED, arguments=["--margin", "decod=10"])[0] == 2


def test_the_margin_of_the_example_applies(gate, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = EXAMPLE.read_text().splitlines()
    start = lines.index("# [margins]")
    text = "\n".join(line.removeprefix("# ") for line in lines[start : start + 2])
    (tmp_path / "harness.toml").write_text(text)
    assert "pte bytes" in text and gate(PARITY, SKIPPED)[0] == 0
    assert main(["gate", "base.jsonl", "base.jsonl"]) == 0
    assert "is not used" not in capsys.readouterr().out


def test_a_bad_margin_is_refused(gate):
    status, message = gate(PARITY, arguments=["--margin", "decode=-1"])
    assert status == 2 and "NAME=PERCENT" in message


def test_a_runtime_is_for_artifacts(gate):
    status, message = gate(PARITY, arguments=["--runtime", "mil:strict"])
    assert status == 2 and "--runtime is not for two result files" in message


def test_a_run_and_an_artifact_are_not_compared(tmp_path, capsys):
    run = write_run(tmp_path / "run.jsonl", PARITY)
    (tmp_path / "model.pte").write_bytes(b"")
    assert main(["gate", str(run), str(tmp_path / "model.pte")]) == 2
    assert "give two result files" in capsys.readouterr().err


def test_a_file_that_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("{}\n")
    assert main(["gate", str(tmp_path / "x.jsonl"), str(tmp_path / "x.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_two_artifacts_are_compared_whatever_their_names(tmp_path, capsys):
    names, case = ("old.pte", "new.pte"), replace(PARITY, suite="check")
    paths = [
        write_run(
            tmp_path / f"{name}.jsonl",
            replace(case, fixture=name, figures={"decode": Figure(speed, "ms/token")}),
            header=replace(HEADER, artifact={"name": name, "sha256": digit * 64, "bytes": 9}),
        )
        for name, speed, digit in zip(names, (3.0, 7.0), "ab", strict=True)
    ]
    assert main(["gate", *map(str, paths), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    worse = [(m["case"], m["name"]) for m in result["metrics"] if m["verdict"] == "regression"]
    assert worse == [("check/parity[old.pte,single,mil:widen]", "decode")]
    (note,) = result["notes"]
    assert "artifact of the runs differ (name old.pte -> new.pte, sha256 aaaa" in note


def test_without_a_header_that_names_them_two_names_are_two_subjects(tmp_path, capsys):
    base = write_run(tmp_path / "base.jsonl", PARITY)
    head = write_run(tmp_path / "head.jsonl", replace(PARITY, fixture="other"))
    assert main(["gate", str(base), str(head)]) == 2
    assert "no case is in both" in capsys.readouterr().err


def test_two_files_are_compared_without_torch(tmp_path):
    run = str(write_run(tmp_path / "run.jsonl", PARITY))
    script = (
        f"import sys; from harness.cli import main; main(['gate', {run!r}, {run!r}]);"
        "found = {'torch', 'coremltools'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

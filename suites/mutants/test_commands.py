"""`harness bench` and `gate` on real artifacts, sound and broken, as a user calls them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import main
from harness.subject import Subject
from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants import of_names as names
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants.edit import Export, Mutation

Command = Callable[..., tuple[int, str, str]]  # words -> status, standard output and error
Broken = Callable[[Mutation], Path]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subjects(lambda stage: None).get("tiny", "multifunction")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*words: object) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def broken(subject: Subject, tmp_path: Path) -> Broken:
    def make(mutate: Mutation) -> Path:
        export = Export(subject.artifact.path)
        mutate(export)
        return export.save(tmp_path / "broken.pte")

    return make


def test_bench_measures_and_checks_its_answer(command: Command, subject: Subject) -> None:
    words = ("--runtime", "mil:widen", "--runtime", "eager:fp32", "--rounds", 2, "--json")
    status, out, _ = command("bench", subject.artifact.path, *words)
    runtimes = json.loads(out)["runtimes"]
    assert status == 0 and set(runtimes) == {"mil:widen", "eager:fp32"}
    assert all(row["decode_ms_per_token"] > 0 for row in runtimes.values())
    assert runtimes["mil:widen"]["samples"] == {"prefill": 2, "decode": 64}


def test_bench_of_wrong_logits_is_an_error_and_no_result(command: Command, broken: Broken) -> None:
    status, out, err = command(
        "bench", broken(programs.wrong_softmax_axis), "--runtime", "mil:widen"
    )
    assert (status, out) == (2, "") and "its time is not a result" in err


def test_gate_of_an_artifact_against_itself_passes(command: Command, subject: Subject) -> None:
    path = subject.artifact.path
    words = ("--json", "--runtime", "mil:widen", "--seconds", 3)
    status, out, _ = command("gate", path, path, *words)
    metrics = json.loads(out)["metrics"]
    assert {m["name"] for m in metrics if m["case"] == "time"} >= {"decode", "prefill", "load"}
    assert {m["verdict"] for m in metrics if m["case"] != "time"} == {"same"}
    assert status in (0, 4)


def test_gate_of_a_broken_artifact_fails_until_the_change_is_accepted(
    command: Command, subject: Subject, broken: Broken
) -> None:
    """What the oracle finds wrong cannot be accepted; what it does not find wrong can."""
    words = ("--tier", "structure", "--tier", "numbers", "--runtime", "mil:widen")
    base, head = subject.artifact.path, broken(programs.wrong_softmax_axis)
    status, out, _ = command("gate", base, head, "--json", *words, "--accept", "program")
    verdicts = {m["name"]: m["verdict"] for m in json.loads(out)["metrics"]}
    assert status == 1 and verdicts["parity"] == "regression"
    assert verdicts["logits of decode"] == "regression"
    head = broken(programs.change_epsilon)
    status, out, _ = command("gate", base, head, *words)
    assert status == 1 and "To accept what changed: --accept program --accept outputs" in out
    assert " = add, y: FLOAT16[] 1e-05 -> FLOAT16[] 0.0001" in out
    status, out, _ = command("gate", base, head, *words, "--accept", "program")
    assert status == 1 and "To accept what changed: --accept outputs" in out


def test_gate_of_what_parity_cannot_look_at_fails(
    command: Command, subject: Subject, broken: Broken
) -> None:
    """Two that are equally broken do not pass: the oracle has compared nothing."""
    head = broken(programs.change_one_epsilon)
    words = ("--tier", "numbers", "--runtime", "mil:widen", "--all")
    status, out, _ = command("gate", subject.artifact.path, head, *words)
    assert status == 1 and "2 epsilons, not one" in out
    status, out, _ = command("gate", head, head, *words)
    assert status == 4 and "UNDECIDED" in out and "2 epsilons, not one" in out


def test_gate_of_a_head_without_its_data_names_it(
    command: Command, subject: Subject, broken: Broken
) -> None:
    head = broken(names.change_first_reference(key="of_another_export"))
    status, out, _ = command("gate", subject.artifact.path, head)
    said = " ".join(out.split())
    assert status == 1 and "'of_another_export', which the program does not hold" in said
    status, out, err = command("gate", head, subject.artifact.path)
    assert (status, out) == (2, "") and "'of_another_export'" in err


def test_gate_of_a_run_and_an_artifact_is_refused(
    command: Command, subject: Subject, tmp_path: Path
) -> None:
    (run := tmp_path / "run.jsonl").write_text("{}\n")
    status, _, err = command("gate", subject.artifact.path, run)
    assert status == 2 and "give two result files" in err

"""`harness bench` and `gate` on real artifacts, sound and broken, as a user calls them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import main
from harness.subject import Subject
from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants.edit import Export
from harness.suites.mutants.judge import Mutation

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
    status, out, _ = command("gate", path, path, "--json", "--runtime", "mil:widen")
    verdicts = {m["name"]: m["verdict"] for m in json.loads(out)["metrics"]}
    assert verdicts.pop("decode") in ("same", "inconclusive", "better", "regression")
    assert set(verdicts.values()) == {"same"} and len(verdicts) > 10
    assert status in (0, 1, 4)


def test_gate_of_a_broken_artifact_is_a_regression(
    command: Command, subject: Subject, broken: Broken
) -> None:
    status, out, _ = command("gate", subject.artifact.path, broken(programs.leak_fp32), "--json")
    assert status == 0, "the same operations and logits"
    status, out, _ = command(
        "gate", subject.artifact.path, broken(programs.wrong_softmax_axis), "--json"
    )
    verdicts = {m["name"]: m["verdict"] for m in json.loads(out)["metrics"]}
    assert status == 1 and verdicts["parity"] == "regression" and "decode" not in verdicts


@pytest.mark.parametrize("sound_base", [True, False])
def test_gate_of_what_parity_cannot_look_at_is_refused(
    command: Command, subject: Subject, broken: Broken, sound_base: bool
) -> None:
    """Two that are equally broken do not pass: nothing was compared."""
    head = broken(programs.change_one_epsilon)
    base = subject.artifact.path if sound_base else head
    status, out, err = command("gate", base, head)
    assert (status, out) == (2, "") and "2 epsilons, not one" in err


def test_gate_of_a_run_and_an_artifact_is_refused(
    command: Command, subject: Subject, tmp_path: Path
) -> None:
    status, _, err = command("gate", subject.artifact.path, tmp_path / "run.jsonl")
    assert status == 2 and "give two result files" in err

"""`harness check` records what a suite records: a stream, drawings, times, known defects."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from harness.checks import Check
from harness.cli import main
from harness.errors import HarnessError
from harness.fixtures.cache import exported, fixture
from harness.generate.session import Session
from harness.results import MissingFooter, read_run
from harness.suites.mutants import of_names as names
from harness.suites.mutants.edit import Export
from harness.text import content_digest

QUICK = ("--check", "references", "--check", "metadata-names")
DRAWINGS = {"check.jsonl", "table.txt", "junit.xml", "index.html", "badge.svg"}


@pytest.fixture(scope="module")
def sound():
    return exported("tiny", replace(fixture("tiny").options, mode="multifunction"))


@pytest.fixture
def call(capsys):
    """Run a command; return its exit status, standard output and standard error."""

    def call(*words):
        status = main([*map(str, words)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def replaced(monkeypatch):
    """Put checks in the place of all others."""
    from harness.checks import artifact_checks

    def replace_all(*checks):
        artifact_checks()  # imports the modules
        by_name = {check.name: check for check in checks}
        monkeypatch.setattr("harness.checks.subject.artifact_checks", lambda: by_name)

    return replace_all


def test_a_folder_gets_the_stream_and_its_drawings(call, sound, tmp_path):
    status, out, err = call("check", sound, *QUICK, "--results", tmp_path / "new" / "out")
    assert (status, err) == (0, "") and out.endswith(f"\nresults: {tmp_path / 'new' / 'out'}\n")
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == DRAWINGS
    run = read_run(tmp_path / "new" / "out" / "check.jsonl")
    assert run.footer.passed and run.footer.counts["pass"] == 2
    assert [case.id for case in run.cases] == [
        f"check/{check}[{sound.name},multifunction,-]" for check in ("references", "metadata-names")
    ]
    assert run.header.artifact["bytes"] == sound.stat().st_size
    assert run.header.options["check"] == ["references", "metadata-names"]
    assert run.header.options["compared with"] == "its own weights"
    folder = str(tmp_path / "new" / "out")
    assert list(run.header.typed) == [str(sound), "--results", folder], "for the page's commands"
    cases = (tmp_path / "new" / "out" / "check.jsonl").read_text().partition("\n")[2]
    assert cases and str(sound.parent) not in cases


def test_json_is_the_stream_of_the_file_and_nothing_else(call, sound, tmp_path):
    status, out, _ = call("check", sound, *QUICK, "--json", "--results", tmp_path)
    assert (status, out) == (0, (tmp_path / "check.jsonl").read_text())  # valid: each is validated
    _, alone, _ = call("check", sound, *QUICK, "--json")
    (tmp_path / "alone.jsonl").write_text(alone)
    both = [read_run(tmp_path / name) for name in ("check.jsonl", "alone.jsonl")]
    assert len({tuple(replace(c, seconds=0.0).id for c in run.cases) for run in both}) == 1
    assert both[0].header.artifact == both[1].header.artifact


def test_a_broken_artifacts_failures_are_in_the_stream_and_report_draws_it(call, sound, tmp_path):
    export = Export(sound)
    names.swap_outputs(export)
    path = export.save(tmp_path / "broken.pte")
    status, out, _ = call("check", path, *QUICK, "--results", tmp_path / "out")
    assert status == 1 and "fail  metadata-names" in out
    run = read_run(tmp_path / "out" / "check.jsonl")
    (failed,) = (case for case in run.cases if case.outcome == "fail")
    assert not run.footer.passed and "outputs: metadata.json's order is" in failed.reason
    assert 'failures="1"' in (tmp_path / "out" / "junit.xml").read_text()
    status, out, _ = call("report", tmp_path / "out" / "check.jsonl")
    assert status == 1 and "FAIL check/metadata-names[broken.pte,multifunction,-]" in out


def test_the_gate_compares_two_builds(call, sound, tmp_path):
    """They have other names and bytes; what got worse is found."""
    export = Export(sound)
    names.swap_outputs(export)
    worse = export.save(tmp_path / "worse.pte")
    shutil.copy(sound, tmp_path / "same.pte")
    for path in (sound, worse, tmp_path / "same.pte"):
        call("check", path, *QUICK, "--results", tmp_path / path.stem)
    base = tmp_path / sound.stem / "check.jsonl"
    status, out, _ = call("gate", base, tmp_path / "same" / "check.jsonl")
    assert status == 0 and "PASSED" in out and "name" in out
    status, out, _ = call("gate", base, tmp_path / "worse" / "check.jsonl", "--json")
    regressions = [m for m in json.loads(out)["metrics"] if m["verdict"] == "regression"]
    assert status == 1 and [m["name"] for m in regressions] == ["outcome"]
    assert regressions[0]["case"].startswith("check/metadata-names[")


def test_times_memory_and_sizes_are_cases(call, sound, tmp_path):
    words = ("--check", "references", "--runtime", "mil:widen", "--measure")
    status, out, _ = call("check", sound, *words, "--results", tmp_path)
    assert status == 0 and "pass  latency on mil:widen" in out and "ms/token; load " in out
    cases = {case.check: case for case in read_run(tmp_path / "check.jsonl").cases}
    assert list(cases) == ["references", "sizes", "latency", "memory"]
    figures = {**cases["latency"].figures, **cases["memory"].figures}
    depths = [name for name in figures if name.startswith("decode at ")]
    assert np.diff([int(name.split()[2]) for name in depths]).tolist() == [8, 8, 8]
    assert {name: figure.unit for name, figure in figures.items()} == {
        **dict.fromkeys(["decode", *depths], "ms/token"),
        "prefill": "ms/token",
        "load": "ms",
        "peak": "bytes",
    }
    assert all(figure.bound is None and figure.better == "lower" for figure in figures.values())
    assert cases["latency"].comparisons == 5 * 33 * 512  # logits, in each of the rounds
    assert cases["latency"].facts["decode steps"] == 5 * 32
    facts = cases["sizes"].facts
    assert facts["pte bytes"] == sound.stat().st_size
    assert facts["package 0 used weight bytes"] == 2 * facts["package 0 weight bytes"]


def test_calls_of_another_model_are_timed_and_compared(call, mixed_program, tmp_path):
    words = ("--check", "references", "--runtime", "mil:widen", "--measure")
    status, out, _ = call("check", mixed_program[0], *words, "--results", tmp_path)
    assert status == 0 and "pass  memory on mil:widen" in out
    cases = {case.check: case for case in read_run(tmp_path / "check.jsonl").cases}
    assert cases["latency"].comparisons > 0 and cases["latency"].mode == "-"
    assert {name: f.unit for name, f in cases["latency"].figures.items()} == {
        "forward call": "ms",
        "load": "ms",
    }
    peak = cases["memory"].figures["peak"]
    assert peak.unit == "bytes" and 50e6 < peak.value < 1e9 and cases["memory"].comparisons > 0


def test_a_wrong_answer_has_no_time_and_is_an_error(call, sound, tmp_path, monkeypatch):
    decode = Session.decode
    monkeypatch.setattr(Session, "decode", lambda self, token: decode(self, token).roll(1))
    words = ("--check", "references", "--runtime", "mil:widen", "--measure")
    status, out, _ = call("check", sound, *words, "--results", tmp_path)
    assert status == 1 and "error latency on mil:widen: " in out
    cases = {case.check: case for case in read_run(tmp_path / "check.jsonl").cases}
    assert cases["latency"].outcome == "error" and "its time is not a result" in (
        cases["latency"].reason
    )
    assert (cases["memory"].outcome, cases["memory"].reason) == (
        "skip",
        "because of N07 that latency found",
    )
    assert not cases["latency"].figures and not cases["memory"].figures


def test_an_interrupted_check_has_no_footer_and_draws_nothing(call, sound, tmp_path, replaced):
    def interrupt(subject):
        raise KeyboardInterrupt
        yield

    def find(subject):
        return iter(())

    replaced(Check("first", find), Check("second", interrupt))
    status, out, err = call("check", sound, "--json", "--results", tmp_path)
    assert (status, err) == (130, "harness check: interrupted\n")
    (partial,) = tmp_path.iterdir()
    assert partial.suffix == ".partial" and partial.read_text() == out
    with pytest.raises(MissingFooter, match="no footer after 1 cases"):
        read_run(partial)


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_check(call, sound, tmp_path):
    (tmp_path / "file").touch()
    status, out, err = call("check", sound, *QUICK, "--results", tmp_path / "file")
    assert (status, out) == (2, "") and "is a file, not a folder: name another place" in err


def test_a_name_may_be_given_and_a_files_is_made_fit(call, sound, tmp_path):
    shutil.copy(sound, odd := tmp_path / "tiny[1],b:c.pte")
    for words, name in (((), "tiny_1__b_c.pte"), (("--name", "coreml:mine"), "coreml:mine")):
        call("check", odd, *QUICK, *words, "--results", tmp_path)
        run = read_run(tmp_path / "check.jsonl")
        assert {case.fixture for case in run.cases} == {run.header.artifact["name"]} == {name}


@pytest.mark.parametrize("name", ["", "a,b", "a[b", "x" * 201])
def test_a_name_that_no_case_can_have_is_refused(call, sound, name):
    status, out, err = call("check", sound, *QUICK, "--name", name)
    sentence = "--name must have 1 to 200 characters" if name else "--name is empty: give a value"
    assert (status, out) == (2, "") and sentence in err


def test_a_subject_has_its_name_and_its_exporters_versions(call, tmp_path):
    for word, name, exporter in (
        ("tiny", "tiny", "executorch"),
        ("coreml:tiny/single", "coreml:tiny", "coreml"),
    ):
        status, _, _ = call("check", word, *QUICK, "--results", tmp_path)
        run = read_run(tmp_path / "check.jsonl")
        assert status == 0 and run.header.artifact["name"] == name
        assert list(run.header.exporters) == [exporter]
        assert run.header.exporters[exporter]["coremltools"]
        assert run.header.options["compared with"] == ["checkpoint"]


KNOWN = """
[[known]]
issue = "an issue"
check = "wrong"
fixture = "mine*"
exporter = "executorch >=1.3, <1.6"
"""


def test_known_defects_of_a_project_apply(call, sound, tmp_path, monkeypatch, replaced):
    (tmp_path / "harness.toml").write_text('known = ["known.toml"]\n')
    (tmp_path / "known.toml").write_text(KNOWN)
    monkeypatch.chdir(tmp_path)

    def wrong(subject):
        raise HarnessError("wrong")
        yield

    replaced(Check("wrong", wrong))
    expected = {
        "executorch@1.5.1:mine.pte": "known",
        "executorch@1.6.0:mine.pte": "error",
        "mine.pte": "error",  # its exporter's version is not known
        "executorch@1.5.1:other.pte": "error",
    }
    for name, outcome in expected.items():
        words = ("check", sound, "--check", "references", "--check", "wrong", "--name", name)
        replaced(Check("wrong", wrong), Check("references", _sound))
        status, out, _ = call(*words, "--results", "out")
        (case,) = (case for case in read_run("out/check.jsonl").cases if case.check == "wrong")
        assert (case.outcome, status) == (outcome, 0 if outcome == "known" else 1)
        assert ("known wrong: an issue: wrong\n" in out) == (outcome == "known")
        assert (", 1 known; " in out) == (outcome == "known")


def test_a_known_defect_that_no_longer_shows_says_so(call, sound, tmp_path, monkeypatch, replaced):
    (tmp_path / "harness.toml").write_text('known = ["known.toml"]\n')
    (tmp_path / "known.toml").write_text(KNOWN)
    monkeypatch.chdir(tmp_path)
    replaced(Check("wrong", _sound))
    status, out, _ = call("check", sound, "--name", "executorch@1.5.1:mine")
    assert status == 1 and "an issue no longer shows: remove it from the known issues" in out


def test_a_strict_check_accepts_a_warning_by_its_code(call, sound, tmp_path, monkeypatch, replaced):
    from harness.results import Finding

    (tmp_path / "harness.toml").write_text('known = ["known.toml"]\n')
    (tmp_path / "known.toml").write_text('[[known]]\nissue = "slow there"\ncode = "H42"\n')
    monkeypatch.chdir(tmp_path)
    accepted = "known hazards (1 comparison): slow there: H42 main: seen\nwarn  hazards: H42 "
    for codes, status, said in (
        (["H42"], 0, accepted),
        (["H42", "H48"], 1, "1 failed (H48)"),
        (["H48"], 1, "1 failed (H48)"),
        ([], 1, "slow there no longer shows: remove it from the known issues"),
    ):
        found = [Finding("hazards", "main", False, "seen", 1, code=c, warning=True) for c in codes]
        found = found or [Finding("hazards", "main", comparisons=1)]
        replaced(Check("hazards", lambda subject, found=found: iter(found)))
        words = ("check", sound, "--check", "hazards")
        given, out, err = call(*words, "--strict")
        assert (given, err) == (status, "") and said in out, out
        assert call(*words)[0] == int("H42" not in codes)  # not strict, and it must still show


def _sound(subject):
    from harness.results import Finding

    yield Finding("sound", "", comparisons=1)


def test_the_digest_of_a_folder_depends_on_names_and_contents(tmp_path):
    digests = set()
    for number, (name, content) in enumerate((("a", b"x"), ("b", b"x"), ("a", b"y"))):
        folder = tmp_path / str(number)
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / name).write_bytes(content)
        digest, size = content_digest(folder)
        assert size == 1
        digests.add(digest)
    assert len(digests) == 3
    assert content_digest(shutil.copytree(folder, tmp_path / "copy")) == (digest, 1)

"""BASE and HEAD of the gate are named in many ways; what is no pair is refused with a sentence."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from harness.cli import main
from harness.errors import HarnessError, NotInstalledError
from harness.export.exporters import Exporter, get_exporter
from harness.fixtures import sides
from harness.fixtures.subjects import Located
from harness.measure import GateResult, Metric
from harness.measure.statistics import Goal
from harness.suites.versions.checkouts import SCALE, SLEEP, write_checkout
from tests.mil.programs import save
from tests.results.runs import PARITY, write_run

TOML = """
[exporters]
branch = "coreml"

[subjects.shipped]
artifact = "model.pte"

[subjects."1.5.1"]
artifact = "model.pte"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a harness.toml, an artifact, a result file and two folders."""
    monkeypatch.chdir(tmp_path)
    Path("harness.toml").write_text(TOML)
    Path("model.pte").write_bytes(b"")
    Path("folder").mkdir()
    Path("executorch").mkdir()  # as a user's checkout may be called
    write_run(tmp_path / "run.jsonl", PARITY)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "kind", "name"),
    [
        ("run.jsonl", Path, "run.jsonl"),
        ("model.pte", Located, "model.pte"),
        ("folder", Located, "folder"),
        ("./executorch", Located, "executorch"),
        ("shipped", Located, "shipped"),
        ("1.5.1", Located, "1.5.1"),
        ("coreml", Exporter, "coreml"),
        ("branch", Exporter, "coreml"),
        ("executorch", Exporter, "executorch"),
        (f"executorch@{sys.executable}", Exporter, "executorch@"),
        (sys.executable, Exporter, "executorch@"),
        (str(Path(sys.executable).parents[1]), Exporter, "executorch@"),
    ],
)
def test_a_word_names_a_side(project, word, kind, name):
    found = sides.side(word)
    assert isinstance(found, kind)
    said = found.label if kind is Exporter else getattr(found, "name", None)
    assert str(said).startswith(name)


def test_a_checkout_is_an_exporter_of_its_own_sources(tmp_path):
    found = sides.side(str(write_checkout(tmp_path / "checkout", SCALE)))
    assert isinstance(found, Exporter) and "+src." in str(found.version)
    assert found.sources["exporter"] != get_exporter("executorch").sources["exporter"]


REFUSED = [
    (["run.jsonl", "model.pte"], "BASE is a result file, HEAD is an artifact"),
    (["coreml", "model.pte"], "EXPORTER:NAME/MODE is what an exporter makes of a model"),
    (["run.jsonl"], "HEAD is missing"),
    (["run.jsonl", "run.jsonl", "--base", "run.jsonl"], "BASE is given twice"),
    (["run.jsonl", "run.jsonl", "--fixture", "tiny"], "--fixture is not for two result files"),
    (["run.jsonl", "run.jsonl", "--runtime", "mil"], "--runtime is not for two result files"),
    (["model.pte", "model.pte", "--mode", "single"], "--mode is not for two artifacts"),
    (["coreml", "coreml", "--margin", "load=3"], "--margin is not for two exporters"),
    (["coreml", "coreml", "--fixture", "tiny+b5w"], "'b5w' is not one of none, b4w, c4w"),
    (["coreml", "coreml", "--fixture", "shipped"], "which no exporter makes"),
    (["coreml", "coreml", "--fixture", "tyni"], "there is no model 'tyni'"),
    (["run.jsonl", "absent.jsonl"], "there is no file absent.jsonl"),
    (["executorch@nowhere", "coreml"], "executorch@nowhere: give a version"),
    (["folder", "model.pte"], "folder"),
    (["coreml", "coreml", "--runtime", "mil:wide"], "mil:wide"),
    (
        ["coreml", "coreml", "--detect", "2", "--tolerate", "5%"],
        "A slowdown of 2 % is to be found and one of 5 % is tolerated",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_what_is_no_pair_is_refused(project, capsys, words, sentence):
    assert main(["gate", *words, "--results", "out"]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_comparison_is_written_for_people_and_for_programs(project, capsys):
    assert main(["gate", "--base", "run.jsonl", "--head", "run.jsonl", "--results", "out"]) == 0
    assert "results: out" in capsys.readouterr().out
    assert main(["gate", "run.jsonl", "run.jsonl", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads(Path("out/gate.json").read_text())
    assert printed["metrics"] == written["metrics"] and written["status"] == 0
    assert written["base"] == {"name": "run.jsonl", "kind": "result file"}
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "gate.json",
        "gate.md",
        "index.html",
    ]


REPEATED = (
    "harness gate base.mlpackage head.mlpackage --tier structure --tier numbers --runtime "
    "mil:strict --accept program --accept names --detect 4% --tolerate 0.7% --seconds 12.5 "
    "--allow-inconclusive"
)


def test_a_comment_repeats_what_was_typed_and_names_the_tiers_that_were_left_out(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, shape in (("base", (2, 8)), ("head", (4, 8))):
        model = save(lambda mb, a: mb.relu(x=a, name="out"), [shape])
        shutil.copytree(model.what, f"{name}.mlpackage")
    assert main([*REPEATED.split()[1:], "--results", "out"]) == 1
    assert "; not judged: time\n" in capsys.readouterr().out
    comment = Path("out/gate.md").read_text()
    assert f"\n{REPEATED}\n" in comment and "; not judged: time; in " in comment
    words = shlex.split(REPEATED)[1:]
    assert main([*words[:3], *words[5:], "--results", "out"]) == 1, "with one tier less"
    assert "not judged: structure, time" in Path("out/gate.md").read_text()


def test_a_pair_that_is_not_timed_is_not_said_to_be(monkeypatch):
    monkeypatch.setattr(sides, "subject_of", lambda located: located)
    said = []
    result = GateResult((SAME,), ())
    sides.compare_pairs(
        [sides.Pair("a/single", EXPORTED, EXPORTED)], lambda *_: result, said.append
    )
    assert said == ["comparing a/single"]


SAME = Metric("artifact", "decode", "figure", "1", "2", "same")
EXPORTED = Located(Path("model.pte"), {}, "model.pte")
FAILED = HarnessError("the export failed while lowering")


def compared(*pairs, verdict="same"):
    """Compare pairs of artifacts that are not read, because each gets one metric."""

    def compare(base, head):
        return GateResult((Metric("artifact", "decode", "figure", "1", "2", verdict),), ("so",))

    return sides.compare_pairs(pairs, compare, lambda stage: None)


def test_an_export_that_only_base_can_make_is_a_regression():
    result = compared(sides.Pair("tiny/single", EXPORTED, FAILED))
    (metric,) = result.metrics
    assert (metric.case, metric.name, metric.verdict) == ("tiny/single", "export", "regression")
    assert metric.reason == str(FAILED) and result.status == 1


def test_an_export_that_neither_can_make_compares_nothing():
    with pytest.raises(HarnessError, match="Nothing could be compared: tiny/single: the export"):
        compared(sides.Pair("tiny/single", FAILED, FAILED))


def test_the_metrics_of_each_pair_have_its_name(monkeypatch):
    monkeypatch.setattr(sides, "subject_of", lambda located: located)
    names = ("tiny/single", "tiny/multifunction")
    result = compared(*(sides.Pair(name, EXPORTED, EXPORTED) for name in names))
    assert [metric.case for metric in result.metrics] == [
        "tiny/single",
        "tiny/single: artifact",
        "tiny/multifunction",
        "tiny/multifunction: artifact",
    ]
    assert result.notes == ("tiny/single, tiny/multifunction: so",)


def test_runtimes_are_timed_when_they_differ(tmp_path):
    release = get_exporter("executorch")
    ours = get_exporter("coreml")
    same, slow = (
        get_exporter(f"executorch@{write_checkout(tmp_path / name, change)}")
        for name, change in (("same", SCALE), ("slow", SLEEP))
    )
    assert sides.own_runtimes(release, same) is None
    assert sides.own_runtimes(release, ours) is None
    names = ("executorch@installed", f"executorch@{tmp_path / 'slow'}")
    assert sides.own_runtimes(release, slow) == names


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has this runtime")
def test_a_runtime_that_is_not_here_is_noted():
    names = ("coreml:cpu_only",) * 2
    result = sides.time_own_runtimes(None, None, names, Goal(), lambda stage: None)
    assert result.metrics == () and "were not timed: runtime coreml" in result.notes[0]


def test_a_part_that_is_missing_is_no_failed_export(monkeypatch):
    def missing(*arguments):
        raise NotInstalledError("it lacks torchao")

    monkeypatch.setattr(sides, "export_of", missing)
    ours = get_exporter("coreml")
    with pytest.raises(NotInstalledError, match="it lacks torchao"):
        next(sides.pairs(ours, ours, ["tiny"], ["single"], lambda stage: None))

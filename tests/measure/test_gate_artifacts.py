"""The gate on two packages of any model: each difference has a place, a verdict and a name."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness.checks.accuracy import error
from harness.checks.agreement import _logits_error
from harness.checks.outputs import Compared, excess
from harness.cli import main
from harness.diff import Difference
from harness.errors import HarnessError
from harness.fixtures.cache import exported
from harness.fixtures.sides import subject_of
from harness.fixtures.subjects import locate
from harness.measure import structure
from harness.measure.artifacts import compare_artifacts
from harness.measure.structure import accepted_as, value_change
from harness.measure.verdicts import ACCEPTABLE, BOUNDS
from harness.subject import Subject
from harness.suites.mutants.edit import Export
from harness.suites.mutants.of_weights import perturb_a_norm
from tests.mil.programs import save

WEIGHT = np.random.default_rng(5).standard_normal((8, 8)).astype(np.float32)


def package(build, *shapes):
    return Path(save(build, list(shapes) or [(2, 8)]).what)


def linear(mb, a, weight=WEIGHT):
    return mb.linear(x=a, weight=weight, name="out")


def twice(mb, a):
    return mb.relu(x=mb.relu(x=linear(mb, a), name="once"), name="again")


@pytest.fixture(scope="module")
def base():
    return package(linear)


def differing(result):
    return [m for m in result.metrics if m.verdict not in ("same", "skipped")]


def test_a_weight_is_named_with_its_values_and_its_outputs_are_a_change(base):
    weight = WEIGHT.copy()
    weight[3, 1] *= 1.5
    result = compare_artifacts(
        base, package(lambda mb, a: linear(mb, a, weight)), tiers=["structure", "numbers"]
    )
    assert result.status == 1 and result.unaccepted == ("weights", "outputs")
    one, *outputs = differing(result)
    assert (one.case, one.name) == ("function 'main'", "weight out_weight_0")
    assert one.reason.startswith("1 of 64 values differ, by up to 50.00%, the first at [3, 1]: ")
    assert one.numbers["differing"] == 1
    assert one.numbers["largest relative change"] == pytest.approx(0.5)
    assert outputs and {each.name for each in outputs} == {"main: out"}  # one for each runtime
    assert all(each.numbers["difference"] > 0.01 for each in outputs)
    assert result.accepting(result.unaccepted).status == 0


def test_other_outputs_of_the_same_program_are_a_regression(base, monkeypatch):
    """Nothing in the structure explains them: the runtime, or a file beside it, is broken."""
    from harness.checks import outputs

    def off(head, method, name, calls, runtime):
        for found in compared(head, method, name, calls, runtime):
            yield replace(found, bound=found.error.largest - 1)

    compared = outputs.compared_outputs
    monkeypatch.setattr(outputs, "compared_outputs", off)
    result = compare_artifacts(base, package(linear), tiers=["structure", "numbers"])
    assert {m.verdict for m in differing(result)} == {"regression"} and result.status == 1


def test_fewer_operations_are_no_regression():
    many, few = package(twice), package(lambda mb, a: mb.relu(x=linear(mb, a), name="again"))
    result = compare_artifacts(many, few, tiers=["structure"])
    counts = {m.verdict: m.reason for m in result.metrics if m.name == "operations"}
    assert counts == {"better": "relu 2 -> 1"}
    assert "program" in result.unaccepted
    back = compare_artifacts(few, many, tiers=["structure"])
    assert [m.verdict for m in back.metrics if m.name == "operations"] == ["changed"]


def test_a_head_whose_weights_are_gone_is_a_regression(base, tmp_path):
    head = shutil.copytree(base, tmp_path / "head.mlpackage")
    next(head.rglob("weight.bin")).write_bytes(bytes(64))
    result = compare_artifacts(base, head, tiers=["structure"])
    assert result.status == 1
    (one,) = (m for m in result.metrics if m.verdict == "regression")
    assert one.reason.startswith("HEAD is damaged: ") and "head.mlpackage" in one.reason
    with pytest.raises(HarnessError, match=r"head\.mlpackage"):
        compare_artifacts(head, base, tiers=["structure"])


def outcomes(result):
    return {m.name: (m.base, m.head, m.verdict) for m in result.metrics if m.kind == "outcome"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The export of tiny/single with its references, and a copy of the file alone."""
    located = locate("tiny/single")
    copy = tmp_path_factory.mktemp("tiny") / "copy.pte"
    shutil.copyfile(located.path, copy)
    return subject_of(located), copy


def test_a_size_is_that_of_the_kind_and_a_failure_has_its_code(base, tiny, tmp_path):
    names = [m.name for m in compare_artifacts(base, base, tiers=["structure"]).metrics]
    assert "mlpackage bytes" in names and "pte bytes" not in names
    export = Export(tiny[1])
    perturb_a_norm(export)
    base = Subject(tiny[1], tiny[0].checkpoint, tiny[0].params)
    result = compare_artifacts(base, export.save(tmp_path / "head.pte"), tiers=["structure"])
    (found,) = (m for m in result.metrics if m.name == "weights" and m.kind == "outcome")
    assert found.reason.startswith("W01 ")


def test_two_kinds_are_named_before_all_that_differs(base, tiny):
    folder = exported("tiny", exporter="coreml")
    result = compare_artifacts(Subject(tiny[1]), folder, tiers=["structure"])
    assert result.notes[0].startswith("Two kinds: BASE is a .pte in mode single, HEAD an exported")
    assert not any("only a .pte has" in metric.reason for metric in differing(result))
    same = compare_artifacts(base, base, tiers=["structure"])
    assert not any(note.startswith("Two kinds") for note in same.notes)


def test_a_shared_weight_is_named_with_all_methods_that_use_it(tmp_path):
    path = locate("tiny/multifunction").path
    export = Export(path)
    perturb_a_norm(export)
    result = compare_artifacts(path, export.save(tmp_path / "head.pte"), tiers=["structure"])
    (found,) = (m for m in result.metrics if m.accept == "weights")
    assert found.case == "methods 'forward' and 'prefill'"


@pytest.mark.parametrize("is_base", [True, False])
def test_a_side_without_references_is_held_against_those_of_the_other(tiny, is_base):
    sides = tiny if is_base else tiny[::-1]
    result = compare_artifacts(*sides, tiers=["structure"])
    assert result.status == 0 and not differing(result)
    assert outcomes(result)["weights"] == outcomes(result)["tables"] == ("pass", "pass", "same")
    side, owner = ("HEAD", "BASE") if is_base else ("BASE", "HEAD")
    assert f"{side} is held against {owner}'s checkpoint, params, options" in result.notes


def test_a_head_that_is_not_what_the_checkpoint_of_base_gives_is_a_regression(tiny, tmp_path):
    """Without the checkpoint, it would be true to its own weights."""
    base = Subject(tiny[1], tiny[0].checkpoint, tiny[0].params)
    export = Export(tiny[1])
    perturb_a_norm(export)
    head = export.save(tmp_path / "head.pte")
    assert "weights" not in outcomes(compare_artifacts(tiny[1], head, tiers=["structure"]))
    result = compare_artifacts(base, head, tiers=["structure", "numbers"])
    assert (
        outcomes(result)["weights"] == outcomes(result)["parity"] == ("pass", "fail", "regression")
    )
    assert any(
        m.reason.startswith("HEAD is not what the checkpoint gives; ") for m in result.metrics
    )


def test_a_golden_file_is_for_both_where_it_fits(base, tmp_path):
    golden = tmp_path / "golden.safetensors"
    assert main(["golden", str(base), "-o", str(golden)]) == 0
    result = compare_artifacts(Subject(base, golden=golden), base, tiers=["numbers"])
    assert outcomes(result)["outputs"] == ("pass", "pass", "same") and result.status == 0
    other = package(linear, (4, 8))
    result = compare_artifacts(Subject(base, golden=golden), other, tiers=["structure", "numbers"])
    assert "outputs" not in outcomes(result) and not result.counts["regression"]
    assert any(note.startswith("Not checked: outputs") for note in result.notes)


def test_a_changed_interface_is_accepted_with_the_outputs_that_it_changes(base):
    result = compare_artifacts(base, package(linear, (4, 8)), tiers=["structure", "numbers"])
    assert result.status == 1 and not result.counts["regression"]
    assert {"interface", "outputs"} <= {*result.unaccepted}
    assert result.accepting(result.unaccepted).status == 0


def test_a_runtime_that_does_not_round_always_runs(base):
    result = compare_artifacts(base, package(linear), "mil:strict", ["numbers"])
    cases = {m.case for m in result.metrics if m.kind == "figure"}
    assert cases == {f"what both compute on mil:{policy}" for policy in ("strict", "widen")}
    assert result.status == 0


def test_an_unknown_tier_is_refused(base, capsys):
    with pytest.raises(HarnessError, match="no tier 'speed'; choose from structure, numbers, time"):
        compare_artifacts(base, base, tiers=["speed"])
    assert main(["gate", str(base), str(base), "--tier", "structure"]) == 0
    assert "PASSED" in capsys.readouterr().out


def test_every_kind_of_difference_has_a_name_of_acceptance_or_a_metric_of_its_own():
    key = Difference("method 'forward', delegate 0", "delegate", "key", "a", "b")
    opset = Difference("function 'main'", "opset", "opset", "CoreML7", "CoreML8")
    assert (accepted_as(key), accepted_as(opset)) == ("identifiers", "options")
    named = {*filter(None, structure._ACCEPTED_AS.values())}
    assert {*ACCEPTABLE} == named | {"tables", "outputs", BOUNDS}


def test_a_name_by_which_no_artifact_changes_is_refused(base, capsys):
    words = ["gate", str(base), str(base), "--tier", "structure", "--accept"]
    assert main([*words, "nonsense"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("--accept nonsense", *ACCEPTABLE))
    assert main([*words, "metadata"]) == 0


@pytest.mark.parametrize(
    ("base", "head", "said"),
    [
        (
            [1.0, 2.0],
            [1.0, 2.5],
            "1 of 2 values differ, by up to 25.00%, the first at [1]: 2 -> 2.5",
        ),
        ([0.0, 4.0], [1.0, 4.0], "by up to 25.00%, the first at [0]: 0 -> 1"),
        ([1.0], [float("nan")], "by up to infinity, the first at [0]: 1 -> nan"),
        ([float("nan")], [float("nan")], "the values are equal"),
        ([1, 2], [1, 3], "1 of 2 values differ, the first at [1]: 2 -> 3"),
        ([1.0], [1.0, 2.0], "shape [1] -> [2]"),
    ],
)
def test_how_values_differ(base, head, said):
    assert said in value_change(torch.tensor(base), torch.tensor(head))[0]


def test_numbers_that_compare_nothing_do_not_pass(monkeypatch):
    path = package(linear)
    assert compare_artifacts(path, path, "mil:widen", ["numbers"]).status == 0
    monkeypatch.setattr("harness.measure.artifacts.output_distances", lambda *given: iter(()))
    result = compare_artifacts(path, path, "mil:widen", ["numbers"])
    assert result.status != 0
    assert "neither has an output that could be compared" in result.metrics[-1].reason


@pytest.mark.parametrize("bad", [0, 1])
def test_an_output_that_is_not_a_number_is_the_worst_of_all(bad):
    values = [torch.ones(4), torch.ones(4)]
    wanted = [torch.ones(4), torch.ones(4)]
    wanted[bad] = wanted[bad] * torch.nan
    found = [Compared("s", str(i), error(values[i], wanted[i]), 1e-5) for i in range(2)]
    assert max(found, key=excess).output == str(bad)


def test_logits_of_no_common_position_are_not_compared():
    one, other = (
        SimpleNamespace(positions=[0, place], logits=torch.ones(2, 4), n_prefill=1)
        for place in (1, 2)
    )
    assert _logits_error(one, other, prefill=True).count == 4
    with pytest.raises(HarnessError, match="no common position in decode"):
        _logits_error(one, other, prefill=False)

"""Every check can fail: for each, artefacts that it must catch, and a control that it must not."""

from __future__ import annotations

import pytest

from harness.checks import CHECKS, Subject
from harness.errors import HarnessError
from harness.report import case_from_findings
from suites.conformance.subjects import Subjects
from suites.mutants import mutations as m
from suites.mutants.edit import Export

SINGLE, MULTI = "single", "multifunction"
BOTH = (SINGLE, MULTI)
RUNTIME = "mil:widen"
NAMES = ("metadata-names", "parity")  # arguments are passed by these names
CAUGHT = [
    # what is broken, the mutation, the modes that have the part, the checks that must each fail
    ("a weight is not shared", m.unshare_a_weight, (MULTI,), ("weight-sharing",)),
    ("two key caches swapped", m.swap_inputs("_0_l0_h0", "_0_l1_h0"), BOTH, NAMES),
    ("keys and values swapped", m.swap_inputs("_0_l0_h0", "_1_l0_h0"), BOTH, NAMES),
    ("cosines and sines swapped", m.swap_inputs("cos_override", "sin_override"), BOTH, NAMES),
    ("two outputs swapped", m.swap_outputs, BOTH, NAMES),
    ("a scale off by 1 %", m.perturb_a_scale, BOTH, ("weights", "parity")),
    ("a norm off by 1 %", m.perturb_a_norm, BOTH, ("weights", "parity")),
    ("the epsilon", m.change_epsilon, BOTH, ("tables",)),
    ("the attention scale", m.change_attention_scale, BOTH, ("parity",)),
    ("add is sub", m.retype("add", "sub", 1), BOTH, ("parity",)),
    ("silu is sigmoid", m.retype("silu", "sigmoid", 0), BOTH, ("parity",)),
    ("the softmax axis", m.wrong_softmax_axis, BOTH, ("parity",)),
    ("new keys before cached ones", m.new_before_cached, BOTH, ("parity", "residues")),
    ("the last position ignored", m.ignore_the_last_position, (MULTI,), ("parity", "residues")),
    ("fp32 leaks", m.leak_fp32, BOTH, ("program",)),
    ("fused attention", m.fuse_attention, BOTH, ("program",)),
    ("a state", m.read_a_state, BOTH, ("program",)),
    ("another method's function", m.function_of_another_method, (MULTI,), ("function-names",)),
    ("a method without metadata", m.drop_a_method, (MULTI,), ("metadata-names",)),
    ("a function renamed", m.rename_a_function, (MULTI,), ("metadata-names", "references")),
    ("a single function named", m.claim_multifunction, (SINGLE,), ("function-names",)),
    ("tables for another layout", m.halves_instead_of_pairs, BOTH, ("tables",)),
    ("one row of a table", m.one_table_row, BOTH, ("tables",)),
    ("activations beyond fp16", m.huge_activations, BOTH, ("fp16-range",)),
]
UNREADABLE = {"a method without metadata"}  # a check cannot look at it: that is caught, too
ROWS = [
    pytest.param(
        mutate,
        mode,
        check,
        "error" if what in UNREADABLE else "fail",
        id=f"{what}, {mode}, {check}",
    )
    for what, mutate, modes, checks in CAUGHT
    for mode in modes
    for check in checks
]


@pytest.fixture(scope="session")
def subjects():
    return Subjects(lambda stage: None)


@pytest.fixture
def mutant(subjects, tmp_path):
    """Return a function that breaks a copy of the tiny export and opens it."""

    def make(mutate, mode):
        sound = subjects.get("tiny", mode)
        export = Export(sound.artifact.path)
        mutate(export)
        path = export.save(tmp_path / "mutant.pte")
        return Subject(path, sound.checkpoint, sound.params, sound.options, sound.unshared)

    return make


def outcome(subject, check):
    """Judge a subject as the conformance suite does."""
    runtime = RUNTIME if CHECKS[check].takes_runtime else None
    try:
        return case_from_findings(
            CHECKS[check].findings(subject, runtime), suite="mutants", check=check
        ).outcome
    except HarnessError:
        return "error"


@pytest.mark.parametrize("mode", BOTH)
def test_the_control_passes_every_check(mutant, mode):
    subject = mutant(m.nothing, mode)
    applicable = [name for name, check in CHECKS.items() if not check.inapplicable(subject)]
    assert len(applicable) >= 11
    assert {name: outcome(subject, name) for name in applicable} == dict.fromkeys(
        applicable, "pass"
    )


@pytest.mark.parametrize(("mutate", "mode", "check", "expected"), ROWS)
def test_a_mutant_is_caught(mutant, mutate, mode, check, expected):
    assert outcome(mutant(mutate, mode), check) == expected


def test_a_reference_to_missing_data_is_refused_with_its_method(mutant):
    with pytest.raises(HarnessError, match="method 'forward', delegate 0: refers to named data"):
        mutant(m.unknown_key, MULTI)

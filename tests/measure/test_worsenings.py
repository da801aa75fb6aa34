"""The gate finds each way to get worse in a run like conformance's, and no noise of a machine."""

import math
import random
from dataclasses import replace

import pytest

from harness.checks.accuracy import Error
from harness.measure import compare_runs
from harness.results import Case, Figure, Footer, Run
from harness.suites.machines.worsenings import WORSENINGS
from tests.results.runs import HEADER

SEED = 7
# Errors of `tiny` on four kinds of machine: no vectors, AVX2, AVX512, one thread.
WIDE = {
    "prefill": (8.3e-7, 1.1e-6, 9.4e-7, 9.4e-7),
    "decode": (5.3e-7, 6.5e-7, 6.8e-7, 6.9e-7),
    "caches": (5.9e-7, 3.7e-7, 4.4e-7, 4.4e-7),
}


def error_of(relative):
    """Return the error of logits up to 20, whose mean square is an eighth of the largest."""
    sqnr = 20 * math.log10(4.5 / (relative * 20 / 8))
    return Error(20 * relative, scale=20.0, deviation=4.5, rms=4.5, sqnr=sqnr, count=1000)


def run_on(machine):
    """Return a run of seven cases on one of the machines."""
    names = {"suite": "conformance", "fixture": "tiny", "mode": "multifunction"}
    wide, strict = {}, {}
    for part, errors in WIDE.items():
        wide |= error_of(errors[machine]).figures(part, 1e-5)
        strict |= error_of(1.4e-3).figures(part, (5.7e-3, 5.6e-3, 4.8e-3, 4.7e-3)[machine])
    ranges = {
        "largest activation": Figure(2258.0 + machine / 100, "", 65504.0),
        "margin of squares": Figure(5.386 - machine / 1000, "", 1.0, "higher"),
    }
    sharing = {
        f"{kind} weight bytes@package {n}": (n + 1) * size
        for n in range(2)
        for kind, size in (("stored", 104_448), ("used", 208_896))
    }
    operations = {"operations@function 'forward'": 597, "opset@function 'forward'": "CoreML8"}
    cases = (
        Case(check="parity", runtime="mil:widen", comparisons=99_000, figures=wide, **names),
        Case(check="parity", runtime="mil:strict", comparisons=99_000, figures=strict, **names),
        Case(check="greedy", runtime="mil:widen", comparisons=32, facts={"decided": 32}, **names),
        Case(check="fp16-range", comparisons=604, figures=ranges, **names),
        Case(check="weight-sharing", comparisons=6, facts=sharing, **names),
        Case(check="program", comparisons=640, facts=operations, **names),
        Case(check="references", comparisons=3, facts={"pte bytes": 395_939}, **names),
    )
    header = replace(HEADER, machine={**HEADER.machine, "capability": str(machine)})
    return Run(header, cases, Footer.of(cases, 1.0))


@pytest.mark.parametrize("base", range(4))
@pytest.mark.parametrize("head", range(4))
def test_another_machine_is_no_regression(base, head):
    result = compare_runs(run_on(base), run_on(head))
    assert result.status == 0 and {m.verdict for m in result.metrics} <= {"same", "better"}


@pytest.mark.parametrize("name", WORSENINGS)
@pytest.mark.parametrize("head", range(4))
def test_each_worsening_is_found_and_named(name, head):
    worse, case = WORSENINGS[name](run_on(head))
    result = compare_runs(run_on(0), worse)
    found = {
        (m.case, m.name.partition("@")[0])
        for m in result.metrics
        if m.verdict in ("regression", "changed")
    }
    assert result.status == 1 and (case, WORSENINGS[name].metric) in found


def test_a_worsening_that_fits_no_case_is_an_error():
    run = run_on(0)
    with pytest.raises(LookupError, match="pte bytes"):
        WORSENINGS["the file grows by 2 %"](replace(run, cases=run.cases[:3]))


def test_a_thousand_noisy_pairs_have_no_regression():
    """Errors within the noise of fp32, whatever their size, decide nothing."""
    dice = random.Random(SEED)
    for _ in range(1000):
        level = 10 ** dice.uniform(-12, -5.5)
        pair = [
            Figure(level + dice.uniform(0, 1.9e-6), "", 1e-5, floor=16 * 2**-23) for _ in range(2)
        ]
        cases = [replace(run_on(0).cases[0], figures={"decode error": one}) for one in pair]
        base, head = (Run(HEADER, (case,), Footer.of((case,), 1.0)) for case in cases)
        assert compare_runs(base, head).status == 0

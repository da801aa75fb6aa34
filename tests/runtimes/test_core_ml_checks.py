"""Our executor against Core ML, and Core ML's profile: both can fail. Core ML is a row of ours."""

import pytest

from harness.checks import core_ml, core_ml_checks, run_check
from harness.fixtures.cache import exported, fixture
from harness.golden import run_steps
from harness.runtimes import RUNTIMES, RuntimeRow
from harness.runtimes.mil import MilRuntime
from harness.subject import Subject


class Toy(MilRuntime):
    """Our executor as Core ML, with float outputs that are off by a factor."""

    factor = 1.0

    def __init__(self, option):
        super().__init__("strict")
        self.name = f"coreml:{option}"

    def load(self, artifact, method):
        loaded = super().load(artifact, method)

        class Method:
            name, inputs, outputs = loaded.name, loaded.inputs, loaded.outputs

            def __call__(self, *tensors):
                return tuple(result * Toy.factor for result in loaded(*tensors))

        return Method()


@pytest.fixture
def subject(monkeypatch):
    row = RuntimeRow("coreml:toy", lambda: Toy, rounds=True)
    monkeypatch.setitem(RUNTIMES, row.name, row)
    options = fixture("tiny").options
    return Subject(exported("tiny", options, exporter="coreml"))


def judged(subject, check, runtime="coreml:toy"):
    return run_check(core_ml_checks()[check], subject, runtime, suite="test")


def test_a_core_ml_that_computes_as_we_do_passes(subject):
    case = judged(subject, "against-core-ml")
    assert case.outcome == "pass", case.reason
    assert case.figures["mil:strict decode difference"].value == 0
    assert case.figures["mil:widen decode difference"].value > 0
    assert case.figures["mil:widen top token agreement"].value == 100


def test_a_core_ml_that_differs_fails_with_the_figure(subject, monkeypatch):
    monkeypatch.setattr(Toy, "factor", 1.02)
    case = judged(subject, "against-core-ml")
    assert case.outcome == "fail"
    assert "mil:strict decode difference is 0.0" in case.reason


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "pass"), (1.02, "fail")])
def test_what_is_no_language_model_is_compared_by_its_outputs(
    mixed_program, subject, monkeypatch, factor, outcome
):
    monkeypatch.setattr(Toy, "factor", factor)
    case = judged(Subject(mixed_program[0]), "against-core-ml")
    assert case.outcome == outcome, case.reason
    assert case.comparisons and ("difference is 0.0" in case.reason) == (factor != 1.0)


def test_they_are_checks_of_core_mls_runtimes_alone():
    checks = core_ml_checks()
    runs_on = {name: [r for r in RUNTIMES if c.runs_on(r)] for name, c in checks.items()}
    core_mls = [name for name in RUNTIMES if name.startswith("coreml:")]
    assert runs_on == {
        "against-core-ml": [*core_mls, "executorch"],
        "core-ml-profile": core_mls,
    }


ROWS = [
    ("ios18.linear", "Neural Engine", 0.5),
    ("ios18.linear", "Neural Engine", 0.25),
    ("ios18.softmax", "CPU", 0.25),
    ("custom", None, None),
]
PROFILE = {
    "units": "CPU_AND_NE",
    "devices": ["CPU", "Neural Engine"],
    "compile": 900.0,
    "cold load": [50.0, 51.0],
    "cached load": [5.0, 6.0],
    "first prediction": [4.0, 4.5],
    "warm prediction": [[1.0, 1.5], [3.0, 3.5], [2.0, 2.5]],
    "placement": [
        {"package": 0, "function": "main", "operation": o, "preferred": p, "cost": c}
        for o, p, c in ROWS
    ],
}


class Profiler:
    def __init__(self, factor):
        self._factor = factor

    def profile(self, artifact, method, tensors):
        (results,) = run_steps(artifact, method, "mil:strict", [tensors])
        return PROFILE, tuple(result * self._factor for result in results)


def test_a_profile_has_core_mls_own_times_and_each_operations_device(subject, monkeypatch):
    monkeypatch.setattr(core_ml, "isolated_runtime", lambda name: Profiler(1.0))
    case = judged(subject, "core-ml-profile")
    assert case.outcome == "pass", case.reason
    values = {name: figure.value for name, figure in case.figures.items()}
    assert values["forward compile (wrapper)"] == 900
    assert (values["forward warm prediction"], values["forward warm prediction (wrapper)"]) == (
        2.0,
        2.5,
    )
    assert (values["forward cold load"], values["forward cached load"]) == (50, 5)
    assert values["forward work on Neural Engine"] == 0.75
    assert case.facts["forward units got"] == "CPU 1, Neural Engine 2"
    assert case.facts["forward placement"] == (
        "linear*2 Neural Engine; softmax CPU; custom no plan"
    )


def test_a_profile_of_wrong_answers_fails(subject, monkeypatch):
    monkeypatch.setattr(core_ml, "isolated_runtime", lambda name: Profiler(1.2))
    case = judged(subject, "core-ml-profile")
    assert case.outcome == "fail" and "forward error is 0.2" in case.reason

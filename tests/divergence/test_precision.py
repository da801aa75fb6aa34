"""The operation with the wrong rounding is named, not the later ones that inherit its error."""

import numpy as np
import pytest
import torch

from harness.divergence.precision import PrecisionJudge
from harness.divergence.recording import Part, Place, Recorder, record
from harness.mil import get_policy, load_function
from harness.mil.operation import IMPLEMENTATIONS
from tests.mil.programs import save

PLACE = Place("forward", 0, "main")


def judged(package, array, policy="strict"):
    """Run one function under both policies and judge it."""
    judge = PrecisionJudge(policy, Part())
    recorders: list[Recorder] = [judge._judged, judge._reference]
    for recorder in recorders:
        function = load_function(package, "main", recorder.policy)
        recording, _ = record(function, {"a": torch.from_numpy(array)}, PLACE)
        recorder.recordings.append(recording)
    judge.judge()
    return judge.report


def norm(mb, a):
    mean = mb.reduce_mean(x=mb.mul(x=a, y=a), axes=[-1], keep_dims=True)
    return mb.mul(x=a, y=mb.rsqrt(x=mb.add(x=mean, y=np.float16(1e-3))))


def rows(largest):
    return np.linspace(-largest, largest, 32, dtype=np.float16).reshape(2, 16)


def test_a_norm_within_fp16s_range_leaves_nothing():
    report = judged(save(norm, [(2, 16)], dtype="fp16"), rows(200))
    assert report.found == [] and report.judged == 5 and report.skipped == 0


def test_a_square_beyond_fp16_is_the_culprit_and_what_follows_is_not():
    report = judged(save(norm, [(2, 16)], dtype="fp16"), rows(300))
    first = report.found[0]
    assert first.operation == "mul" and "infinity" in first.reason and "90000" in first.reason
    assert "up to 300" in next(iter(first.reads.values()))
    own = [found for found in report.found if "turns inputs" not in found.reason]
    assert [found.operation for found in own] == ["mul"]


def test_the_same_square_carried_wider_is_right():
    assert judged(save(norm, [(2, 16)], dtype="fp16"), rows(300), "widen").found == []


def test_an_operation_that_computes_wrongly_in_one_policy_is_named(monkeypatch):
    sound = IMPLEMENTATIONS["rsqrt"]

    def build(operation):
        run = sound.build(operation)
        factor = 1 if operation.policy.name == "double" else 1.01
        return lambda *values: run(*values) * factor

    monkeypatch.setitem(IMPLEMENTATIONS, "rsqrt", type(sound)(**{**vars(sound), "build": build}))
    report = judged(save(norm, [(2, 16)], dtype="fp16"), rows(20))
    assert [found.operation for found in report.found] == ["rsqrt"]
    assert "ULP on inputs that are right" in report.found[0].reason


def test_a_cancellation_is_named_as_what_amplifies():
    def cancel(mb, a):
        return mb.sub(x=mb.add(x=a, y=np.float16(1000)), y=np.float16(1000))

    report = judged(save(cancel, [(2, 16)], dtype="fp16"), rows(0.3))
    assert [found.operation for found in report.found] == ["sub"]
    assert "turns inputs that are off by" in report.found[0].reason


@pytest.mark.parametrize("undone", [True, False])
def test_a_step_that_is_taken_elsewhere_counts_where_a_result_depends_on_it(undone):
    def scaled(mb, a):
        scale = mb.exp2(x=mb.floor(x=mb.mul(x=a, y=np.float16(3))))
        over = mb.real_div(x=a, y=scale)
        return mb.mul(x=over, y=scale) if undone else over

    third = np.full((2, 16), 1 / 3, np.float16)  # three of it: 1 - 2^-12, which is rounded to 1
    report = judged(save(scaled, [(2, 16)], dtype="fp16"), third)
    assert [found.operation for found in report.found] == ([] if undone else ["floor"])


@pytest.mark.parametrize("policy", ["strict", "widen"])
def test_random_numbers_are_not_judged(policy):
    def noise(mb, a):
        return mb.add(x=a, y=mb.random_normal(shape=[2, 16], seed=3))

    report = judged(save(noise, [(2, 16)]), np.zeros((2, 16), np.float32), policy)
    assert report.skipped == 1 and report.judged == 1


def test_recording_holds_every_value_by_name():
    function = load_function(save(norm, [(2, 16)], dtype="fp16"), "main", get_policy("double"))
    recording, outputs = record(function, {"a": torch.ones(2, 16)}, PLACE)
    assert [step.operation for step in recording.steps] == [
        *("mul", "reduce_mean", "add", "rsqrt", "mul")
    ]
    assert recording.read_names(recording.steps[0]) == ["a", "a"]
    (name,) = outputs
    assert torch.equal(recording.values[name], outputs[name])

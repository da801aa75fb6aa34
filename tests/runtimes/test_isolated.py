"""A runtime in a child process: the same results, and its end is not ours."""

import multiprocessing
import time

import pytest
import torch
from crashing import Misbehaving

from harness.artifact import open_artifact
from harness.errors import HarnessError, NotInstalledError
from harness.runtimes.isolated import CallTimeoutError, CrashError, IsolatedRuntime
from harness.runtimes.mil import MilRuntime


@pytest.fixture
def artifact(mixed_program):
    return open_artifact(mixed_program[0])


def test_results_are_those_of_the_runtime_itself(artifact, mixed_program):
    inputs = mixed_program[2]
    alone = MilRuntime("widen").load(artifact, "forward")
    isolated = IsolatedRuntime(MilRuntime, "widen").load(artifact, "forward")
    assert (isolated.inputs, isolated.outputs) == (alone.inputs, alone.outputs)
    for _ in range(2):
        assert all(
            torch.equal(a, b) for a, b in zip(isolated(*inputs), alone(*inputs), strict=True)
        )


@pytest.mark.parametrize(("what", "how"), [("segfault", "SIGSEGV"), ("exit", "exit status 3")])
@pytest.mark.parametrize("when", ["load", "call"])
def test_a_crash_is_an_error_that_names_the_signal(artifact, mixed_program, when, what, how):
    runtime = IsolatedRuntime(Misbehaving, when, what)
    with pytest.raises(CrashError, match=f"its process died .* asked to {when} method") as caught:
        runtime.load(artifact, "forward")(*mixed_program[2])
    assert caught.value.signal == how
    assert ("it last said: about to crash" in str(caught.value)) == (what == "segfault")


def test_after_a_crash_the_next_call_starts_anew(artifact, mixed_program):
    method = IsolatedRuntime(Misbehaving, "call", "segfault").load(artifact, "forward")
    for _ in range(2):
        with pytest.raises(CrashError):
            method(*mixed_program[2])


def test_a_hang_is_a_timeout_and_its_process_ends(artifact, mixed_program):
    runtime = IsolatedRuntime(Misbehaving, "call", "hang", call_seconds=0.5)
    method = runtime.load(artifact, "forward")
    start = time.monotonic()
    with pytest.raises(CallTimeoutError, match=r"took over 0\.5 s"):
        method(*mixed_program[2])
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [("missing", NotInstalledError, "^no such part$"), ("bug", HarnessError, "ZeroDivisionError")],
)
def test_an_error_arrives_as_a_sentence(artifact, mixed_program, what, error, message):
    with pytest.raises(error, match=message):
        IsolatedRuntime(Misbehaving, "call", what).load(artifact, "forward")(*mixed_program[2])


def test_an_unknown_method_is_the_runtimes_own_sentence(artifact):
    with pytest.raises(HarnessError, match="no method 'prefill'; its methods: forward"):
        IsolatedRuntime(MilRuntime, "widen").load(artifact, "prefill")


def test_a_child_ends_with_its_artefact(mixed_program):
    before = set(multiprocessing.active_children())
    artifact = open_artifact(mixed_program[0])
    method = IsolatedRuntime(MilRuntime, "widen").load(artifact, "forward")
    (child,) = set(multiprocessing.active_children()) - before
    del artifact
    child.join(timeout=10)
    assert not child.is_alive()
    del method

"""A runtime in a child process gives the same results, and its end does not end the parent."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from harness.artifact import open_artifact
from harness.errors import CallTimeoutError, CrashError, HarnessError, NotInstalledError
from harness.runtimes import get_runtime
from harness.runtimes.isolated import IsolatedRuntime, Limits, overhead_ns
from harness.runtimes.mil import MilRuntime
from tests.runtimes.crashing import Misbehaving

# A script without `if __name__ == "__main__"`: it must not run a second time in the child.
CALLER = """
import sys
import torch
from tests.runtimes.crashing import Misbehaving
from harness.artifact import open_artifact
from harness.runtimes.isolated import IsolatedRuntime, Limits

program, what, file, seconds = sys.argv[1:]
runtime = IsolatedRuntime(Misbehaving, "call", what, file, limits=Limits(call=float(seconds)))
method = runtime.load(open_artifact(program), "forward")
print("loaded", flush=True)
method(torch.zeros(2, 8), torch.zeros(2, 8))
"""


@pytest.fixture
def artifact(mixed_program):
    return open_artifact(mixed_program[0])


@pytest.fixture
def caller(mixed_program, tmp_path, heeds_interrupts):
    """Start the script; return its process and, once its call hangs, the child's."""
    started = []

    def start(what, seconds):
        file, script = tmp_path / "pid", tmp_path / "caller.py"
        script.write_text(CALLER, encoding="utf-8")
        command = [sys.executable, str(script), str(mixed_program[0]), what, str(file), seconds]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        started.append(process)
        deadline = time.monotonic() + 180
        while not (file.exists() and file.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process, psutil.Process(int(file.read_text()))

    yield start
    for process in started:
        process.kill()
        process.communicate()


def children():
    return {p.pid for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE}


def test_results_are_those_of_the_runtime_itself(artifact, mixed_program):
    inputs = mixed_program[2]
    alone = MilRuntime("widen").load(artifact, "forward")
    isolated = IsolatedRuntime(MilRuntime, "widen").load(artifact, "forward")
    assert (isolated.inputs, isolated.outputs) == (alone.inputs, alone.outputs)
    results = [isolated(*(tensor * k for tensor in inputs)) for k in (1, 2)]
    for k, result in zip((1, 2), results, strict=True):  # each call has its own
        wanted = alone(*(tensor * k for tensor in inputs))
        assert all(torch.equal(a, b) for a, b in zip(result, wanted, strict=True))


@pytest.mark.parametrize(
    ("when", "what", "how"),
    [
        ("load", "segfault", "SIGSEGV"),
        ("call", "segfault", "SIGSEGV"),
        ("call", "exit", "exit status 3"),
    ],
)
def test_a_crash_is_an_error_that_names_the_signal(artifact, mixed_program, when, what, how):
    runtime = IsolatedRuntime(Misbehaving, when, what)
    with pytest.raises(CrashError, match=f"its process died .* asked to {when} method") as caught:
        runtime.load(artifact, "forward")(*mixed_program[2])
    assert caught.value.signal == how
    assert ("it last said: about to crash" in str(caught.value)) == (what == "segfault")


def test_after_a_crash_the_next_call_loads_anew_and_answers(artifact, mixed_program, tmp_path):
    runtime = IsolatedRuntime(Misbehaving, "call", "segfault once", str(tmp_path / "crashed"))
    method = runtime.load(artifact, "forward")
    with pytest.raises(CrashError):
        method(*mixed_program[2])
    wanted = MilRuntime("widen").load(artifact, "forward")(*mixed_program[2])
    result = method(*mixed_program[2])
    assert all(torch.equal(a, b) for a, b in zip(result, wanted, strict=True))


def test_a_hang_is_a_timeout_and_its_process_ends(artifact, mixed_program):
    before = children()
    runtime = IsolatedRuntime(Misbehaving, "call", "hang", limits=Limits(call=0.5))
    method = runtime.load(artifact, "forward")
    (child,) = children() - before
    with pytest.raises(CallTimeoutError, match=r"took over 0\.5 s.*waiting for ever"):
        method(*mixed_program[2])
    assert child not in children()


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("missing", NotInstalledError, "^no such part$"),
        ("bug", HarnessError, "call of method 'forward' failed .* ZeroDivisionError: a bug$"),
    ],
)
def test_an_error_arrives_as_a_sentence(artifact, mixed_program, what, error, message):
    method = IsolatedRuntime(Misbehaving, "call", what).load(artifact, "forward")
    for _ in range(2):  # and the child keeps running
        with pytest.raises(error, match=message) as caught:
            method(*mixed_program[2])
        assert not isinstance(caught.value, CrashError)


def test_an_unknown_method_is_the_runtimes_own_sentence(artifact):
    with pytest.raises(HarnessError) as own:
        MilRuntime("widen").load(artifact, "prefill")
    with pytest.raises(HarnessError) as isolated:
        IsolatedRuntime(MilRuntime, "widen").load(artifact, "prefill")
    assert str(isolated.value) == str(own.value)


def test_methods_share_a_child_that_ends_with_the_last_of_them_and_the_artifact(mixed_program):
    before = children()
    artifact = open_artifact(mixed_program[0])
    runtime = IsolatedRuntime(MilRuntime, "widen")
    methods = [runtime.load(artifact, "forward") for _ in range(2)]
    (child,) = children() - before
    del artifact
    methods.pop()
    gc.collect()
    assert methods[0](*mixed_program[2]) and child in children()
    methods.clear()
    gc.collect()
    assert child not in children()


@pytest.mark.parametrize("what", ["hang", "hang with the lock"])
def test_a_child_dies_with_a_killed_parent_even_while_it_hangs(caller, what):
    parent, child = caller(what, "1000" if what == "hang" else "1.5")
    folder = Path(child.environ()["TMPDIR"])
    parent.kill()
    assert psutil.wait_procs([child], timeout=20)[1] == []
    assert folder.name.startswith(".harness-child.")
    assert what != "hang" or not folder.exists()  # with the lock held, nothing can remove it
    shutil.rmtree(folder, ignore_errors=True)


def test_an_interrupt_ends_caller_and_child_and_only_the_caller_speaks(caller):
    parent, child = caller("hang", "1000")
    assert os.getpgid(child.pid) == child.pid != parent.pid
    os.killpg(parent.pid, signal.SIGINT)  # like a terminal: to the whole foreground group
    out, err = parent.communicate(timeout=30)
    assert out == "loaded\n"  # once: the script did not run again in the child
    assert err.count("Traceback") == 1 and err.rstrip().endswith("KeyboardInterrupt")
    assert psutil.wait_procs([child], timeout=20)[1] == []


def test_what_a_child_prints_and_leaves_behind_goes_with_it(mixed_program, tmp_path, capfd):
    note = tmp_path / "folder"
    runtime = IsolatedRuntime(Misbehaving, "call", "litter", str(note))
    method = runtime.load(open_artifact(mixed_program[0]), "forward")
    method(*mixed_program[2])
    assert Path(note.read_text()).is_dir()
    del method
    gc.collect()
    assert not Path(note.read_text()).exists()
    assert capfd.readouterr() == ("", "")


def test_a_child_is_asked_once_whether_its_runtime_is_available():
    runtimes = [IsolatedRuntime(Misbehaving, "", "", ask_here=False) for _ in range(2)]
    first, second = (runtime.unavailable() for runtime in runtimes)
    assert first == second and first.startswith("asked in process")
    assert first != f"asked in process {os.getpid()}"
    here = IsolatedRuntime(Misbehaving, "", "")
    assert here.unavailable() == f"asked in process {os.getpid()}"


def test_a_crash_while_asked_is_not_taken_for_absence():
    with pytest.raises(CrashError, match="runtime misbehaving:segfault: its process died"):
        IsolatedRuntime(Misbehaving, "unavailable", "segfault", ask_here=False).unavailable()


def test_memory_is_the_childs_own(artifact, mixed_program):
    ours = torch.ones(250_000_000)  # 1 GB, which must not count as the child's
    runtime = IsolatedRuntime(Misbehaving, "call", "allocate", str(300_000_000))
    method = runtime.load(artifact, "forward")
    before, loaded = runtime.memory(artifact)
    method(*mixed_program[2])
    peak = runtime.memory(artifact)[1]
    assert 50e6 < before <= loaded < ours.nbytes
    assert 290e6 < peak - loaded < 400e6


def test_time_without_the_overhead_is_the_runtimes_own(artifact, mixed_program):
    start, overhead = time.perf_counter_ns(), overhead_ns()
    method = IsolatedRuntime(Misbehaving, "call", "wait", "0.3").load(artifact, "forward")
    took, overhead = time.perf_counter_ns() - start, overhead_ns() - overhead
    assert overhead > took / 2  # importing torch does not count as loading
    times = []
    for _ in range(5):  # a busy machine adds to some of them
        start, overhead = time.perf_counter_ns(), overhead_ns()
        method(*mixed_program[2])
        times.append(time.perf_counter_ns() - start - (overhead_ns() - overhead))
    assert 0.3e9 <= min(times) < 0.5e9


@pytest.mark.parametrize("name", ["coreml", "coreml:cpu_only", "executorch"])
def test_crash_prone_runtimes_come_isolated(name):
    assert isinstance(get_runtime(name), IsolatedRuntime)
    assert get_runtime(name).name.startswith(name)


def test_our_own_runtimes_run_in_this_process():
    assert isinstance(get_runtime("mil:widen"), MilRuntime)


def test_a_child_unloads_its_methods_before_it_ends(artifact, tmp_path):
    """Core ML removes a compiled model when it unloads it; a killed process leaves it behind."""
    mark = tmp_path / "unloaded"
    runtime = IsolatedRuntime(Misbehaving, "load", "keep", str(mark))
    method = runtime.load(artifact, "forward")
    assert not mark.exists()
    del runtime, method
    gc.collect()
    assert mark.exists()


def test_every_child_has_caches_of_its_own_which_go_with_it(tmp_path, mixed_program):
    homes = []
    for number in range(2):
        told, opened = tmp_path / str(number), open_artifact(mixed_program[0])
        runtime = IsolatedRuntime(Misbehaving, "load", "home", str(told))
        runtime.load(opened, "forward")
        caches, exists = told.read_text().split()
        assert exists == "True" and Path(caches).is_dir()
        del runtime, opened
        gc.collect()
        assert not Path(caches).exists()
        homes.append(caches)
    assert len(set(homes)) == 2

"""A child process answers, and each way in which it may end raises its own class of error."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from harness.child import Child, _processor_seconds, limit_memory, serve
from harness.errors import (
    CallTimeoutError,
    ChildError,
    CrashError,
    HarnessError,
    NotInstalledError,
)


def answer(request):
    """Answer a test's request: this module is also the child's."""
    match request:
        case ["add", a, b]:
            return a + b
        case ["where"]:
            return [os.getpid(), tempfile.gettempdir(), os.environ["GIVEN"], str(Path.cwd())]
        case ["raise", kind]:
            raise {"ours": HarnessError, "absent": NotInstalledError}.get(kind, KeyError)("a\nb")
        case ["print", *lines]:
            print(*lines, sep="\n")
        case ["exit", status]:
            print("last words")
            os._exit(status)
        case ["start"]:
            return subprocess.Popen(["sleep", "600"]).pid
        case ["sleep"]:
            time.sleep(600)
        case ["compute"]:
            while True:
                pass
        case ["allocate", size, more]:
            limit_memory(more)
            bytearray(size)
        case ["read", descriptor]:
            return os.pread(descriptor, 100, 0).decode()
    return None


if __name__ == "__main__":
    serve(answer)


@pytest.fixture
def child():
    with Child("tests.test_child", "a toy", {"GIVEN": "a word"}) as started:
        yield started


def gone(pid):
    _, alive = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 10)
    return not alive


def test_it_answers_in_a_temporary_folder_of_its_own_until_its_end(child):
    assert child.ask(["add", 2, 3], "asked to add") == 5
    pid, folder, given, cwd = child.ask(["where"], "asked for its place")
    assert (given, cwd) == ("a word", str(Path.cwd())) and pid != os.getpid()
    assert Path(folder).is_dir()
    helper = child.ask(["start"], "asked to start another")
    child.end()
    assert gone(pid) and gone(helper) and not Path(folder).exists()


@pytest.mark.parametrize(("kind", "error"), [("ours", HarnessError), ("absent", NotInstalledError)])
def test_an_error_of_ours_arrives_as_it_was_raised(child, kind, error):
    with pytest.raises(error, match=r"^a\nb$") as caught:
        child.ask(["raise", kind], "asked to fail")
    assert type(caught.value) is error


def test_any_other_error_arrives_with_its_class_and_the_child_lives_on(child):
    with pytest.raises(ChildError, match="^a toy: asked to fail, it failed: KeyError: ") as caught:
        child.ask(["raise", "another"], "asked to fail")
    assert (caught.value.kind, caught.value.reason) == ("KeyError", r"'a\nb'")
    assert b"Traceback" in child.output()
    assert child.ask(["add", 1, 1], "asked to add") == 2


def test_a_crash_is_named_with_the_last_words_and_ends_what_was_started(child):
    helper = child.ask(["start"], "asked to start another")
    with pytest.raises(CrashError) as caught:
        child.ask(["exit", 9], "asked to exit")
    assert str(caught.value) == (
        "a toy: its process died (exit status 9) asked to exit; it last said: last words"
    )
    assert caught.value.signal == "exit status 9" and gone(helper)
    assert child.output() == b"last words\n"  # readable after the end, for a log


def test_a_limit_by_the_clock_ends_a_child_that_waits(child):
    with pytest.raises(CallTimeoutError, match=r"asked to wait, it took over 0\.2 s; its process"):
        child.ask(["sleep"], "asked to wait", 0.2)
    assert not child.end.alive


def test_a_limit_of_the_processors_time_counts_work_and_not_waiting(child):
    child.ask(["add", 1, 1], "asked to add")  # it has imported all that it needs
    with pytest.raises(CallTimeoutError, match="over 1 s;"):
        child.ask(["sleep"], "asked to wait", 1, processor_seconds=0.5)
    with Child("tests.test_child", "a toy") as busy:
        busy.ask(["add", 1, 1], "asked to add")
        with pytest.raises(CallTimeoutError, match=r"over 0\.3 s of the processor's time"):
            busy.ask(["compute"], "asked to compute", 60, processor_seconds=0.3)


def test_a_child_that_dies_within_a_limit_of_the_processors_time_has_crashed(child):
    with pytest.raises(CrashError, match="exit status 11"):
        child.ask(["exit", 11], "asked to exit", processor_seconds=60)


def test_a_process_that_is_gone_has_used_no_time(child):
    pid = child.ask(["where"], "asked for its place")[0]
    assert 0 < _processor_seconds(pid, 1.0) < 100
    child.end()
    assert _processor_seconds(pid, 1.0) == 0  # not an error: the connection reports how it died


def test_printed_lines_are_followed_and_no_answer(child):
    long, followed = "x" * 3_000_000, []
    child.ask(["print", "one", long, "two"], "asked to print", follow=followed.append)
    assert followed[0] == "one" and followed[-1] == "two" and "".join(followed[1:-1]) == long


def test_an_interrupt_ends_the_child(child):
    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.ask(["print", "one"], "asked to print", follow=interrupt)
    assert not child.end.alive


@pytest.mark.linux
def test_limited_memory_is_an_error_in_the_child(child):
    child.ask(["allocate", 1 << 20, 1 << 30], "asked to allocate")
    with pytest.raises(ChildError) as caught:
        child.ask(["allocate", 1 << 30, 1 << 28], "asked to allocate")
    assert caught.value.kind == "MemoryError"


def test_descriptors_are_open_under_the_same_numbers():
    with tempfile.TemporaryFile() as file:
        file.write(b"shared")
        file.flush()
        with Child("tests.test_child", "a toy", descriptors=[file.fileno()]) as child:
            assert child.ask(["read", file.fileno()], "asked to read") == "shared"


def test_a_python_that_cannot_be_started_is_one_sentence(tmp_path):
    absent = str(tmp_path / "python")
    with pytest.raises(HarnessError, match=f"^{absent} cannot be started: No such file"):
        Child("tests.test_child", "a toy", python=absent)


def test_a_module_that_is_not_there_is_a_crash_with_pythons_words():
    with (
        Child("tests.no_such_module", "a toy", python=sys.executable) as child,
        pytest.raises(CrashError, match="it last said: .*No module named tests.no_such_module"),
    ):
        child.ask([], "asked for nothing")

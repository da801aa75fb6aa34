"""A timed run counts the right passes, and only if its answer is right."""

import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from harness.errors import HarnessError
from harness.fixtures.cache import exported, fixture
from harness.generate.session import Session
from harness.measure import timing
from harness.measure.timing import Calls, Stopwatch, WrongAnswerError, load_times, milliseconds
from harness.pte.program import ProgramMethod
from harness.subject import Subject

STEPS = 32


@pytest.fixture(scope="module")
def path():
    return exported("tiny", replace(fixture("tiny").options, mode="multifunction"))


@pytest.fixture(scope="module")
def stopwatch(path):
    return Stopwatch(Subject(path))


@pytest.fixture
def bent(monkeypatch):
    """Pass every session's decode steps through a function of (step, logits)."""

    def bend(change):
        decode, steps = Session.decode, []

        def bent_decode(self, token):
            steps.append(token)
            return change((len(steps) - 1) % STEPS, decode(self, token))

        monkeypatch.setattr(Session, "decode", bent_decode)

    return bend


def slow(seconds):
    def change(step, logits):
        time.sleep(seconds)
        return logits

    return change


def off_by_a_thousandth_at_the_last_step(step, logits):
    if step == STEPS - 1:
        logits = logits.clone()
        logits[7] += logits.abs().max() / 1000
    return logits


def not_a_number_at_the_first_step(step, logits):
    return logits * float("nan") if step == 0 else logits


def another_steps_answer(step, logits):
    return logits.roll(1)


def test_a_round_has_a_time_for_every_step(stopwatch):
    timed = stopwatch.round("mil:widen")
    assert len(timed.decode) == STEPS and all(step > 0 for step in timed.decode)
    assert timed.prefill > 0


def test_times_are_in_milliseconds_and_those_of_prefill_per_token(stopwatch, bent, monkeypatch):
    bent(slow(0.02))
    feed = Session.feed

    def slow_feed(self, tokens, phase):
        time.sleep(0.15 if phase == "prefill" else 0)
        return feed(self, tokens, phase)

    monkeypatch.setattr(Session, "feed", slow_feed)
    timed = stopwatch.round("eager:fp32")
    assert 20 <= min(timed.decode) < 200
    assert len(timed.chunks) == 3, "a prompt of two and a half chunks of 16 tokens"
    assert 3 * 150 / 40 <= timed.prefill < 10 * 150 / 40


@pytest.mark.parametrize("mode", ["single", "multifunction"])
def test_the_chunks_of_a_round_are_those_of_a_prefill(mode):
    """A session of one method feeds a tail again, and its last chunks are shorter."""
    options = replace(fixture("tiny").options, mode=mode)
    session = Subject(exported("tiny", options)).session("mil:widen")
    tokens = list(range(1, session.layout.context))
    *chunks, last = timing.timed_steps(session, tokens, len(tokens) - 1)
    session.reset()
    assert torch.equal(chunks[-1][2], session.prefill(tokens[:-1]))
    assert last[0] == "decode" and torch.equal(last[2], session.decode(tokens[-1]))


def test_runtimes_take_turns_and_the_warm_up_is_not_kept(stopwatch, monkeypatch):
    turns = []

    def round_of(self, runtime):
        turns.append(runtime)
        return len(turns)

    monkeypatch.setattr(Stopwatch, "round", round_of)
    assert stopwatch.rounds(["a", "b"], 2) == {"a": [3, 5], "b": [4, 6]}
    assert turns == ["a", "b"] * 3


@pytest.mark.parametrize(
    "change",
    [
        off_by_a_thousandth_at_the_last_step,
        not_a_number_at_the_first_step,
        another_steps_answer,
    ],
)
def test_a_wrong_answer_has_no_time(stopwatch, bent, change):
    bent(change)
    with pytest.raises(WrongAnswerError, match="on mil:widen: .* its time is not a result"):
        stopwatch.rounds(["mil:widen"], 1)


def test_a_call_that_gives_other_outputs_than_the_checked_one_has_no_time(
    mixed_program, monkeypatch
):
    subject = Subject(mixed_program[0])
    calls = Calls(subject, "mil:widen")
    assert calls.methods == ["forward"] and calls.compared > 0
    call = calls.load()
    assert call()["forward"] > 0
    original = ProgramMethod.__call__
    monkeypatch.setattr(
        ProgramMethod, "__call__", lambda self, *t: tuple(r * 1.01 for r in original(self, *t))
    )
    with pytest.raises(WrongAnswerError, match="method 'forward' gives other outputs"):
        calls.load()()
    with pytest.raises(WrongAnswerError, match="is off by 0.01 of its largest"):
        Calls(subject, "mil:widen")


def test_a_wrong_answer_has_no_memory_either(stopwatch, bent):
    bent(another_steps_answer)
    with pytest.raises(WrongAnswerError):
        stopwatch.memory("mil:widen")


def test_memory_is_that_of_a_process_with_the_artifact(stopwatch):
    memory = stopwatch.memory("mil:widen")
    assert 50e6 < memory.before < memory.peak < memory.before + 300e6


def test_every_load_starts_from_the_file_with_the_last_one_gone(path, monkeypatch):
    sessions, alive = [], []

    class Watched(Subject):
        def __init__(self, path):
            alive.append(sum(session() is not None for session in sessions))
            super().__init__(path)

        def session(self, runtime):
            session = super().session(runtime)
            sessions.append(weakref.ref(session))
            return session

    monkeypatch.setattr(timing, "Subject", Watched)
    times = load_times(path, "mil:widen", 3)
    assert len(times) == 3 and all(1 < took < 10_000 for took in times)
    assert len(sessions) == 4 and alive == [0, 0, 0, 0]


def test_the_overhead_of_a_child_is_not_counted(monkeypatch):
    overhead = iter([5_000_000, 35_000_000])
    monkeypatch.setattr(timing, "overhead_ns", lambda: next(overhead))
    start = time.perf_counter()
    result, took = milliseconds(lambda: time.sleep(0.05) or "done")
    whole = (time.perf_counter() - start) * 1000
    assert result == "done" and 20 <= took <= whole - 30


def short_subject(context):
    """Return a subject with equal logits, of which only the context matters."""
    layout = SimpleNamespace(
        prefill=SimpleNamespace(input_len=16), context=context, vocab_size=8, full_logits=False
    )
    return SimpleNamespace(
        artifact=SimpleNamespace(path="short.pte"),
        session=lambda runtime: SimpleNamespace(layout=layout),
        tables=(torch.zeros(context, 4), torch.zeros(context, 4)),
        oracle=lambda tokens, tables: (torch.zeros(len(tokens), 8), None, None),
    )


def test_a_context_with_nothing_to_decode_is_refused():
    with pytest.raises(HarnessError, match=r"short\.pte: a context of 1 token"):
        Stopwatch(short_subject(1))

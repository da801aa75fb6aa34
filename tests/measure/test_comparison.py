"""Two artifacts are timed in blocks until each metric has a verdict; a verdict needs answers."""

import itertools
import math
import re
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from harness.cli import main
from harness.fixtures.cache import exported, fixture
from harness.generate.session import Session
from harness.measure import comparison
from harness.measure.comparison import (
    MAX_PASSES,
    MIN_PASSES,
    LanguageModel,
    Race,
    compare_memory,
)
from harness.measure.statistics import FIRST_LOOK, ORDERS, Goal, least_steps, memory_verdict
from harness.measure.timing import Memory, Round, WrongAnswerError
from harness.subject import Subject
from tests.results.runs import PARITY, write_run

MB = 1e6


class Simulated:
    """Steps of 1 ms times `speed`, with a little noise, and every tenth one disturbed."""

    tokens = {"decode": 8}

    def __init__(self, speed=1.0, load_ms=5.0, running=0.0, log=None, name=""):
        self.speed, self.load_ms, self.running = speed, load_ms, running
        self.log, self.name = log, name
        self.generator = np.random.default_rng(len(name) + 7)
        self.loads = 0

    def load(self):
        self.loads += 1
        return self.run, self.load_ms

    def run(self):
        if self.log is not None:
            self.log.append(self.name)
        time.sleep(self.running)
        noise = np.exp(np.abs(self.generator.normal(0, 0.01, 8)))
        noise[self.generator.random(8) < 0.1] *= 20
        return {"decode": (self.speed * noise).tolist()}


def raced(base, head, seconds=20.0):
    """Race for seconds of a clock of its own: a busy machine must not change a verdict."""
    clock = itertools.count(0, 0.01).__next__
    return {row.name: row for row in Race(base, head, Goal(seconds=seconds), clock).run(print)}


@pytest.mark.parametrize(
    ("speed", "verdict"), [(1.0, "same"), (1.03, "slower"), (1 / 1.03, "faster"), (1.005, "same")]
)
def test_disturbed_steps_do_not_hide_a_verdict(speed, verdict):
    rows = raced(Simulated(), Simulated(speed, name="head"))
    assert rows["decode"].found.verdict == verdict
    assert rows["decode"].found.head.ratio == pytest.approx(speed, rel=0.005)
    assert rows["decode"].base == pytest.approx(1.0, rel=0.03), "per token"
    assert rows["load"].found.verdict == "same" and rows["load"].base == 5.0
    numbers = rows["decode"].found.numbers()
    assert numbers["interval"][0] < numbers["ratio"] < numbers["interval"][1]
    assert numbers["samples"] >= FIRST_LOOK and {"p", "control", "control interval"} <= set(numbers)


def test_a_slow_load_is_found_where_decoding_is_the_same():
    rows = raced(Simulated(), Simulated(load_ms=6.5, name="head"))
    assert (rows["load"].found.verdict, rows["decode"].found.verdict) == ("slower", "same")


def test_artifacts_whose_loads_are_not_timed_are_loaded_twice_and_timed_all_the_same():
    base, head = Simulated(), Simulated(1.5, name="head")
    (row,) = Race(base, head, Goal(seconds=20), loads=False).run(print)
    assert (row.name, row.found.verdict, base.loads, head.loads) == ("decode", "slower", 2, 2)


def test_each_side_is_first_as_often_as_the_other():
    log = []
    race = Race(Simulated(log=log, name="b"), Simulated(log=log, name="head"), Goal(seconds=5))
    race._time_block(0)
    assert log[:12] == [
        "b",
        "head",
        "head",
        "b",
        "head",
        "b",
        "b",
        "head",
        "b",
        "head",
        "head",
        "b",
    ]
    firsts = [order[0].split()[-1] for order in ORDERS]
    assert sorted(firsts) == ["base", "base", "head", "head"]


def test_passes_go_on_while_they_find_shorter_steps():
    counts = {"steady": 0, "falling": 0}

    def steady():
        counts["steady"] += 1
        return {"decode": [30.0]}

    def falling():
        counts["falling"] += 1
        return {"decode": [60.0 / counts["falling"]]}

    sessions = dict.fromkeys(ORDERS[0], steady)
    least_steps(sessions, 0, MIN_PASSES, MAX_PASSES)
    assert counts["steady"] == 4 * MIN_PASSES
    sessions["head"] = falling
    least = least_steps(sessions, 0, MIN_PASSES, MAX_PASSES)
    assert counts["falling"] == MAX_PASSES and least["head"] == {"decode": [60.0 / MAX_PASSES]}


def test_the_seconds_end_what_cannot_be_decided():
    start = time.monotonic()
    base, head = Simulated(running=0.01), Simulated(running=0.01, name="head")
    rows = {row.name: row for row in Race(base, head, Goal(seconds=0.5)).run(print)}
    assert time.monotonic() - start < 5
    assert {row.found.verdict for row in rows.values()} == {"inconclusive"}
    reason = rows["decode"].metric("time").reason
    assert re.fullmatch(r"\d+ blocks? (is|are) too few, 12 are needed: .* --seconds 2\.5", reason)
    assert "interval" not in rows["decode"].found.numbers(), "it is infinite"


def test_sessions_that_load_slowly_are_kept_and_their_load_is_undecided():
    base, head = Simulated(load_ms=100), Simulated(1.05, load_ms=100, name="head")
    rows = raced(base, head, seconds=4.0)
    assert (base.loads, head.loads) == (4, 4), "a warm-up, and one block"
    assert rows["decode"].found.verdict == "slower"
    assert rows["decode"].found.blocks <= 2 * FIRST_LOOK, "no more blocks than that decides"
    assert rows["load"].found.verdict == "inconclusive" and rows["load"].found.blocks == 1


@pytest.mark.parametrize(
    ("base", "head", "verdict"),
    [
        ([22, 22.1], [22.3, 22.2], "same"),  # within 1 MiB
        ([220, 221], [221, 222], "same"),
        ([220, 221], [230, 231], "larger"),
        ([230, 231], [220, 221], "smaller"),
        ([220, 260], [240, 240], "inconclusive"),
    ],
)
def test_the_peaks_of_processes_decide(base, head, verdict):
    found = memory_verdict([b * MB for b in base], [h * MB for h in head], Goal())
    assert found.verdict == verdict and math.isnan(found.p)


def test_scattered_peaks_are_measured_more_often():
    class Peaks:
        def __init__(self, *peaks):
            self.peaks = list(peaks)

        def memory(self):
            return Memory(100, 100 + int(self.peaks.pop(0) * MB))

    steady = compare_memory(Peaks(220, 220), Peaks(230, 230), Goal())
    assert (steady.found.verdict, steady.base, steady.head) == ("larger", 220 * MB, 230 * MB)
    scattered = Peaks(220, 260, 225, 228, 231), Peaks(221, 262, 222, 229, 232)
    found = compare_memory(*scattered, Goal()).found
    assert (found.verdict, found.blocks) == ("inconclusive", 5)


def test_a_wrong_answer_ends_the_timing(monkeypatch):
    subject = Subject(exported("tiny", replace(fixture("tiny").options, mode="single")))
    side = LanguageModel(subject, "mil:widen")
    run, took = side.load()
    steps = run()
    assert took > 1
    assert {name: len(times) for name, times in steps.items()} == {"decode": 32, "prefill": 3}
    assert side.tokens == {"decode": 32, "prefill": 40}
    decode = Session.decode
    monkeypatch.setattr(Session, "decode", lambda self, token: decode(self, token).roll(1))
    with pytest.raises(WrongAnswerError, match="its time is not a result"):
        Race(side, side, Goal(seconds=5)).run(print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detect", "x"], "invalid percent value: 'x'"),
        (["--detect", "200%"], "tolerate less than you want to find"),
        (["--tolerate", "3"], "tolerate less than you want to find"),
        (["--seconds", "0"], "give more than 0"),
    ],
)
def test_goals_that_cannot_be_are_refused(capsys, options, message):
    path = str(exported("tiny", replace(fixture("tiny").options, mode="single")))
    try:
        status = main(["gate", path, path, *options])
    except SystemExit as error:
        status = error.code
    assert status == 2 and message in capsys.readouterr().err


def test_a_result_file_has_no_seconds(capsys, tmp_path):
    path = str(write_run(tmp_path / "run.jsonl", PARITY))
    assert main(["gate", path, path, "--seconds", "5"]) == 2
    assert "--seconds is not for two result files" in capsys.readouterr().err


def test_a_load_that_single_loads_leave_undecided_is_repeated():
    class Unsteady(Simulated):
        def load(self):
            run, _ = super().load()
            return run, 5.0 * (3.0 if self.generator.random() < 0.5 else 1.0)

    rows = raced(Unsteady(), Unsteady(name="head"))
    assert rows["load"].found.verdict == "same" and rows["load"].base < 10
    steady = raced(Simulated(), Simulated(name="head"))
    assert steady["load"].found.blocks == FIRST_LOOK


def test_bench_gives_low_quartiles_which_a_few_slow_steps_do_not_move():
    rounds = [Round([4.0, 4.0], 4, [1.0, 1.0, 9.0], torch.zeros(1))] * 3
    rounds.append(Round([40.0, 4.0], 4, [9.0, 9.0, 9.0], torch.zeros(1)))
    figures = comparison._figures([7.0, 5.0, 50.0, 5.0, 6.0], rounds, Memory(1, 2))
    assert figures["load_ms"] == 5.0 and figures["prefill_ms_per_token"] == 2.0
    assert (figures["decode_ms_per_token"], figures["decode_tokens_per_second"]) == (1.0, 1e3)


def test_a_short_call_is_repeated_more_often():
    counts = dict.fromkeys(ORDERS[0], 0)

    def call(name):
        counts[name] += 1
        return {"forward call": [0.5]}

    least_steps({name: partial(call, name) for name in ORDERS[0]}, 0, MIN_PASSES, MAX_PASSES)
    assert set(counts.values()) == {40}, "80 ms in all"

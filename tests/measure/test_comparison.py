"""Two artifacts are timed in blocks until each metric has a verdict; a verdict needs answers."""

import itertools
import json
import math
import re
import time
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from harness.cli import main
from harness.cli.bench import table
from harness.fixtures.cache import exported, fixture
from harness.generate.session import Session
from harness.measure import comparison
from harness.measure.comparison import PASSES, PREFILLS, LanguageModel, Race, compare_memory
from harness.measure.statistics import FIRST_LOOK, Goal, memory_verdict
from harness.measure.timing import Memory, Round, WrongAnswerError
from harness.measure.turns import MIN_MS, ORDERS, in_turn, shared_times
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
        time.sleep(self.running)
        noise = np.exp(np.abs(self.generator.normal(0, 0.01, 8)))
        noise[self.generator.random(8) < 0.1] *= 20
        for factor in noise.tolist():
            if self.log is not None:
                self.log.append(self.name)
            yield "decode", self.speed * factor


def raced(base, head, seconds=20.0):
    """Race for seconds of a clock of its own: a busy machine must not change a verdict."""
    clock = itertools.count(0, 0.01).__next__
    return {row.name: row for row in Race(base, head, Goal(seconds=seconds), clock).run(print)}


@pytest.mark.parametrize(
    ("speed", "verdict"),
    [
        (1.0, "same"),
        (1.03, "slower"),
        pytest.param(1 / 1.03, "faster", marks=pytest.mark.slow),
        pytest.param(1.005, "same", marks=pytest.mark.slow),
    ],
)
def test_disturbed_steps_do_not_hide_a_verdict(speed, verdict):
    rows = raced(Simulated(), Simulated(speed, name="head"))
    assert rows["decode"].found.verdict == verdict
    assert rows["decode"].found.head.ratio == pytest.approx(speed, rel=0.005)
    assert rows["decode"].base == pytest.approx(1.0, rel=0.03), "per token"
    assert rows["load"].found.verdict == "same" and rows["load"].base == pytest.approx(5.0)
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


def test_steps_are_taken_in_turn_and_each_side_is_first_as_often_as_the_other():
    log = []
    race = Race(Simulated(log=log, name="b"), Simulated(log=log, name="head"), Goal(seconds=5))
    race._time_block(0)
    assert log[:8] == ["b", "head", "head", "b", "head", "b", "b", "head"]
    assert len(log) == 4 * 8, "one pass"
    firsts = [order[0].split()[-1] for order in ORDERS]
    assert sorted(firsts) == ["base", "base", "head", "head"]


def test_a_machine_that_changes_its_speed_changes_no_ratio():
    """All four actions meet each speed; a least step would be that of the fastest moment."""
    speeds = itertools.cycle([1.0] * 8 + [2.5] * 12)

    def steps(own):
        for _ in range(40):
            yield "decode", own * next(speeds)

    own = {"base": 1.0, "head": 1.04, "second head": 1.04, "second base": 1.0}
    found = in_turn({name: partial(steps, own[name]) for name in own}, 0, PASSES)
    for name in own:
        ratio = found[name]["decode"] / found["base"]["decode"]
        assert ratio == pytest.approx(own[name] / own["base"])


def test_a_disturbed_step_of_one_pass_moves_nothing_and_a_step_that_is_always_slow_counts():
    times = np.ones((4, 3, 10))
    times[2, 1, 4] = 50  # one pass
    assert shared_times(times) == pytest.approx([10, 10, 10, 10])
    times[1, 0] = 9  # of one action alone
    times[3, :, 7] = 3  # each pass
    assert shared_times(times) == pytest.approx([10, 10, 10, 12])


def test_steps_of_unequal_size_are_compared_by_their_sum():
    """One artifact may prefill in chunks of another length."""
    two = lambda: iter([("prefill", 30.0), ("prefill", 30.0), ("decode", 1.0)])  # noqa: E731
    one = lambda: iter([("prefill", 66.0), ("decode", 1.0)])  # noqa: E731
    actions = {"base": two, "head": one, "second head": one, "second base": two}
    found = in_turn(actions, 3, PASSES)
    assert found["second head"] == pytest.approx({"prefill": 66.0, "decode": 1.0})
    assert found["base"] == pytest.approx({"prefill": 60.0, "decode": 1.0})


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

    steady = compare_memory(Peaks(*[220] * 5), Peaks(*[230] * 5), Goal())
    assert (steady.found.verdict, steady.base, steady.head) == ("larger", 220 * MB, 230 * MB)
    equal = compare_memory(Peaks(220, 220), Peaks(220, 220), Goal()).found
    assert (equal.verdict, equal.blocks) == ("same", 2)
    # Of one artifact: the first two samples of each differ by chance.
    chance = Peaks(75.0, 75.1, 76.3, 75.0, 75.2), Peaks(76.2, 76.3, 75.1, 75.2, 75.0)
    assert compare_memory(*chance, Goal()).found.verdict == "same"
    scattered = Peaks(220, 260, 225, 228, 231), Peaks(221, 262, 222, 229, 232)
    found = compare_memory(*scattered, Goal()).found
    assert (found.verdict, found.blocks) == ("inconclusive", 5)


def test_a_wrong_answer_ends_the_timing(monkeypatch):
    subject = Subject(exported("tiny", replace(fixture("tiny").options, mode="single")))
    side = LanguageModel(subject, "mil:widen")
    run, took = side.load()
    steps = Counter(phase for phase, _ in run())
    assert took > 1
    assert steps == {"decode": 32, "prefill": 3 * PREFILLS}
    assert side.tokens == {"decode": 32, "prefill": 40 * PREFILLS}
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


@pytest.mark.slow
def test_a_disturbed_load_leaves_no_load_undecided():
    class Unsteady(Simulated):
        def load(self):
            run, _ = super().load()
            return run, 5.0 * (3.0 if self.generator.random() < 0.5 else 1.0)

    rows = raced(Unsteady(), Unsteady(name="head"))
    assert rows["load"].found.verdict == "same" and rows["load"].base < 10
    steady = raced(Simulated(), Simulated(name="head"))
    assert steady["load"].found.blocks == FIRST_LOOK


def test_of_decided_metrics_one_load_and_one_pass_are_left():
    log = []
    side = Simulated(log=log)
    race = Race(side, Simulated(name="head"), Goal(seconds=5))
    race._undecided = {"decode"}
    race._time_block(1)
    assert side.loads == 2 and len(log) > 2 * PASSES * 8, "80 ms in all"
    race._undecided, side.loads = {"load"}, 0
    log.clear()
    race._time_block(2)
    uncounted, enough, settled = 1, math.ceil(MIN_MS / 20), 1
    assert side.loads == 2 * (uncounted + enough + settled) and len(log) == 2 * 8


def test_bench_gives_low_quartiles_which_a_few_slow_steps_do_not_move():
    rounds = [Round([4.0, 4.0], 4, [1.0, 1.0, 9.0])] * 3
    rounds.append(Round([40.0, 4.0], 4, [9.0, 9.0, 9.0]))
    figures = comparison._figures([7.0, 5.0, 50.0, 5.0, 6.0], rounds, Memory(1, 2))
    assert figures["load_ms"] == 5.0 and figures["prefill_ms_per_token"] == 2.0
    assert (figures["decode_ms_per_token"], figures["decode_tokens_per_second"]) == (1.0, 1e3)


def test_the_table_of_bench_has_the_figures_of_its_json():
    rng = np.random.default_rng(0)
    decode = rng.uniform(0.5, 2.0, (5, 32))
    rounds = [Round([6.0 + n, 3.0], 40, [*steps]) for n, steps in enumerate(decode.tolist())]
    loads = [12.0, 3000.0, 14.0, 13.0, 11.0]
    figures = comparison._figures(loads, rounds, Memory(300_000_000, 4_321_000_000))
    tests = {row["test"]: row for row in json.loads(json.dumps(figures))["tests"]}
    assert list(tests) == ["load", "pp40", *(f"tg8 @ d{depth}" for depth in (40, 48, 56, 64))]
    assert tests["pp40"]["median"] == 11 / 40 and tests["load"]["quartiles"] == [12, 14]
    for number, depth in enumerate((40, 48, 56, 64)):
        steps, row = decode[:, 8 * number : 8 * number + 8], tests[f"tg8 @ d{depth}"]
        found = [row["quartiles"][0], row["median"], row["quartiles"][1]]
        assert np.allclose(found, np.quantile(steps, [0.25, 0.5, 0.75])) and row["samples"] == 40
        assert row["tokens_per_second"] == pytest.approx(1000 / np.median(steps))
    rows = {
        line[11:24].strip(): line[24:].split()
        for line in table({"mil:widen": figures}).splitlines()[2:]
    }
    assert rows["peak memory"] == ["4,321", "MB"] and rows["before load"] == ["300", "MB"]
    assert rows["load"] == ["13.00", "12.00", "to", "14.00", "ms"]
    for name, row in tests.items():
        median, low, _, high, unit, *speed = rows[name]
        shown = [float(text.replace(",", "")) for text in (median, low, high)]
        wanted = [row["median"], *row["quartiles"]]
        assert unit == row["unit"] and shown == pytest.approx(wanted, rel=1e-3)
        assert [float(text.replace(",", "")) for text in speed] == pytest.approx(
            [row[key] for key in ("tokens_per_second",) if key in row], rel=1e-3
        )


def test_few_steps_are_one_depth():
    figures = comparison._figures([1.0], [Round([4.0], 4, [1.0, 2.0, 3.0])], Memory(1, 2))
    assert [row["test"] for row in figures["tests"]] == ["load", "pp4", "tg3 @ d4"]
    assert figures["tests"][0]["quartiles"] == [1.0, 1.0]


def test_a_short_call_is_repeated_more_often():
    counts = dict.fromkeys(ORDERS[0], 0)

    def call(name):
        counts[name] += 1
        yield "forward call", 0.5

    in_turn({name: partial(call, name) for name in ORDERS[0]}, 0, PASSES)
    assert set(counts.values()) == {40}, "80 ms in all"

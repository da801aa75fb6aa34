"""Broken runners: the place that each fault reaches first reports it, and a sound one passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from harness.checks import Check, run_check
from harness.results import Case, Finding
from harness.suites.runners.conftest import BenchOf
from harness.suites.runners.faults import FAULTS
from harness.suites.runners.scenarios import eos_cases, numbered_words
from harness.suites.runners.script import Bench

INSTALLED = [(name, mode) for name, fault in FAULTS.items() for mode in fault.modes]


@pytest.mark.parametrize(("name", "mode"), INSTALLED)
def test_a_broken_runner_is_caught(
    record: Callable[[Case], None], bench_of: BenchOf, first_label: str, name: str, mode: str
) -> None:
    fault = FAULTS[name]
    check: Check[Bench] = Check(f"fault: {name}", partial(caught, name=name))
    subject = partial(bench_of, first_label, fault.fixture, mode)
    fixture = f"{first_label}:{fault.fixture}"
    record(run_check(check, subject, suite="runners", fixture=fixture, mode=mode))


def caught(bench: Bench, name: str) -> Iterator[Finding]:
    """Run sound and broken; the one must pass, and the other fail at the fault's place."""
    fault = FAULTS[name]
    words = bench.vocabulary
    more: list[object] = []
    n = 24 if fault.lookahead else 12  # some calls before the last one accept a branch
    chunk = bench.layout.prefill.input_len
    prompts = [words.prompt(n) for n in (5, chunk + 3, 2 * chunk)]
    if fault.lookahead:
        more = ["--lookahead", "--ngram_size", 3, "--window_size", 4, "--n_verifications", 4]
    if fault.fixture == "layers-1":
        words = numbered_words(bench.folder, bench.layout.vocab_size)
        prompts = ["w7 w65536 w9"]
    if fault.place == "stop":
        (prompt, eos), _ = next(eos_cases(bench, (2,)))
        prompts, words = [prompt], bench.tokenizer("eos", {"bos_token": None, "eos_token": eos})
    wrong = {}
    for broken in (None, name):
        verdicts = bench.verdicts(prompts, n, *more, vocabulary=words, fault=broken)
        wrong[broken] = [verdict.wrong for _, verdict, _, _ in verdicts if verdict.wrong]
    yield Finding(name, "sound", not wrong[None], f"{wrong[None]}", len(prompts))
    places = {one.place for one in wrong[name]}
    message = f"{places or 'nothing'} reported it: {[str(one) for one in wrong[name]]}"
    yield Finding(name, fault.place, places == {fault.place}, message, len(prompts))

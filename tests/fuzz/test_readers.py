"""Each reader takes its sound files, and inputs that were at fault; a planted fault is found."""

import contextlib
import importlib.util
import math
import random
import sys
import time
import tomllib
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.suites.fuzz import guided
from harness.suites.fuzz.__main__ import main
from harness.suites.fuzz.corpora import CORPORA, write_sources
from harness.suites.fuzz.guided import Faults, attempt, fuzz
from harness.suites.fuzz.of_text import VALUES, toml_bytes
from harness.suites.fuzz.readers import FAMILIES

AT_FAULT = Path(__file__).with_name("at_fault")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    return folder


def test_every_family_has_sound_files():
    assert CORPORA.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reader_takes_sound_files(name, sources, tmp_path):
    read = FAMILIES[name].prepare(sources, tmp_path)
    for data in CORPORA[name](sources):
        read(data)


@pytest.mark.parametrize("path", sorted(AT_FAULT.glob("*/*")), ids=lambda path: path.name)
def test_what_was_at_fault_is_a_result_or_a_sentence(path, sources, tmp_path):
    faults = tmp_path / "faults"
    faults.mkdir()
    read = FAMILIES[path.parent.name].prepare(sources, tmp_path)
    attempt(read, path.read_bytes(), Faults(faults))
    assert not [*faults.iterdir()], [p.read_text() for p in faults.glob("*.txt")]


def faults_of(read, folder):
    attempt(read, b"data", Faults(folder))
    attempt(read, b"other", Faults(folder))
    return [path.name.partition("-")[0] for path in folder.iterdir() if path.suffix != ".txt"]


def test_a_sentence_is_no_fault_and_any_other_error_is_one(tmp_path):
    def refuse(data):
        raise HarnessError("no")

    def fail(data):
        raise AttributeError("absent")

    assert faults_of(refuse, tmp_path) == []
    assert faults_of(fail, tmp_path) == ["AttributeError"]
    assert (next(tmp_path.glob("*[!t]"))).read_bytes() == b"data"


def test_an_allocation_that_failed_is_a_fault(tmp_path):
    def ask(data):
        try:
            bytearray(1 << 60)
        except MemoryError as error:
            raise HarnessError("too large") from error

    assert faults_of(ask, tmp_path) == ["memory"]


def test_a_slow_input_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(guided, "LONGEST", 0.05)

    def count(data):
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass

    assert faults_of(count, tmp_path) == ["slow"]


@pytest.mark.parametrize("name", FAMILIES)
def test_mutations_that_keep_the_structure_change_sound_files(name, sources):
    family, made = FAMILIES[name], set()
    for data in CORPORA[name](sources):
        for seed in range(20):
            with contextlib.suppress(ValueError):  # no mutation is for such data
                made.add(family.mutated(data, random.Random(seed)))
    assert len(made) > 20 or not family.mutations


def test_every_value_of_json_is_written_as_toml():
    table = {"\ud800": "a\x7f", "": -math.inf, "all": list(VALUES), "\U0001f600": {"": "é\ud800"}}
    read = tomllib.loads(toml_bytes(table).decode())
    assert len(read["all"]) == len(VALUES) and read["\U0001f600"] == {"": "é"}
    assert math.inf in read["all"] and read[""] == -math.inf


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs the extra `fuzz`")
def test_a_planted_fault_is_found_by_coverage(tmp_path, monkeypatch):
    monkeypatch.setattr(guided, "PROCESS", "tests.fuzz.planted")
    corpus, faults = tmp_path / "corpus", tmp_path / "faults"
    corpus.mkdir()
    outcome = fuzz("planted", tmp_path, corpus, faults, 30, lambda _: None)
    assert outcome.executions > 1000 and outcome.corpus > 3
    assert [path.name.partition("-")[0] for path in outcome.faults] == ["KeyError"]
    assert outcome.faults[0].read_bytes().startswith(b"FUZZ")
    mended = faults / "KeyError-0123456789ab"
    mended.write_bytes(b"FUZ")
    mended.with_suffix(".txt").write_text("KeyError at a place that was mended")
    again = fuzz("planted", tmp_path, corpus, faults, 0, lambda _: None)
    assert again.faults == outcome.faults and not mended.with_suffix(".txt").exists()


def test_a_fuzzer_that_cannot_start_is_one_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz", "all"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main() == 2
    assert "error: atheris is not installed" in capsys.readouterr().err

"""What the checks of the contract say of broken and of sound artifacts, of both exporters."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.fixtures.cache import exported, fixture
from harness.subject import Subject
from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants import of_constants as constants
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants.edit import Export, FolderExport
from harness.suites.mutants.judge import judged, opened

MODES = ("single", "multifunction")
CONTRACT = ("owners", "roles", "cache-rows")


@pytest.fixture(scope="module")
def sound() -> Callable[[str, str], Subject]:
    """Return the exports of `tiny` by name and mode."""
    subjects = Subjects(lambda stage: None, unshared=False)
    kept: dict[tuple[str, str], Subject] = {}

    def get(name: str, mode: str) -> Subject:
        if (name, mode) not in kept:
            kept[name, mode] = subjects.get(name, mode)
        return kept[name, mode]

    return get


@pytest.fixture
def ours(sound: Callable[[str, str], Subject], tmp_path: Path) -> Callable[..., Subject]:
    """Return a function that edits a copy of our export of `tiny`."""

    def make(mode: str, mutate: Callable[[FolderExport], object]) -> Subject:
        source = sound("coreml:tiny", mode)
        export = FolderExport(source.artifact.path)
        mutate(export)
        (tmp_path / "mutant").mkdir()
        return opened(export.save(tmp_path / "mutant"), source)

    return make


def set_constant(name: str, value: object) -> Callable[[FolderExport], None]:
    def mutate(export: FolderExport) -> None:
        export.program["constants"][name] = value

    return mutate


def rotate_rows_of_prefill(export: FolderExport) -> None:
    """Put the rows of one method in another order: each row is right, and the two disagree."""
    rows = export.constant("prefill_kv_cache_specs")
    rows[:] = np.roll(rows, 1, axis=0)


def shorten_the_tables(export: FolderExport) -> None:
    for name in ("freqs_cos", "freqs_sin"):
        entry = export.program["constants"][name]
        entry["shape"] = [entry["shape"][0] - 1, entry["shape"][1]]


def other_cache_length_of_a_row(export: FolderExport) -> None:
    for rows in constants.tensors(export, "kv_cache_specs"):  # type: ignore[arg-type]
        rows[2, 4] += 1


def name_an_input_that_is_not_there(export: FolderExport) -> None:
    for rows in constants.tensors(export, "mask_specs"):  # type: ignore[arg-type]
        rows[0, 0] = 99


BROKEN = {
    "rows of one method in another order": (
        "multifunction",
        rotate_rows_of_prefill,
        {"cache-rows": "4 rows are one layer in one method and another in the other"},
    ),
    "short tables": (
        "single",
        shorten_the_tables,
        {"owners": "freqs_cos has 127 positions, but caches and input hold 128"},
    ),
    "an index of nothing": (
        "single",
        name_an_input_that_is_not_there,
        {"owners": "mask_specs names input 99, but there are 12.*input 1 .*has no owner"},
    ),
    "a cache length without a mask": (
        "single",
        other_cache_length_of_a_row,
        {"owners": "row 2 of kv_cache_specs has a cache of 113 .* masks for .112. only"},
    ),
    "another input length": (
        "multifunction",
        set_constant("prefill_input_len", 8),
        {"roles": r"prefill: input 0 .* 'prefill_input_len' makes it \[1, 8\]"},
    ),
    "another context length": (
        "multifunction",
        set_constant("get_max_context_len", 999),
        {"owners": "get_max_context_len is 999, but tables, caches and input hold 128"},
    ),
    "an unknown BOS": (
        "single",
        set_constant("get_bos_id", 512),
        {"owners": "get_bos_id is 512, outside the vocabulary of 512"},
    ),
    "key and value updates exchanged": (
        "multifunction",
        constants.exchange_columns(1, 3),
        {"cache-rows": "row 0: the rotation moves output 1, its update of values"},
    ),
    "cosines and sines exchanged": (
        "single",
        constants.cosines_for_sines,
        {"roles": "do not rotate keys by pairs of columns: the two are exchanged"},
    ),
    "an index of two tables": (
        "multifunction",
        constants.name_the_sines_twice,
        {"owners": "method 'prefill', inputs: input 2 .* has 2 owners"},
    ),
    "the mask ignored": (
        "single",
        programs.ignore_the_mask,
        {"roles": "cache position 0 moves outputs though its column is closed"},
    ),
    "ids of 8 bits": ("single", programs.narrow_ids, {"token-ids": "limits prompt"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_export_of_ours_is_caught_at_its_place(
    ours: Callable[..., Subject], what: str
) -> None:
    mode, mutate, wanted = BROKEN[what]
    subject = ours(mode, mutate)
    for check, sentence in wanted.items():
        case = judged(subject, check)
        assert case.outcome in ("fail", "error"), case
        assert re.search(sentence, case.reason), case.reason


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["tiny", "coreml:tiny"])
def test_a_sound_export_keeps_the_contract(
    sound: Callable[[str, str], Subject], name: str, mode: str
) -> None:
    for check in CONTRACT:
        case = judged(sound(name, mode), check)
        assert case.outcome == "pass", case.reason
    expected = "the context length (128), BOS, EOS"
    if mode == "multifunction":
        expected += ", the index of last_valid_token_pos in 'prefill' (12)"
        expected += ", the index of last_valid_token_pos in 'forward' (12)"
    assert judged(sound(name, mode), "owners").facts["not in the file"] == expected


def test_what_a_file_says_is_not_missing(ours: Callable[..., Subject]) -> None:
    def say(export: FolderExport) -> None:
        export.program["constants"] |= {"get_max_context_len": 128, "get_bos_id": 1}

    case = judged(ours("single", say), "owners")
    assert case.outcome == "pass" and case.facts["not in the file"] == "EOS"


@pytest.mark.parametrize("name", ["varied-zero", "varied-qwen3"])
def test_a_model_whose_layers_add_nothing_is_left_alone(name: str) -> None:
    """Its caches move nothing, so that the layers of the rows cannot be proved."""
    model = fixture(name)
    path = exported(name, exporter="coreml")
    subject = Subject(path, model.checkpoint, model.params, model.options)
    for check in CONTRACT:
        case = judged(subject, check)
        assert case.outcome == "pass", case.reason


def test_references_of_the_draft_are_read(
    sound: Callable[[str, str], Subject], tmp_path: Path
) -> None:
    source = sound("tiny", "multifunction")
    export = Export(source.artifact.path)
    count = len(export.references)
    export.write_drafts()
    subject = opened(export.save(tmp_path / "draft.pte"), source)
    assert {d.function for ds in subject.artifact.delegates.values() for d in ds} == {
        "forward",
        "prefill",
    }
    cases = {name: judged(subject, name) for name in ("references", "function-names", "parity")}
    assert {case.outcome for case in cases.values()} == {"pass"}
    fact = "references of the draft dialect, which no release reads"
    assert cases["references"].facts[fact] == count
    assert fact not in judged(source, "references").facts

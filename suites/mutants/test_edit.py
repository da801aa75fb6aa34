"""Taking an artifact apart and putting it together changes only what a mutation changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.artifact import open_artifact
from harness.suites.mutants import of_names as names
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants import of_weights as weights
from harness.suites.mutants.edit import Export, Mutation
from harness.suites.mutants.judge import sound

MODES = ("single", "multifunction")


def saved(tmp_path: Path, mode: str, mutate: Mutation) -> Path:
    export = Export(sound(mode).artifact.path)
    mutate(export)
    return export.save(tmp_path / "edited.pte")


@pytest.mark.parametrize("mode", MODES)
def test_an_export_that_is_not_touched_is_the_same_to_the_last_byte(
    tmp_path: Path, mode: str
) -> None:
    path = saved(tmp_path, mode, lambda export: None)
    assert path.read_bytes() == sound(mode).artifact.path.read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_executorch_reads_what_was_edited(tmp_path: Path, mode: str) -> None:
    """Its own reader finds the payloads, which have new sizes, where the tables place them."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    def mutate(export: Export) -> None:
        weights.leave_a_weight_behind(export)
        names.swap_outputs(export)

    path = saved(tmp_path, mode, mutate)
    assert path.stat().st_size > sound(mode).artifact.path.stat().st_size + 2000
    theirs = deserialize_pte_binary(path.read_bytes())
    named = theirs.named_data
    found = [named.buffers[e.buffer_index] for e in named.pte_data.values()] if named else []
    inline = [data.data for data in theirs.program.backend_delegate_data]
    ours = [bytes(bundle.data) for bundle in open_artifact(path).bundles]
    assert sorted(map(bytes, found or inline)) == sorted(ours)


@pytest.mark.parametrize("mode", MODES)
def test_a_mutation_reaches_the_file_and_only_its_own_part(tmp_path: Path, mode: str) -> None:
    before = sound(mode).artifact
    after = open_artifact(saved(tmp_path, mode, weights.perturb_a_norm))
    changed = [
        (number, name)
        for number, (one, other) in enumerate(zip(before.bundles, after.bundles, strict=True))
        for name in one.files
        if one.files[name] != other.files[name] and not name.endswith(".mlmodel")
    ]
    assert changed == [(1, "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin")]
    assert [b.package.model for b in before.bundles] == [b.package.model for b in after.bundles]


def test_a_changed_constant_is_read_back(tmp_path: Path) -> None:
    def mutate(export: Export) -> None:
        export.constant("mask_specs")[0, 1] = 99

    path = saved(tmp_path, "single", mutate)
    assert open_artifact(path).constants["mask_specs"].tolist() == [[1, 99]]


def test_the_source_is_never_written_to(tmp_path: Path) -> None:
    path = sound("multifunction").artifact.path
    before = path.read_bytes()
    saved(tmp_path, "multifunction", programs.ignore_the_mask)
    assert path.read_bytes() == before

"""The mutants' source, exports of the fixture `tiny`, and a factory of broken copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.subject import Subject
from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants.edit import Export
from harness.suites.mutants.judge import MakeMutant, Mutation, Sources, opened


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mutant: a broken copy of an artifact is judged")


@pytest.fixture(scope="session")
def sources() -> Sources:
    return Sources()


@pytest.fixture
def mutant(sources: Sources, tmp_path: Path) -> MakeMutant:
    """Return a function that breaks a copy of the tiny export and opens it."""

    def make(mutate: Mutation, mode: str) -> Subject:
        sound = sources[mode]
        export = Export(sound.artifact.path)
        mutate(export)
        return opened(export.save(tmp_path / "mutant.pte"), sound)

    return make


@pytest.fixture(scope="session")
def sound() -> Subjects:
    return Subjects(lambda stage: None)

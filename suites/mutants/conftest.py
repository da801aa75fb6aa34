"""The mutants' source, exports of the fixture `tiny`, and a factory of broken copies."""

from __future__ import annotations

import pytest

from harness.subject import Subject
from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants.edit import Export
from harness.suites.mutants.judge import opened


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mutant: a broken copy of an artifact is judged")


class Sources:
    """The sound subjects, by mode; each stays open, because they are small."""

    def __init__(self) -> None:
        self._opened: dict[str, Subject] = {}

    def __getitem__(self, mode: str) -> Subject:
        if mode not in self._opened:
            self._opened[mode] = Subjects(lambda stage: None).get("tiny", mode)
        return self._opened[mode]


@pytest.fixture(scope="session")
def sources():
    return Sources()


@pytest.fixture
def mutant(sources, tmp_path):
    """Return a function that breaks a copy of the tiny export and opens it."""

    def make(mutate, mode: str) -> Subject:
        sound = sources[mode]
        export = Export(sound.artifact.path)
        mutate(export)
        return opened(export.save(tmp_path / "mutant.pte"), sound)

    return make

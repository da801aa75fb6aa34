"""The artifacts that the commands are run on; at the end, the longest silence of each command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.artifact import open_artifact
from harness.cli import main
from harness.fixtures import cache, model
from harness.packages.extract import extract_packages
from harness.suites.terminal.watch import Watched, watch

_WATCHED = pytest.StashKey[list[Watched]]()
HARNESS = (sys.executable, "-m", "harness")
_TEXT = "Once upon a time there was a girl who lived by the sea with her mother. " * 8


@dataclass(frozen=True)
class Material:
    """Files by the names that the table of commands has for them, in a folder for the outputs."""

    folder: Path
    names: dict[str, str]

    def words(self, command: str) -> list[str]:
        """Return a command of the table as words, with paths in the place of names in braces."""
        return [word.format(**self.names) for word in command.split()]


def pytest_configure(config: pytest.Config) -> None:
    """Keep what is watched."""
    config.stash[_WATCHED] = []


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Return tiny by both exporters in both modes, its checkpoint, and what is made of them."""
    folder = tmp_path_factory.mktemp("terminal")
    made = cache.fixture("tiny")
    names = {"checkpoint": str(made.checkpoint), "tokenizer": str(made.folder / "tokenizer.model")}
    for exporter, kind in (("executorch", "pte"), ("coreml", "folder")):
        for mode in ("single", "multifunction"):
            options = replace(model("tiny").options, mode=mode)
            names[f"{mode}_{kind}"] = str(cache.exported("tiny", options, exporter=exporter))
    (folder / "text.txt").write_text(_TEXT)
    names["text"] = str(folder / "text.txt")
    extraction = extract_packages(open_artifact(names["multifunction_pte"]), folder / "packages")
    names["package"] = str(folder / "packages" / extraction.packages[0].package)
    names["results"] = str(folder / "results")
    words = ["check", names["single_folder"], "--results", names["results"]]
    assert main([*words, "--check", "parity", "--check", "weights"]) == 0
    return Material(folder, names)


@pytest.fixture
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Watched]:
    """Return a function that watches a command of `harness` in a folder of the test's own."""

    def run(words: list[str], columns: int = 80, **variables: str) -> Watched:
        found = watch([*HARNESS, *words], columns, variables, tmp_path)
        request.config.stash[_WATCHED].append(found)
        return found

    return run


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the longest silence of each command that was watched, the longest first."""
    watched = config.stash[_WATCHED]
    watched.sort(key=lambda found: -found.longest.judged)
    if watched:
        terminalreporter.section("the longest silence of each command")
    for one in watched:
        words = [Path(word).name for word in one.words[len(HARNESS) :]]
        terminalreporter.write_line(f"{' '.join(words)}: {one.longest}")

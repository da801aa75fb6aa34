"""Options, exporters and the result stream of the suite of runners."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see harness.cli

import pytest

from harness.export.environments import placed
from harness.suites.exporters import EXPORTERS, add_exporter_option, at_hand, choose_exporters
from harness.suites.results import (
    add_results_option,
    pytest_runtest_makereport,
    record,
    start_recording,
)
from harness.suites.runners.older import OLDER
from harness.suites.runners.scenarios import SCENARIOS
from harness.suites.runners.script import Bench, Scripts, folder_of
from harness.suites.runners.tools import TOOLS
from harness.suites.runners.vocabularies import VOCABULARIES

__all__ = ["pytest_runtest_makereport", "record"]

BenchOf = Callable[[str, str, str], Bench]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("runners")
    add_exporter_option(
        group,
        "executorch, executorch@VERSION or executorch@PATH, whose scripts run; several times "
        "for several (default: every version at hand)",
    )
    add_results_option(group, "results/runners")


def pytest_configure(config: pytest.Config) -> None:
    versions = choose_exporters(config, at_hand)
    options = {"exporter": [*config.stash[EXPORTERS]]}
    start_recording(config, "runners", config.getoption("results"), options, exporters=versions)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scenario" in metafunc.fixturenames:
        exporters = metafunc.config.stash[EXPORTERS]
        rows = [
            (label, scenario, mode)
            for label in exporters
            for scenario in (*SCENARIOS, *VOCABULARIES, *TOOLS, *OLDER)
            for mode in scenario.modes
        ]
        names = [f"{label}-{one.check.name}-{one.fixture}-{mode}" for label, one, mode in rows]
        metafunc.parametrize(("label", "scenario", "mode"), rows, ids=names)


@pytest.fixture(scope="session")
def first_label(pytestconfig: pytest.Config) -> str:
    """Return the name of the first ExecuTorch, whose runner is broken."""
    exporters = pytestconfig.stash[EXPORTERS]
    return next(iter(exporters))


@pytest.fixture(scope="session")
def bench_of(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BenchOf]:
    """Return the bench of an exporter, a model and a mode; only the last bench stays open."""
    root = tmp_path_factory.mktemp("runners")
    scripts: dict[str, Scripts] = {}
    opened: dict[tuple[str, str, str], Bench] = {}

    def get(label: str, model: str, mode: str) -> Bench:
        exporter = pytestconfig.stash[EXPORTERS][label]
        folder = folder_of(root, label)
        if label not in scripts:
            for one in scripts.values():
                one.close()
            scripts.clear()
            scripts[label] = Scripts(placed(exporter.place), folder)
        key = (label, model, mode)
        if key not in opened:
            opened.clear()
            opened[key] = Bench(scripts[label], exporter, model, mode, folder)
        return opened[key]

    yield get
    for one in scripts.values():
        one.close()

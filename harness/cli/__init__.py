"""The one console script. A command's module is imported only when that command is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from harness.cli import output
from harness.errors import HarnessError
from harness.text import printable

COMMANDS = {
    "models": "list the named fixture models",
    "export": "export a fixture model or a checkpoint",
    "inspect": "show methods, delegates, functions, sizes, sharing and metadata",
    "extract": "write the Core ML packages inside an artifact to a folder",
    "combine": "put functions of Core ML packages into one, their weights stored once",
    "diff": "show what changed between two artifacts; exit status 1 when something did",
    "check": "check an artifact, and execute it against the oracle",
    "bisect": "name the first operation that leaves its reference, or show ranges of values",
    "run": "generate text with an artifact",
    "bench": "time load, prefill and decode, and measure memory",
    "gate": "compare two result files; exit status 1 on a regression",
    "report": "draw a table, JUnit XML and an HTML page from a result file",
    "shim": "run a Python command that needs Core ML with our executor in its place",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (0 well, 1 a check failed, 2 bad input, 3 missing).

    A command is a module `harness.cli.NAME` with `add_arguments(parser)` and
    `run(args) -> int`.
    """
    # Threads that spin between two small operations starve each other on a busy machine: decoding
    # was seen 75 times slower. Read when torch is imported, so it is set before any command.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Check, execute and measure Core ML language models exported by ExecuTorch.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    module = None
    for name, description in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        if name == chosen:
            module = importlib.import_module(f"harness.cli.{name}")
            module.add_arguments(command)
    args = parser.parse_args(argv)
    assert module is not None, "argparse refuses a call without a command"
    try:
        with output.told_apart():
            status: int = module.run(args)
        return status
    except HarnessError as error:
        # A name in a hostile file must not reach the terminal as control characters.
        sentence = printable(str(error), keep="\n")
        print(f"harness {args.command}: {sentence}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"harness {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone: nothing is left to say
        output.discard()
        return 0
    except OSError as error:  # of a place that nobody has named, as a folder that has been removed
        print(f"harness {args.command}: {printable(str(error))}", file=sys.stderr)
        return HarnessError.exit_status

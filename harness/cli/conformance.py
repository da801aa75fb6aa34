"""`harness conformance`: the suite on the named models, in a clone and without one."""

from __future__ import annotations

import argparse
from pathlib import Path

import harness

_SUITE = Path(harness.__file__).with_name("suites") / "conformance"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; pytest reads them all."""
    parser.usage = "harness conformance [--fixture F] [--exporter E] [--mode M] [--runtime R] ..."
    parser.epilog = (
        "Each option may be repeated, and pytest's own options are passed on. Results are written "
        "to `results/`, or to the folder of --results."
    )


def run(args: argparse.Namespace) -> int:
    """Run pytest on the suite; return 0 when all passed, 1 on a failure, 2 for a wrong option."""
    import pytest

    status = pytest.main([str(_SUITE), "-p", "no:cacheprovider", *args.words])
    usage = (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
    if status in usage:
        return 2
    return 130 if status == pytest.ExitCode.INTERRUPTED else int(status != pytest.ExitCode.OK)

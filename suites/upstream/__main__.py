"""Run pytest on ExecuTorch's own tests, found in its package or in a checkout."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.shim import is_installed

FILES = ("test_torch_ops.py", "test_coreml_multifunction.py", "test_enumerated_shapes.py")
_TESTS = Path("backends/apple/coreml/test")


def main() -> int:
    """Run pytest and return its exit status, or 2 when the tests or the runtime are not there."""
    parser = argparse.ArgumentParser(prog="harness.suites.upstream", allow_abbrev=False)
    parser.add_argument("--source", type=Path, metavar="DIR", help="a checkout of ExecuTorch")
    parser.add_argument("--file", action="append", metavar="NAME", help="a file of its tests")
    args, rest = parser.parse_known_args()
    try:
        _check_runtime()
        files = test_files(args.source, args.file or FILES)
    except HarnessError as error:
        print(f"suites.upstream: {error}", file=sys.stderr)
        return error.exit_status
    sys.dont_write_bytecode = True  # beside its tests
    settings = str(Path(__file__).with_name("pytest.ini"))
    ours = [
        "-c",
        settings,
        "--rootdir",
        str(files[0].parent),
        "-p",
        "harness.suites.upstream.plugin",
    ]
    return pytest.main([*ours, *map(str, files), *rest])


def test_files(source: Path | None, names: tuple[str, ...] | list[str]) -> list[Path]:
    """Return the files of a checkout's Core ML tests, or of the installed package's.

    Raises HarnessError for a file that is not there.
    """
    roots = [source] if source is not None else _installed()
    found = []
    for name in names:
        paths = [path for root in roots if (path := root / _TESTS / name).is_file()]
        if not paths:
            where = ", ".join(str(root / _TESTS) for root in roots) or "no installed ExecuTorch"
            raise HarnessError(
                f"{name} is not in {where}; name a checkout of ExecuTorch with --source DIR"
            )
        found.append(paths[0])
    return found


def _installed() -> list[Path]:
    spec = importlib.util.find_spec("executorch")
    return [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]


def _check_runtime() -> None:
    if not is_installed() and sys.platform != "darwin":
        raise HarnessError(
            "no Core ML here and no stand-in for it; run it with "
            "`harness shim -- python -m harness.suites.upstream`"
        )


if __name__ == "__main__":
    sys.exit(main())

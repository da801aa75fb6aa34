"""Output files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import HarnessError


@contextmanager
def partial_file(output: Path) -> Iterator[Path]:
    """A file beside `output` to write to; it takes output's name unless the block raises.

    Its name ends in ``.pte`` because ExecuTorch appends that to any other.
    """
    if output.is_dir():
        raise HarnessError(f"cannot write {output}: it is a folder; name a file in it")
    try:
        handle, name = tempfile.mkstemp(
            dir=output.parent, prefix=f".{output.name}.", suffix=".partial.pte"
        )
    except OSError as error:
        raise HarnessError(f"cannot write into {output.parent}: {error.strerror}") from error
    partial = Path(name)
    try:
        os.fchmod(handle, 0o666 & ~_umask())  # mkstemp's 0600 would stay with the finished file
        os.close(handle)
        yield partial
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current

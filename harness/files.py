"""Output files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
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


@contextmanager
def partial_folder(output: Path, mark: str, replace: bool = False) -> Iterator[Path]:
    """A folder beside ``output`` to write to; it takes output's name unless the block raises.

    What stands at ``output`` already is replaced only when it is an empty folder, or when
    ``replace`` is set and it is a folder that holds a file named ``mark``, as every folder of this
    kind does: nothing else of the user's is removed. Raises HarnessError otherwise, and when the
    folder cannot be written.
    """
    output = output.resolve()
    _check_place(output, mark, replace)
    try:
        partial = Path(tempfile.mkdtemp(".partial", f".{output.name}.", output.parent))
    except OSError as error:
        raise HarnessError(f"cannot write into {output.parent}: {error.strerror}") from None
    try:
        partial.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would stay with the finished folder
        yield partial
        _move(partial, output)
    except OSError as error:
        raise HarnessError(f"{output}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_place(output: Path, mark: str, replace: bool) -> None:
    try:
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
        known = (output / mark).is_file()
    except OSError as error:
        raise HarnessError(f"{output}: cannot be looked at ({error.strerror})") from None
    if not known:
        raise HarnessError(f"{output}: exists, and is not a folder of this kind; name another")
    if not replace:
        raise HarnessError(f"{output}: exists; name another, or give --force to replace it")


def _move(partial: Path, output: Path) -> None:
    """Give ``partial`` its name; an older folder of that name is set aside first, then removed."""
    if not output.exists():
        partial.rename(output)
        return
    with tempfile.TemporaryDirectory(".old", f".{output.name}.", output.parent) as aside:
        old = Path(aside) / "old"
        output.rename(old)
        try:
            partial.rename(output)
        except BaseException:
            old.rename(output)
            raise


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current

"""Output files and folders that appear whole or not at all.

Work goes on under a name that begins with a dot and is known before anything of that name exists:
an interrupt at any moment finds what is to be removed. What a killed process leaves has that name.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from harness.errors import HarnessError

_OF_TORCH = "inline_container"  # what writes for torch.save, and says RuntimeError of a full disk
_SYSTEMS_OWN = ".DS_Store"  # what macOS puts into folders that are looked at


@dataclass(frozen=True)
class Kind:
    """A kind of output folder: `mark` is a file that each of them holds, and `others` are
    patterns of what else they may hold, as paths in the folder; `*` stands for slashes too."""

    mark: str
    others: tuple[str, ...]

    def foreign(self, folder: Path) -> str | None:
        """Return the path of a file in a folder that is not of this kind, None without one."""
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            known = any(fnmatchcase(name, pattern) for pattern in (self.mark, *self.others))
            is_folder = path.is_dir() and not path.is_symlink()
            if not (known or is_folder or path.name == _SYSTEMS_OWN):
                return name
        return None


@contextmanager
def partial_pte(output: Path, mark: bytes) -> Iterator[Path]:
    """A file beside `output` to write to; it takes output's name unless the block raises.

    An older file is replaced if it is empty, or a .pte: `mark` stands behind its first 4 bytes.
    Raises HarnessError for any other, which may be what the export is made from, and when the
    folder cannot be written. Its name ends in `.pte`: ExecuTorch appends that to others.
    """
    if output.is_dir():
        raise HarnessError(f"cannot write {output}: it is a folder; name a file in it")
    _check_file(output, mark)
    partial = _beside(output, ".partial.pte")
    try:
        try:
            partial.open("xb").close()
        except OSError as error:
            raise HarnessError(f"cannot write into {output.parent}: {error.strerror}") from error
        with writing(output):
            yield partial
            partial.replace(output)
    finally:
        _remove(partial)


@contextmanager
def partial_folder(output: Path, kind: Kind, replace: bool = False) -> Iterator[Path]:
    """A folder beside `output` to write to; it takes output's name unless the block raises.

    What stands at `output` already is replaced only when it is an empty folder, or when
    `replace` is set and it is a folder of this kind that holds nothing else: nothing of the
    user's own is removed. Raises HarnessError otherwise, and when the folder cannot be written.
    """
    output = output.resolve()
    _check_place(output, kind, replace)
    partial = _beside(output, ".partial")
    try:
        try:
            partial.mkdir()
        except OSError as error:
            raise HarnessError(f"cannot write into {output.parent}: {error.strerror}") from None
        with writing(output):
            yield partial
            _move(partial, output)
    finally:
        _remove(partial)


@contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """A folder among the temporary ones that nobody else may read; it is gone afterwards.

    Raises HarnessError when it cannot be made.
    """
    folder = _beside(Path(tempfile.gettempdir(), prefix), "")
    try:
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise HarnessError(f"cannot write into {folder.parent}: {error.strerror}") from None
        with writing(folder):
            yield folder
    finally:
        _remove(folder)


@contextmanager
def writing(output: Path, advice: str = "") -> Iterator[None]:
    """Raise HarnessError that names `output` when the block, which writes it, cannot."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and _OF_TORCH not in str(error):
            raise
        sentence = f"{output}: cannot be written ({_cause(error)})"
        raise HarnessError(sentence + (advice and f"; {advice}")) from None


def _cause(error: BaseException) -> str:
    """What the system says; shutil and torch.save carry that on in ways of their own."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        _, _, text = error.args[0][0]  # of the first file that could not be copied
        number = re.match(r"\[Errno (\d+)\]", str(text))
        return os.strerror(int(number[1])) if number else str(text)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    context = error.__context__
    return _cause(context) if isinstance(context, OSError) else "torch.save failed: is there room?"


def _beside(output: Path, ending: str) -> Path:
    """A name in the same folder that nothing has."""
    return output.parent / f".{output.name}.{secrets.token_hex(8)}{ending}"


def _check_file(output: Path, mark: bytes) -> None:
    try:
        if not output.exists():
            return
        start = output.open("rb").read(4 + len(mark)) if output.is_file() else None
    except OSError as error:
        raise HarnessError(f"{output}: cannot be looked at ({error.strerror})") from None
    if start is None or (start and start[4:] != mark):
        raise HarnessError(f"{output}: exists, and is no .pte; name another")


def _check_place(output: Path, kind: Kind, replace: bool) -> None:
    try:
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
        known = (output / kind.mark).is_file()
        foreign = kind.foreign(output) if known and replace else None
    except OSError as error:
        raise HarnessError(f"{output}: cannot be looked at ({error.strerror})") from None
    if not known:
        raise HarnessError(f"{output}: exists, and is not a folder of this kind; name another")
    if not replace:
        raise HarnessError(f"{output}: exists; name another, or give --force to replace it")
    if foreign is not None:
        raise HarnessError(
            f"{output}: holds '{foreign}', which is not of this kind and would be lost; move it, "
            "or name another folder"
        )


def _move(partial: Path, output: Path) -> None:
    """Give `partial` its name; an older folder of that name is set aside first, then removed.

    A process that is killed in between leaves the older one under the name that ends in `.old`.
    """
    if not output.exists():
        partial.rename(output)
        return
    old = _beside(output, ".old")
    try:
        output.rename(old)
        partial.rename(output)
    except BaseException:
        if not output.exists():
            old.rename(output)
        raise
    finally:
        if output.exists():
            _remove(old)


def _remove(path: Path) -> None:
    """Remove a file, or a folder, if it is there; an interrupt waits until that is done."""
    try:
        _remove_now(path)
    except KeyboardInterrupt:
        _remove_now(path)
        raise


def _remove_now(path: Path) -> None:
    with suppress(OSError):  # as of a name that no file can have
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_name(path: Path, suffix: str) -> Path:
    """A name beside `path` that no other process will choose."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{suffix}")


def write_whole(path: Path, text: str) -> Path:
    """Write UTF-8 text to `path` at once; raises HarnessError when the file cannot be written."""
    temporary = temporary_name(path, ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        raise HarnessError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path

"""Output files and folders that appear whole or not at all.

The work is done under a name that begins with a dot. The name is chosen before anything has it, so
that an interrupt at any moment finds what to remove. Only a killed process leaves such a name; the
lock that it held is then free, and the next process that writes the same output removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from weakref import finalize

from harness.errors import HarnessError
from harness.text import resolved

_TORCH_WRITER = "inline_container"  # torch's source file, in the messages of its RuntimeErrors
_CACHE = "coreml-llm-harness"
_MACOS_FILE = ".DS_Store"  # macOS puts it into each folder that somebody looks at
_TOKEN_BYTES = 12
_TOKEN = rf"\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}"
PARTIAL = ".partial"


@contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Send to standard error what a user's code prints in the block, its child processes too.

    Standard output holds a command's own text, which may be JSON.
    """
    with redirect_stdout(sys.stderr), ExitStack() as stack:
        with suppress(OSError):  # a descriptor that is closed takes no text
            kept = os.dup(1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            os.dup2(2, 1)
        yield


@dataclass(frozen=True)
class Kind:
    """A kind of output folder: each holds the file `mark`, and may hold what `others` match.

    These are patterns of paths in the folder; `*` matches slashes too.
    """

    mark: str
    others: tuple[str, ...]

    def foreign(self, folder: Path) -> str | None:
        """Return the path of a file in a folder that does not belong to this kind, or None."""
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            known = any(fnmatchcase(name, pattern) for pattern in (self.mark, *self.others))
            if not (known or path.name == _MACOS_FILE or (path.is_dir() and not path.is_symlink())):
                return name
        return None


@contextmanager
def partial_file(output: Path, pte_identifier: bytes = b"") -> Iterator[Path]:
    """Yield an empty file beside `output`; it takes output's name unless the block raises.

    With `pte_identifier`, the bytes after the first 4 of a .pte, an older file is replaced only if
    it is empty or a .pte: another one may be what the export is made from. The file's name then
    ends in `.pte`, because ExecuTorch appends that to other names.

    Raises HarnessError when `output` may not be replaced, and when it cannot be written.
    """
    if output.is_dir():
        raise HarnessError(f"cannot write {output}: it is a folder; name a file in it")
    _check_file(output, pte_identifier)
    partial = _beside(output, f"{PARTIAL}.pte" if pte_identifier else PARTIAL)
    with _temporary(partial, lambda: partial.open("xb").close(), output):
        yield partial
        partial.replace(output)


@contextmanager
def partial_folder(output: Path, kind: Kind, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `output`; it takes output's name unless the block raises.

    An older folder is replaced only when it is empty, or when `replace` is set and the folder is of
    this kind and holds nothing else: no file of the user's own is removed.

    Raises HarnessError when `output` may not be replaced, and when it cannot be written.
    """
    output = resolved(output)
    _check_place(output, kind, replace)
    partial = _beside(output, PARTIAL)
    with _temporary(partial, partial.mkdir, output):
        yield partial
        _move(partial, output)


@contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """Yield a temporary folder that only this user may read; it is removed afterwards.

    Raises HarnessError when it cannot be made.
    """
    output = Path(tempfile.gettempdir(), prefix)
    folder = _beside(output, "")
    with _temporary(folder, lambda: folder.mkdir(mode=0o700), output):
        yield folder


def folder_of(owner: object, prefix: str) -> Path:
    """Return a private folder that is removed with an object, or with this process."""
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder(prefix))
        finalize(owner, stack.pop_all().close)
    return folder


@contextmanager
def _temporary(path: Path, create: Callable[[], None], output: Path) -> Iterator[None]:
    """Create `path` for the block, and remove what is left of it afterwards.

    What killed processes have left of `output` is removed first.
    """
    with ExitStack() as stack:
        stack.callback(remove, path)
        try:
            remove_unfinished(path.parent, output.name)
            stack.callback(os.close, _claim(path, create))
        except OSError as error:
            raise HarnessError(f"cannot write into {path.parent}: {error.strerror}") from error
        except ValueError:
            raise HarnessError(f"cannot write {output}: no file can have this name") from None
        with writing(output):
            yield


def _claim(path: Path, create: Callable[[], None]) -> int:
    """Create `path`; return a descriptor that locks it until it is closed or this process ends.

    A process that takes it for a leftover meanwhile has the lock: then it is created again.
    """
    while True:
        create()
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            lock(descriptor)
            if path.exists():
                return descriptor
            os.close(descriptor)


def lock(descriptor: int) -> None:
    """Lock a file or folder until it is closed or this process ends: it is not a leftover.

    A file system without locks has no leftovers that are removed.
    """
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes have left in a folder, of one output or of all."""
    for path in unfinished(folder, name):
        remove_unlocked(path)


def remove_unlocked(path: Path) -> None:
    """Remove what a killed process has left; what a living one writes is locked, and stays."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
        finally:
            os.close(descriptor)


def unfinished(folder: Path, name: str | None = None) -> list[Path]:
    """Return the unfinished outputs in a folder, those of a file or folder `name` or all."""
    ending = rf"({re.escape(PARTIAL)}(\.pte)?)"
    if name is None:
        return _found(folder, rf"\..+{_TOKEN}{ending}")
    return _found(folder, rf"\.?{re.escape(name)}{_TOKEN}{ending}?")


def _found(folder: Path, pattern: str) -> list[Path]:
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if re.fullmatch(pattern, entry.name)]
    return []


@contextmanager
def writing(output: Path, advice: str = "") -> Iterator[None]:
    """Raise HarnessError that names `output` when the block cannot write it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and _TORCH_WRITER not in str(error):
            raise
        sentence = f"{output}: cannot be written ({_cause(error)})"
        raise HarnessError(sentence + (advice and f"; {advice}")) from None


def _cause(error: BaseException) -> str:
    """Return the system's reason; shutil and torch.save wrap it in ways of their own."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        _, _, text = error.args[0][0]  # the reason for the first file that could not be copied
        number = re.match(r"\[Errno (\d+)\]", str(text))
        return os.strerror(int(number[1])) if number else str(text)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    context = error.__context__
    return _cause(context) if isinstance(context, OSError) else "torch.save failed: is there room?"


def _beside(output: Path, ending: str) -> Path:
    """Return an unused name in the same folder."""
    return output.parent / f".{output.name}.{token()}{ending}"


def token() -> str:
    """Return the part of an unfinished output's name that no other has."""
    return secrets.token_hex(_TOKEN_BYTES)


def _check_file(output: Path, pte_identifier: bytes) -> None:
    """Raise HarnessError unless a file may take the name of `output`."""
    kind = "a .pte" if pte_identifier else "a regular file"
    try:
        if not output.exists():
            return
        start = None
        if output.is_file():
            with output.open("rb") as file:
                start = file.read(4 + len(pte_identifier)) if pte_identifier else b""
    except OSError as error:
        raise HarnessError(f"{output}: cannot be read ({error.strerror})") from None
    if start is None or (start and start[4:] != pte_identifier):
        raise HarnessError(f"{output}: exists, and is not {kind}; name another")


def _check_place(output: Path, kind: Kind, replace: bool) -> None:
    try:
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
        seen, known = output.stat().st_ino, (output / kind.mark).is_file()
        foreign = kind.foreign(output) if known and replace else None
        if output.stat().st_ino != seen:  # another process has just replaced it, or does so
            return _check_place(output, kind, replace)
    except FileNotFoundError:
        return _check_place(output, kind, replace)
    except OSError as error:
        raise HarnessError(f"{output}: cannot be read ({error.strerror})") from None
    if not known:
        raise HarnessError(f"{output}: exists, and is not a folder of this kind; name another")
    if not replace:
        raise HarnessError(f"{output}: exists; name another, or give --force to replace it")
    if foreign is not None:
        raise HarnessError(f"{output}: holds '{foreign}', which would be lost; name another")


def _move(partial: Path, output: Path) -> None:
    """Give `partial` its name; an older folder is renamed first, and removed afterwards.

    A process that is killed in between leaves the older folder under a name that ends in `.old`.
    Raises HarnessError when `partial` was removed before it got its name.
    """
    old = _beside(output, ".old")
    try:
        while True:
            with suppress(FileNotFoundError):  # nothing is there, or nothing any more
                output.rename(old)
            try:
                partial.rename(output)
                break
            except FileNotFoundError:
                raise HarnessError(f"{output}: was removed while it was written") from None
            except OSError:
                if not output.is_dir():  # another process has just put its own there
                    raise
                old = _beside(output, ".old")
    except BaseException:
        if old.exists() and not output.exists():
            old.rename(output)
        raise
    finally:
        if output.exists():
            for each in _found(output.parent, rf"\.{re.escape(output.name)}{_TOKEN}\.old"):
                remove(each)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists; an interrupt waits until that is done."""
    try:
        _remove_now(path)
    except KeyboardInterrupt:
        _remove_now(path)
        raise


def _remove_now(path: Path) -> None:
    with suppress(OSError, ValueError):  # for instance a name that is too long for any file
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def cache_folder(name: str = "") -> Path:
    """Return a folder of this user's cache, made if it is not there.

    The environment variable HARNESS_CACHE names another cache. Raises HarnessError when the folder
    cannot be made.
    """
    import platformdirs

    chosen = os.environ.get("HARNESS_CACHE")
    folder = (Path(chosen).absolute() if chosen else platformdirs.user_cache_path(_CACHE)) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot make the cache folder {folder}: {error.strerror}"
        raise HarnessError(f"{problem}; set HARNESS_CACHE to another") from error
    return folder


@contextmanager
def locked(path: Path, progress: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of a path that is made once; `progress` hears when another process has it."""
    import filelock

    lock = filelock.FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if progress is not None:
            progress(f"waiting for another process that makes {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

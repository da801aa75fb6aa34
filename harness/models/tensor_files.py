"""Maps the tensors of checkpoint files into memory, by name.

There are three kinds of file, recognised by their content: a file of `torch.save`, a safetensors
file, and the JSON index of several safetensors files. A folder means the checkpoint file in it. All
files are untrusted: their code is not executed, and an index may name only files beside itself.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.errors import HarnessError

MAX_INDEX_BYTES = 16 << 20  # the index for 405 billion parameters takes a hundred kilobytes
MAX_SHARDS = 1000
IN_FOLDER = (  # as Hugging Face and Meta name them
    "model.safetensors.index.json",
    "model.safetensors",
    "consolidated.safetensors",
    "consolidated.00.pth",
)


def read_tensors(path: Path) -> dict[Any, Any]:
    """Return the tensors by the file's own names, mapped copy-on-write.

    A `.pth` may hold other values than tensors too. Raises HarnessError for a file that cannot be
    read.
    """
    path = _in_folder(path) if path.is_dir() else path
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise HarnessError(f"cannot read {path}: no such file") from None
    except OSError as error:
        raise HarnessError(f"cannot read {path}: {error.strerror}") from None
    return next(read for begins, read in _KINDS if begins(start))(path)


def is_torch_file(path: Path) -> bool:
    """Return whether a file was written by `torch.save`: a ZIP archive."""
    return zipfile.is_zipfile(path)


def _in_folder(folder: Path) -> Path:
    found = next((folder / name for name in IN_FOLDER if (folder / name).is_file()), None)
    if found is None:
        raise HarnessError(f"{folder}: none of {', '.join(IN_FOLDER)} is in this folder")
    if (folder / "consolidated.01.pth").exists() and found.suffix == ".pth":
        raise HarnessError(
            f"{folder}: its weights are cut into several consolidated.NN.pth; join them into one"
        )
    return found


def _read_torch(path: Path) -> dict[Any, Any]:
    """Read a file of `torch.save`: a dict of tensors, or such a dict under the key `model`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file raises anything, from IndexError to struct.error
        # torch's own message has many lines and advises weights_only=False, so it is not shown
        raise HarnessError(
            f"{path} is neither safetensors nor a dict of tensors that torch.load reads without "
            f"executing code ({type(error).__name__}); write it with safetensors or torch.save"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict):
        raise HarnessError(f"{path} must hold a dict of tensors, not {type(content).__name__}")
    return content


def _read_safetensors(path: Path) -> dict[Any, Any]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # its own error, ValueError, or AttributeError (dtype)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HarnessError(f"{path} is not a safetensors file that loads: {reason}") from error


def _read_index(path: Path) -> dict[Any, Any]:
    """Read all files of an index; it and they must agree on which file holds which tensor."""
    shards: dict[str, set[str]] = defaultdict(set)
    for tensor, name in _weight_map(path).items():
        shards[name].add(tensor)
    if len(shards) > MAX_SHARDS:
        raise HarnessError(f"{path}: names {len(shards)} files; at most {MAX_SHARDS} are allowed")
    if missing := [name for name in shards if not (path.parent / name).is_file()]:
        raise HarnessError(f"{path}: files are missing beside it: {', '.join(missing[:8])}")
    tensors: dict[Any, Any] = {}
    for name, promised in shards.items():
        held = _read_safetensors(path.parent / name)
        if different := sorted(held.keys() ^ promised):
            raise HarnessError(
                f"{path}: it and {name} disagree about {', '.join(different[:8])}"
                f"{' and more' if len(different) > 8 else ''}"
            )
        tensors |= held
    return tensors


def _weight_map(path: Path) -> dict[str, str]:
    """Return the index's map of tensor to file name; each file lies beside the index."""
    with path.open("rb") as file:
        text = file.read(MAX_INDEX_BYTES + 1)
    if len(text) > MAX_INDEX_BYTES:
        raise HarnessError(f"{path} is larger than 16 MiB: this is not the index of a checkpoint")
    try:
        names = json.loads(text)["weight_map"]
        pairs = dict(names.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HarnessError(
            f'{path} is not an index of a checkpoint: {{"weight_map": {{tensor: file}}}} is needed'
        ) from None
    for name in pairs.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise HarnessError(
                f"{path}: {name!r} is not allowed as a file: an index names .safetensors files "
                "beside itself"
            )
    return pairs


def _begins_as_safetensors(start: bytes) -> bool:
    return len(start) == 9 and start[8:] == b"{"  # a length of eight bytes, then JSON


_KINDS: tuple[tuple[Callable[[bytes], bool], Callable[[Path], dict[Any, Any]]], ...] = (
    (lambda start: start.lstrip()[:1] == b"{", _read_index),
    (_begins_as_safetensors, _read_safetensors),
    (lambda start: True, _read_torch),
)

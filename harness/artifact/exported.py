"""An exported folder: packages, and `program.json`, which composes methods of their functions.

Layout::

    program.json           methods, and the constants that describe how to call them
    constants.bin          the numbers of constant arrays, one after another, little-endian
    PACKAGE/metadata.json  names in call order, as beside a delegate's package
    PACKAGE/model.mlpackage

A method is a chain of calls. Each call runs one function of a package; values pass between calls by
name. This module reads such a folder into the same `Pte` as a program whose delegates refer to the
packages by name, so everything that works on a .pte works on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifact.delegate import BACKEND, PACKAGE, REFERENCE_MAGIC, Bundle
from harness.artifact.files import (
    MAX_AXES,
    MAX_AXIS_SIZE,
    MAX_PROGRAM_BYTES,
    FolderFiles,
    SubFiles,
    cut,
)
from harness.artifact.pte import DelegateCall, DelegateData, Pte, PteMethod, TensorValue, Value
from harness.artifact.pte_reader import SCALAR_TYPES
from harness.errors import ArtifactError
from harness.files import Kind
from harness.text import parse_json

PROGRAM, CONSTANTS = "program.json", "constants.bin"
EXPORT = Kind(PROGRAM, (CONSTANTS, "*/metadata.json", "*/model.mlpackage/*"))
FORMAT, VERSION = "harness-export", 1
_DTYPES = frozenset(SCALAR_TYPES.values()) - {"bfloat16"}


class FolderBundle(Bundle):
    """A package of an exported folder and its metadata, with the interface of a payload."""

    def __init__(self, files: Mapping[str, memoryview], what: str) -> None:
        super().__init__(memoryview(b""), what)
        self.files = files


def is_exported(folder: Path) -> bool:
    """Return whether a path is an exported folder; False when it cannot be accessed."""
    try:
        return (folder / PROGRAM).is_file()
    except OSError:
        return False


def read_exported(folder: Path) -> tuple[Pte, dict[str, Bundle]]:
    """Return the program of an exported folder, and its packages by name.

    Raises ArtifactError, naming the file and the key at fault, when the program is not valid.
    """
    files = FolderFiles(folder)
    content = _content(files, folder)
    reader = _ProgramEntries(folder, files)
    methods = {name: reader.method(name, fields) for name, fields in content["methods"].items()}
    constants = {name: reader.constant(name, value) for name, value in content["constants"].items()}
    if both := sorted(set(methods) & set(constants)):
        raise ArtifactError(f"{folder / PROGRAM}: '{both[0]}' is a method and a constant")
    size = sum(len(files[name]) for name in files)
    packages = {name: memoryview(b"") for name in reader.bundles}
    pte = Pte(methods | constants, packages, size, unused=_unused(files, packages))
    return pte, reader.bundles


def _unused(files: FolderFiles, called: Collection[str]) -> dict[str, int]:
    """Return the bytes of the packages in the folder that no method calls."""
    unused: dict[str, int] = {}
    for name in files:
        package, _, inner = name.partition(f"/{PACKAGE}/")
        if inner and package not in called:
            what = f"package '{package}'"
            unused[what] = unused.get(what, 0) + len(files[name])
    return unused


def _content(files: FolderFiles, folder: Path) -> dict[str, Any]:
    where = folder / PROGRAM
    data = files[PROGRAM]
    if len(data) > MAX_PROGRAM_BYTES:
        raise ArtifactError(f"{where}: {len(data)} bytes; {MAX_PROGRAM_BYTES} are allowed")
    try:
        content: Any = parse_json(data)
    except ValueError as error:
        raise ArtifactError(f"{where}: not JSON ({error})") from None
    match content:
        case {
            "format": "harness-export",
            "version": 1,
            "methods": {**methods},
            "constants": {},
        } if methods:
            return dict(content)
        case {"format": "harness-export", "version": int(version)} if version != VERSION:
            raise ArtifactError(f"{where}: version {version}; version {VERSION} is known")
    raise ArtifactError(
        f"{where}: needs 'format' {FORMAT!r}, 'version' {VERSION}, a non-empty 'methods' (object) "
        "and 'constants' (object); export again"
    )


class _ProgramEntries:
    """Reads the entries of a `program.json` and collects the packages that they name."""

    def __init__(self, folder: Path, files: FolderFiles) -> None:
        self._folder = folder
        self._files = files
        self.bundles: dict[str, Bundle] = {}

    def method(self, name: str, fields: Any) -> PteMethod:
        where = f"{self._folder / PROGRAM}, method '{name}'"
        match fields:
            case {
                "values": {**values},
                "inputs": list(inputs),
                "outputs": list(outputs),
                "calls": [_, *_] as calls,
            }:
                tensors = {str(v): _tensor(str(v), fact, where) for v, fact in values.items()}
            case _:
                raise ArtifactError(
                    f"{where}: needs 'values' (object), 'inputs', 'outputs' and 'calls' (lists, "
                    "the last one not empty)"
                )
        delegates = [self._delegate(call, where) for call in calls]
        arguments = [self._arguments(delegate, name, where) for delegate in delegates]
        numbers = {value: number for number, value in enumerate(tensors)}
        return PteMethod(
            name,
            tuple(tensors.values()),
            _numbers(inputs, numbers, where),
            _numbers(outputs, numbers, where),
            tuple(DelegateCall(i, _numbers(a, numbers, where)) for i, a in enumerate(arguments)),
            tuple(DelegateData(BACKEND, _reference(d), ()) for d in delegates),
        )

    def constant(self, name: str, value: Any) -> PteMethod:
        where = f"{self._folder / PROGRAM}, constant '{name}'"
        made: Value
        match value:
            case bool() | int() | float() | str():
                made = value
            case {"dtype": dtype, "shape": shape, "offset": int(offset)}:
                tensor = _tensor(name, [dtype, shape], where)
                file = self._files.get(CONSTANTS, memoryview(b""))
                size = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
                made = TensorValue(tensor.dtype, tensor.shape, cut(file, offset, size, where))
            case _:
                raise ArtifactError(f"{where}: not a number, a text or an array")
        return PteMethod(name, (made,), (), (0,), (), ())

    def _delegate(self, call: Any, where: str) -> tuple[str, str | None]:
        """Return a call's package and function, and open the package."""
        match call:
            case {"package": str(package), "function": None | str()}:
                what = f"{self._folder}, package '{package}'"
                files = SubFiles(self._files, package)
                if package not in self.bundles and not len(files):
                    raise ArtifactError(f"{where}: calls package '{package}', which does not exist")
                self.bundles.setdefault(package, FolderBundle(files, what))
                return package, call["function"]
        raise ArtifactError(
            f"{where}: a call needs 'package' (text) and 'function' (text, or null): {call!r:.80}"
        )

    def _arguments(self, call: tuple[str, str | None], method: str, where: str) -> list[str]:
        names = self.bundles[call[0]].metadata.method(method, where)
        return [*names.input_names, *names.output_names]


def _reference(call: tuple[str, str | None]) -> memoryview:
    content = {"version": 1, "key": call[0], "functionName": call[1]}
    return memoryview(REFERENCE_MAGIC + json.dumps(content).encode())


def _numbers(names: list[Any], numbers: dict[str, int], where: str) -> tuple[int, ...]:
    for name in names:
        if not isinstance(name, str) or name not in numbers:
            raise ArtifactError(f"{where}: {name!r:.80} is not one of its values")
    return tuple(numbers[name] for name in names)


def _tensor(name: str, fact: Any, where: str) -> TensorValue:
    match fact:
        case [str(dtype), list(shape)] if dtype in _DTYPES and len(shape) <= MAX_AXES:
            if all(type(size) is int and 0 <= size <= MAX_AXIS_SIZE for size in shape):
                return TensorValue(dtype, tuple(shape), None)
    raise ArtifactError(f"{where}: '{name}' is {fact!r:.80}, not a dtype and a shape")

"""Reads and writes golden files.

A golden file is safetensors or npz; a tensor's name in it is

    METHOD/SEQUENCE.STEP/in/INPUT        what the call is given
    METHOD/SEQUENCE.STEP/out/OUTPUT      what it must give
    METHOD/SEQUENCE.STEP/or/OUTPUT       what is as right, where constants may be rounded
    METHOD/SEQUENCE.STEP/rounding/OUTPUT what the artifact's own precision costs, relative

INPUT and OUTPUT are names, or positions from 0. The steps of a sequence are called one after the
other, and states go on from step to step; each sequence begins with states of zeros. Only `in` and
`out` are needed: without `rounding`, the cost is measured on the artifact (see `checks.outputs`).
A `rounding` is one number from 0 to `MAX_ROUNDING`. An `or` is near its `out`: see `_check_spread`.
"""

from __future__ import annotations

import math
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from harness.artifact import Artifact
from harness.errors import HarnessError
from harness.files import partial_file
from harness.generate.interface import signature
from harness.golden import Call, Expected, Golden, check_output, dtype_name
from harness.mil.types import allowed_shapes, check_shapes
from harness.pte import Specs, TensorSpec
from harness.text import read_file, require_regular, unreadable

MAX_FILE_BYTES = 1 << 32  # of the tensors in a golden file; a compressed npz may claim any size
MAX_TENSORS = 100_000
MAX_ROUNDING = 0.1  # a larger cost of precision would let any output pass
_MAX_SPREAD = 2  # times what precision costs; with folded weights, a sound one is 1.5 times it
_MIN_SPREAD = 2 * 2.0**-10  # of the largest value: two steps of fp16


def _check_spread(expected: Expected, where: str) -> None:
    """Raise HarnessError when another value is farther away than rounded constants can move it.

    The check allows twice this distance, so a file with another `or` would let any output pass.
    """
    shapes = [list(value.shape) for value in expected.values]
    if shapes[-1] != shapes[0]:
        raise HarnessError(f"{where} has shape {shapes[-1]}, and 'out' has {shapes[0]}")
    cost = expected.rounding
    allowed = MAX_ROUNDING if cost is None else max(_MAX_SPREAD * cost, _MIN_SPREAD)
    if expected.spread > allowed:
        raise HarnessError(
            f"{where} is off by {expected.spread:.4g} of the largest value of 'out'; "
            f"{allowed:.4g} is allowed: it must differ by the rounding of constants only"
        )


def _check_input(value: torch.Tensor, spec: TensorSpec, where: str) -> None:
    is_float = spec.dtype.startswith("float")
    if value.is_complex() or value.is_floating_point() != is_float:
        raise HarnessError(f"{where} is {dtype_name(value)}; the artifact takes {spec.dtype}")
    if not spec.fits(value.shape):
        raise HarnessError(
            f"{where} has shape {list(value.shape)}; the artifact takes {list(spec.shape)}"
        )
    if value.isnan().any():
        raise HarnessError(f"{where} holds NaN")


def write_golden(path: str | Path, golden: Golden) -> None:
    """Write a golden file, safetensors or npz by the name's ending.

    Inputs and outputs are named by position: names of a .pte's values change with the exporter.
    """
    tensors: dict[str, torch.Tensor] = {}
    for method, sequences in golden.items():
        for sequence, calls in sequences.items():
            for step, call in enumerate(calls):
                prefix = f"{method}/{sequence}.{step}"
                tensors |= {f"{prefix}/in/{i}": t for i, t in enumerate(call.inputs)}
                for index, expected in call.expected.items():
                    first, *others = expected.values
                    tensors[f"{prefix}/out/{index}"] = first
                    if others:
                        tensors[f"{prefix}/or/{index}"] = others[-1]
                        _check_spread(expected, f"{path}: {prefix}/or/{index}")
                    if expected.rounding is not None:
                        name = f"{prefix}/rounding/{index}"
                        tensors[name] = torch.tensor(expected.rounding, dtype=torch.float64)
                        _rounding(tensors[name], f"{path}: {name}")
    path = Path(path)
    check_name(path)
    _WRITERS[path.suffix](
        path, {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    )


def check_name(path: Path) -> None:
    """Raise HarnessError unless a file's name says how to write it."""
    if path.suffix not in _WRITERS:
        raise HarnessError(f"{path}: a golden file ends in {' or '.join(_WRITERS)}")


def _write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    with partial_file(path) as partial:
        partial.write_bytes(save(tensors))


def _write_npz(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with partial_file(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: t.numpy() for name, t in tensors.items()})


_WRITERS = {".safetensors": _write_safetensors, ".npz": _write_npz}


def read_golden(path: Path, artifact: Artifact) -> Golden:
    """Read a golden file for an artifact.

    Raises HarnessError, naming the file, for one that cannot be read, and for methods, inputs or
    outputs that the artifact does not have.
    """
    tensors = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    if len(tensors) > MAX_TENSORS:
        raise HarnessError(f"{path} holds {len(tensors)} tensors; {MAX_TENSORS} are allowed")
    parts: dict[str, dict[tuple[str, int], dict[str, dict[str, torch.Tensor]]]] = {}
    for name, tensor in tensors.items():
        method, call, kind, which = _parsed(name, path)
        calls = parts.setdefault(method, {})
        calls.setdefault(call, defaultdict(dict))[kind][which] = tensor
    golden: Golden = {}
    for method, calls in parts.items():
        if method not in artifact.methods:
            names = ", ".join(artifact.methods)
            raise HarnessError(f"{path}: method '{method}' is not one of the artifact's: {names}")
        specs = signature(artifact, method)
        allowed = allowed_shapes(artifact.package, method) if artifact.package else {}
        sequences: dict[str, list[Call]] = defaultdict(list)
        for (sequence, step), kinds in sorted(calls.items()):
            where = f"{path}, {method}/{sequence}.{step}"
            made = _call(kinds, *specs, where)
            pairs = zip(specs[0], made.inputs, strict=True)
            check_shapes(allowed, {spec.name: tensor.shape for spec, tensor in pairs}, where)
            sequences[sequence].append(made)
        golden[method] = {name: tuple(steps) for name, steps in sequences.items()}
    if not golden:
        raise HarnessError(f"{path} holds no tensor; `harness golden` writes such a file")
    return golden


def _parsed(name: str, path: Path) -> tuple[str, tuple[str, int], str, str]:
    match name.split("/", 3):
        case [method, call, ("in" | "out" | "or" | "rounding") as kind, which]:
            sequence, _, step = call.partition(".")
            if step.isdecimal() or not step:
                return method, (sequence, int(step or 0)), kind, which
    raise HarnessError(
        f"{path}: its tensor '{name}' is not named METHOD/SEQUENCE.STEP/in/INPUT or "
        "METHOD/SEQUENCE.STEP/out/OUTPUT"
    )


def _call(
    kinds: Mapping[str, Mapping[str, torch.Tensor]], in_specs: Specs, out_specs: Specs, where: str
) -> Call:
    inputs = _by_position(kinds.get("in", {}), in_specs, f"{where}: input")
    for i, spec in enumerate(in_specs):
        if i not in inputs:
            raise HarnessError(f"{where}: input '{spec.name}' is missing")
        _check_input(inputs[i], spec, f"{where}: input '{spec.name}'")
    found = {
        kind: _by_position(kinds.get(kind, {}), out_specs, f"{where}: output")
        for kind in ("out", "or", "rounding")
    }
    if not found["out"]:
        raise HarnessError(f"{where}: holds no output to compare with")
    expected = {}
    for index, value in found["out"].items():
        values = (value, found["or"][index]) if index in found["or"] else (value,)
        spec = out_specs[index]
        for kind, one in zip(("out", "or"), values, strict=False):
            check_output(one, spec, f"{where}/{kind}/{index}: output '{spec.name}'")
        rounding = found["rounding"].get(index)
        cost = None if rounding is None else _rounding(rounding, f"{where}/rounding/{index}")
        expected[index] = Expected(values, cost)
        _check_spread(expected[index], f"{where}/or/{index}")
    return Call(tuple(inputs[i] for i in range(len(in_specs))), expected)


def _rounding(value: torch.Tensor, where: str) -> float:
    if value.numel() != 1 or value.is_complex():
        raise HarnessError(f"{where} must be one real number")
    rounding = float(value)
    if not 0 <= rounding <= MAX_ROUNDING:
        raise HarnessError(f"{where} is {rounding:g}; a number from 0 to {MAX_ROUNDING} is needed")
    return rounding


def _by_position(
    tensors: Mapping[str, torch.Tensor], specs: Sequence[TensorSpec], where: str
) -> dict[int, torch.Tensor]:
    names = {spec.name: index for index, spec in enumerate(specs)}
    positions = {str(index): index for index in range(len(specs))}
    for name in tensors:
        if name not in names and name not in positions:
            raise HarnessError(f"{where} '{name}' is not one of {', '.join(names) or 'none'}")
    return {names.get(name, positions.get(name, 0)): t for name, t in tensors.items()}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(read_file(path, MAX_FILE_BYTES, "a golden file"))
    except (SafetensorError, ValueError, KeyError) as error:
        raise HarnessError(f"{path} is neither safetensors nor an .npz ({error})") from None


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    require_regular(path)
    try:
        with zipfile.ZipFile(path) as file:
            claimed = sum(member.file_size for member in file.infolist())
            if claimed > MAX_FILE_BYTES:
                raise HarnessError(f"{path}: its arrays have more than {MAX_FILE_BYTES} bytes")
            for member in file.infolist():
                with file.open(member) as stream:
                    if _claimed_bytes(stream) > member.file_size:
                        raise ValueError(f"'{member.filename}' claims more values than it has")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _plain(arrays[name], f"{path}, {name}") for name in arrays.files}
    except OSError as error:
        raise unreadable(path, error) from None
    except HarnessError:
        raise
    except Exception as error:  # a damaged file raises anything, from zlib.error to TokenError
        if "allow_pickle" in str(error):
            raise HarnessError(
                f"{path} holds a pickled object, which is never read: store plain arrays of numbers"
            ) from None
        raise HarnessError(f"{path} is not an .npz of plain arrays ({error})") from None


def _claimed_bytes(stream: IO[bytes]) -> int:
    """Return how many bytes of values the header of an array names, which are allocated for it."""
    of_numpy: Any = np.lib.format  # not typed before numpy 2.4
    first = of_numpy.read_magic(stream) == (1, 0)
    read = of_numpy.read_array_header_1_0 if first else of_numpy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return 0 if dtype.hasobject else math.prod(shape) * int(dtype.itemsize)


def _plain(array: np.ndarray[Any, Any], where: str) -> torch.Tensor:
    if array.dtype.kind in "US":
        raise HarnessError(f"{where} is an array of text; an array of numbers is needed")
    return torch.from_numpy(array.copy())

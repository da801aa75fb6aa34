"""Reads a model's weights from Meta's or Hugging Face's files and checks them against a config.

A checkpoint without an output layer has tied embeddings: `output.weight` becomes the very tensor
of `tok_embeddings.weight`. ExecuTorch's static exporter does not support tying: it prints the
missing key and goes on with an output layer on the meta device, which cannot be lowered.
:mod:`harness.export._executorch_child` therefore fills the layer in the exporter's own model.

Hugging Face rotates the first half of a head's columns against the second half. Meta rotates
neighbouring columns. The two therefore order the rows of queries and keys differently. This module
copies these rows into Meta's order; it copies no other weight.

There are three kinds of file, recognised by their content: a file of `torch.save`, a safetensors
file, and the JSON index of several safetensors files. A folder means the checkpoint file in it. All
files are untrusted: their code is not executed, and an index may name only files beside itself.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.errors import HarnessError
from harness.models import ModelConfig, Quantization, Scheme
from harness.models.quantize import DTYPES
from harness.text import PARAMS_NAMES, parse_json, read_file, require_regular, unreadable

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_LISTED = 8
MAX_INDEX_BYTES = 16 << 20  # the index for 405 billion parameters takes a hundred kilobytes
MAX_SHARDS = 1000
IN_FOLDER = (  # as Hugging Face and Meta name them
    "model.safetensors.index.json",
    "model.safetensors",
    "consolidated.safetensors",
    "consolidated.00.pth",
)


@dataclass(frozen=True)
class _Layout:
    """How a family of checkpoints names its tensors and orders the rows that RoPE rotates."""

    names: Callable[[ModelConfig], dict[str, str]]  # Meta's name of a tensor -> the family's
    unused: str  # a pattern of tensors that are computed from the config instead
    interleaved: bool


_META = _Layout(
    names=lambda config: {name: name for name in config.weight_shapes},
    unused=r"rope\.freqs",
    interleaved=True,
)
_HUGGING_FACE = _Layout(
    names=lambda config: config.hugging_face_names,
    unused=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    interleaved=False,
)


def load_checkpoint(
    path: str | Path, config: ModelConfig, quantization: Quantization | None = None
) -> dict[str, torch.Tensor]:
    """Return the weights by Meta name, memory-mapped, in the dtype of the file.

    `path` is a file written by `torch.save`, a safetensors file, the index of several, or a folder
    that holds one of these. No code in the file is executed. With a `quantization`, the values are
    read too: a value that an artifact with this quantization cannot hold is an error. Raises
    HarnessError that lists the missing, unexpected and misshapen tensors.
    """
    found = read_tensors(Path(path))
    layout = _layout_of(found)
    tensors = {k: v for k, v in found.items() if not re.fullmatch(layout.unused, str(k))}
    names = layout.names(config)
    shapes = {names[meta]: shape for meta, shape in config.weight_shapes.items()}
    problems = _tie(tensors, names, config) + _problems(tensors, shapes)
    if problems:
        raise HarnessError(f"{path} does not fit its params: {_listed(problems)}")
    if quantization is not None:
        dtype, schemes = quantization.dtype, quantization.schemes(config)
        by_name = {names[meta]: scheme for meta, scheme in schemes.items()}
        if bad := list(_beyond({name: tensors[name] for name in shapes}, by_name, dtype)):
            raise HarnessError(f"{path} cannot be exported in {dtype}: {_listed(bad)}")
    weights = {meta: tensors[name] for meta, name in names.items()}
    return weights if layout.interleaved else _interleaved(weights, config)


def checkpoint_names(path: str | Path, config: ModelConfig) -> dict[str, str]:
    """Return the name that a checkpoint gives to each tensor, by Meta name."""
    return _layout_of(read_tensors(Path(path))).names(config)


def _layout_of(names: Iterable[Any]) -> _Layout:
    """Return the layout of most names; a stray name of the other layout is reported later."""
    prefixed = [str(name).startswith(("model.", "lm_head.")) for name in names]
    return _HUGGING_FACE if 2 * sum(prefixed) > len(prefixed) else _META


def is_tied(weights: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the output layer is the embedding table itself."""
    return weights["output.weight"] is weights["tok_embeddings.weight"]


def _tie(tensors: dict[Any, Any], names: Mapping[str, str], config: ModelConfig) -> list[str]:
    """Make a tied output layer the embedding tensor; return the problems that forbid it."""
    embedding, output = names["tok_embeddings.weight"], names["output.weight"]
    if config.tied is False or embedding not in tensors:
        return []
    if output not in tensors:
        tensors[output] = tensors[embedding]
    elif config.tied and not (_misfit(tensors[output]) or _misfit(tensors[embedding])):
        if not _equal(tensors[output], tensors[embedding]):
            return [f"{output} differs from {embedding}, although tie_word_embeddings is true"]
        tensors[output] = tensors[embedding]
    return []


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _misfit(value: Any) -> str | None:
    """Return why a value cannot be a weight, None for a dense tensor of floating-point numbers."""
    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__}, not a floating-point tensor"
    if value.is_nested or value.layout is not torch.strided:
        found = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        return f"{found}, not a dense tensor; save its `to_dense()`"
    if value.device.type != "cpu":
        return f"on the device {value.device}, without values"
    if value.dtype not in FLOAT_DTYPES:
        return f"{value.dtype}, not a floating-point tensor"
    if value.nbytes > value.untyped_storage().nbytes():
        return "a view that repeats the values of a smaller one; save a contiguous copy of it"
    return None


def _listed(problems: list[str]) -> str:
    shown = "; ".join(problems[:MAX_LISTED])
    more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
    return shown + more


def _problems(tensors: Mapping[Any, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    missing = [f"{name} is missing" for name in shapes if name not in tensors]
    extra = [f"{name!r:.200} is not expected" for name in tensors if name not in shapes]
    wrong = []
    for name, shape in shapes.items():
        if (value := tensors.get(name)) is None:
            continue
        if problem := _misfit(value):
            wrong.append(f"{name} is {problem}")
        elif tuple(value.shape) != shape:
            wrong.append(f"{name} has shape {list(value.shape)}, not {list(shape)}")
    return missing + extra + wrong


def _interleaved(weights: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """Put the rows that RoPE rotates into Meta's order: halves of a head become pairs."""
    rotated = config.rotated_weights
    return {
        name: pairs_of_halves(weight, config.head_dim) if name in rotated else weight
        for name, weight in weights.items()
    }


def pairs_of_halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return a weight with its rows, halves of each head in Hugging Face's order, in Meta's."""
    halves = weight.reshape(-1, 2, head_dim // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def halves_of_pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return a weight with its rows, pairs in Meta's order, in Hugging Face's."""
    pairs = weight.reshape(-1, head_dim // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _beyond(
    weights: Mapping[str, torch.Tensor], schemes: Mapping[str, Scheme], dtype: str
) -> Iterator[str]:
    """Yield a sentence for each weight that holds NaN or infinity or becomes infinite in `dtype`.

    `schemes` has the names of `weights`. Each weight is read once and not copied.
    """
    largest = torch.finfo(DTYPES[dtype]).max
    for name, weight in weights.items():
        low, high = ends = [float(end) for end in weight.aminmax()]  # NaN if the weight has one
        if not (math.isfinite(low) and math.isfinite(high)):
            yield f"{name} holds {'NaN' if math.isnan(low) else 'an infinity'}"
            continue
        low, high = _cast(low, dtype), _cast(high, dtype)
        lowest = _cast(_lowest(low, high, schemes.get(name)), dtype)
        if not (math.isfinite(lowest) and math.isfinite(high)):
            most = max(map(abs, ends))
            yield f"{name} reaches {most:.6g}, too much for {dtype}, which ends at {largest:.6g}"


def _cast(value: float, dtype: str) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(DTYPES[dtype]))


def _lowest(low: float, high: float, scheme: Scheme) -> float:
    """Return the value that quantization may make of the lowest one.

    4-bit integers reach down to -8 scales, and a scale is 1/7.5 of the largest magnitude.
    """
    if scheme is None:
        return low
    bits, _ = scheme
    return low * 2**bits / (2**bits - 1) if -low >= high else low


def read_tensors(path: Path) -> dict[Any, Any]:
    """Return the tensors by the file's own names, mapped copy-on-write.

    A `.pth` may hold other values than tensors too. Raises HarnessError for a file that cannot be
    read.
    """
    path = _in_folder(path) if path.is_dir() else path
    require_regular(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise unreadable(path, error) from None
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
    _refuse_lies(path)
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


def _refuse_lies(path: Path) -> None:
    """Raise HarnessError for an archive whose entries claim more bytes than it has.

    torch allocates what an entry claims before it reads it. `torch.save` compresses nothing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # no archive, or one so damaged that torch refuses it
        return
    if claimed > (size := path.stat().st_size):
        raise HarnessError(
            f"{path}: its entries claim {claimed:,} bytes, and the file has {size:,}: it is "
            "damaged, or another program compressed it; write it with torch.save"
        )


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
    if path.name in PARAMS_NAMES:
        raise HarnessError(f"{path} holds no weights: give the folder, or the weights' file")
    text = read_file(path, MAX_INDEX_BYTES, "the index of a checkpoint")
    try:
        names = parse_json(text)["weight_map"]
        pairs = dict(names.items())
    except (ValueError, KeyError, TypeError, AttributeError):
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

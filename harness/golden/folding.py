"""The constants that a converter computes: weights that have taken the place of parameters.

A weight that is no parameter of the eager module may have been folded from several. It has replaced
a parameter if the artifact lacks that one and nothing explains the weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.artifact import Artifact
from harness.golden.weights import (
    ALIKE,
    Key,
    Match,
    Parameters,
    distinct,
    functions_within,
    has_values,
    layouts,
    most_alike,
    undelegated,
)

_ROUNDING = 2.0**-10  # of the largest value: a weight and its parameter in fp16
_CORRELATED = 0.5  # a weight that a pass has added to a parameter, as of a LoRA
_SAME_LINE = 0.9  # a row that a pass has scaled and shifted, as of a batch norm
_SHORT = 3  # values in a row; any two shorter rows are in line
# These give their argument's values, perhaps in another order or dtype.
_COPIES = ("aten.clone", "aten._to_copy", "aten.contiguous", "aten.cat", "aten.stack")

_Relations = dict[tuple[str, Key], str]
"""By a weight's place and a parameter: how the weight may have been made of it."""


def replaced(
    artifact: Artifact,
    found: Sequence[Match],
    parameters: Parameters,
    buffers: set[Key],
    computed: set[Key],
) -> Iterator[tuple[Match, str]]:
    """Yield the weights that have taken the place of parameters, each with a sentence about it.

    A method lacks these parameters, and has at least as many weights of their size that cannot be
    made of a parameter. With fewer weights, a pass may have folded several parameters into one, as
    it does with a bias and a batch norm's statistics. The artifact then lacks more parameters than
    it has weights made of them; if not, a weight that only resembles its parameter is another one.
    Of the `computed` parameters, the module itself makes any constant.
    """
    digests = distinct(parameters)
    for method in artifact.methods:
        own = [
            match for match in found if match.where.startswith(functions_within(artifact, method))
        ]
        of_method = {key: t for key, t in parameters.items() if key[0] == method}
        known = {digests.get(match.parameter) for match in own if match.parameter}
        for constant in undelegated(artifact, method):
            best = most_alike(constant, of_method, is_half=False)
            known |= {digests.get(best[0])} if best else set()
        missing = {digests[k]: k for k in of_method if digests.get(k, None) not in known | {None}}
        lost = list(missing.values())
        sizes = {parameters[key].numel() for key in lost}
        unknown = [
            (match, match.weight)
            for match in own
            if match.weight is not None and match.count in sizes and has_values(match.weight)
        ]
        relations = {
            (match.where, key): relation
            for match, weight in unknown
            for key, parameter in of_method.items()
            if parameter.numel() > match.count or (key in lost and parameter.numel() == match.count)
            if (relation := _relation(weight, parameter))
        }
        matches = [match for match, _ in unknown]
        yield from _resembling(matches, relations, parameters, lost, buffers | computed)
        yield from _strange(matches, relations, parameters, lost, buffers, computed)


def _resembling(
    unknown: Sequence[Match],
    relations: _Relations,
    parameters: Parameters,
    lost: Sequence[Key],
    exempt: set[Key],
) -> Iterator[tuple[Match, str]]:
    """Yield weights like a parameter that nothing can have been added to: no other is lost."""
    if len({where for where, key in relations if key in lost}) < len(lost):
        return
    for match in unknown:
        mine = {key: how for (where, key), how in relations.items() if where == match.where}
        key = next((key for key in mine if parameters[key].numel() == match.count), None)
        if key is not None and not exempt.intersection(mine) and "exact" not in mine.values():
            yield (
                match,
                f"is not the reference's '{key[1]}', which it resembles, and the artifact lacks no "
                "other tensor that a pass may have added to it",
            )


def _strange(
    unknown: Sequence[Match],
    relations: _Relations,
    parameters: Parameters,
    lost: Sequence[Key],
    buffers: set[Key],
    computed: set[Key],
) -> Iterator[tuple[Match, str]]:
    """Yield weights that are like no parameter, where as many of their size are lost."""
    for size in sorted({parameters[key].numel() for key in lost}):
        of_size = [key for key in lost if parameters[key].numel() == size]
        related = {(w, k) for w, k in relations if k in of_size or parameters[k].numel() > size}
        places = {where for where, _ in related}
        strange = [match for match in unknown if match.count == size and match.where not in places]
        unmade = [key for key in of_size if key not in {key for _, key in related}]
        plain = [f"'{key[1]}'" for key in unmade if key not in computed]
        if len(unmade) <= len(strange) and plain and not buffers.intersection(unmade):
            for match in strange:
                yield (
                    match,
                    "resembles no tensor of the reference, and the artifact has no weight like the "
                    f"reference's {', '.join(plain)}, of the same size",
                )


def _relation(weight: torch.Tensor, parameter: torch.Tensor) -> str | None:
    """Return how a pass may have made a weight of a parameter: alone ("exact"), or with others.

    Alone, it takes a part, changes the order of the values, or scales and shifts all values or
    those of each row or column. With others ("loose"), it adds to the values, too.
    """
    if parameter.numel() > weight.numel():
        flat = weight.half().flatten()
        if parameter.numel() % len(flat):
            return None
        parts = [t.half().reshape(-1, len(flat)) for t in layouts(parameter)]
        alike = any(float((part == flat).float().mean(1).max()) > ALIKE for part in parts)
        return "exact" if alike else None
    if torch.equal(weight.half().flatten().sort()[0], parameter.half().flatten().sort()[0]):
        return "exact"
    found = None
    for layout in layouts(parameter):
        want = layout.reshape(weight.shape)
        pairs = [(weight.reshape(1, -1), want.reshape(1, -1), _CORRELATED)]
        for axis in range(min(2, weight.dim()) if weight.dim() > 1 else 0):
            one, other = (t.transpose(0, axis).flatten(1) for t in (weight, want))
            pairs += [(one, other, _SAME_LINE)] if one.shape[1] >= _SHORT else []
        for one, other, least in pairs:
            if one.shape[1] > _SHORT and _off_line(one, other) <= _ROUNDING:
                return "exact"
            if _in_line(one, other) > least:
                found = "loose"
    return found


def _off_line(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return how far rows are from scaled and shifted rows of another tensor, relative."""
    have, given = (t.double() - t.double().mean(1, keepdim=True) for t in (one, other))
    power = given.square().sum(1, keepdim=True).clamp_min(1e-30)
    scale = (have * given).sum(1, keepdim=True) / power
    return float((have - scale * given).abs().max() / one.abs().max().clamp_min(1e-30))


def _in_line(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean magnitude of the correlation of two tensors' rows."""
    one, other = (t.double() - t.double().mean(1, keepdim=True) for t in (one, other))
    return float(torch.cosine_similarity(one, other, dim=1).abs().mean())


class Computed(TorchDispatchMode):
    """Collects the parameters that a module computes with before any input: `keys`.

    The artifact need not hold their values: a converter computes such constants once. `parameters`
    are those of the module that is called.
    """

    def __init__(self, parameters: Mapping[Key, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: set[Key] = set()
        # By storage: the parameters that a constant is made of. Empty tensors have storage 0.
        self._of: dict[int, frozenset[Key]] = {0: frozenset()}
        self._kept: list[torch.Tensor] = []  # so that no storage is used again
        for key, parameter in parameters.items():
            self._add([parameter], frozenset({key}))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation; its result is constant if all its tensors are."""
        result = func(*args, **(kwargs or {}))
        given = [self._of.get(_storage(t)) for t in _tensors((args, kwargs))]
        made = [t for t in _tensors(result) if _storage(t) not in self._of]
        if None in given:
            for tensor in _tensors(result):  # an input was written to a constant
                self._of.pop(_storage(tensor), None)
        elif made:
            keys = frozenset[Key]().union(*(keys for keys in given if keys))
            self._add(made, keys)
            if not str(func).startswith(_COPIES):
                self.keys |= keys
        return result

    def _add(self, tensors: Iterable[torch.Tensor], keys: frozenset[Key]) -> None:
        for tensor in tensors:
            self._of[_storage(tensor)] = keys
            self._kept.append(tensor)


def _tensors(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

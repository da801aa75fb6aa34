"""Modes of PyTorch that round to fp16 what it computes with, or keep what it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_LARGEST = 65504.0  # of fp16


class Rounding(TorchDispatchMode):
    """Rounds the float constants of each operation to fp16, and with `results` what it returns."""

    def __init__(self, results: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._results = results

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation of PyTorch."""
        divides = str(func).startswith("aten.div")  # coremltools multiplies by the reciprocal
        scalar = _half_divisor if divides else _half_scalar
        result = func(*tree_map(scalar, args), **tree_map(scalar, kwargs or {}))
        if not self._results:
            return result
        found = result if isinstance(result, tuple | list) else (result,)
        returns = func._schema.returns  # one for a list of tensors, as of unbind
        aliases = [one.alias_info for one in returns] * (len(found) if len(returns) == 1 else 1)
        rounded = [_half_result(*pair) for pair in zip(found, aliases, strict=False)]
        return type(result)(rounded) if isinstance(result, tuple | list) else rounded[0]


class Recording(Rounding):
    """Keeps what each operation returns; `found` has their names and copies of the tensors."""

    def __init__(self, half: bool) -> None:
        super().__init__(results=False)
        self._half = half
        self.found: list[tuple[str, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation of PyTorch."""
        if self._half:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        else:
            result = func(*args, **(kwargs or {}))
        name = f"{func.overloadpacket.__name__} {len(self.found)}"
        self.found += [
            (name, leaf.detach().clone())
            for leaf in tree_leaves(result)
            if isinstance(leaf, torch.Tensor) and not leaf.is_complex()
        ]
        return result


def _half_scalar(value: Any) -> Any:
    """Return a float as fp16 holds it; one that fp16 cannot hold stays as it is."""
    if not isinstance(value, float) or not 0 < abs(value) <= _LARGEST:
        return value
    return float(torch.tensor(value).half()) or value


def _half_divisor(value: Any) -> Any:
    is_divisor = isinstance(value, float | int) and not isinstance(value, bool) and value
    return 1 / _half_scalar(1 / value) if is_divisor else value


def _half_result(value: Any, alias: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    if alias is None:
        return value.half().to(value.dtype)
    if alias.is_write:
        value.copy_(value.half())
    return value  # a view: its values are rounded already

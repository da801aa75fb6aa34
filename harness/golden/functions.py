"""How a user's module is called: functions that make it or compute with one, and rounding modes.

The modes of PyTorch round to fp16 what a module computes with, or keep what it computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import CellType, FunctionType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_LARGEST = 65504.0  # of fp16


def is_factory(found: object) -> bool:
    """Return whether to call what was named: a class, or a function without parameters."""
    if isinstance(found, torch.nn.Module | Mapping) or not callable(found):
        return False
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return False
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if isinstance(found, type):
        return True
    if any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return False
    return all(p.default is not p.empty or p.kind in variable for p in parameters)


class Function(torch.nn.Module):
    """A function of the user's, and the modules among its variables as its own."""

    def __init__(self, function: FunctionType, modules: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        self._function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Call the function on these modules, which may be copies, in place of its own."""
        given, own = self._function, dict(self.named_children())
        pairs = zip(given.__code__.co_freevars, given.__closure__ or (), strict=True)
        cells = tuple(CellType(own[name]) if name in own else cell for name, cell in pairs)
        scope = given.__globals__ | own
        function = FunctionType(given.__code__, scope, given.__name__, given.__defaults__, cells)
        function.__kwdefaults__ = given.__kwdefaults__
        return function(*inputs)


def with_its_modules(target: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function as a module if it names modules, whose weights can then be rounded."""
    if not isinstance(target, FunctionType):
        return target
    found = inspect.getclosurevars(target)
    modules = {
        name: value
        for name, value in {**found.globals, **found.nonlocals}.items()
        if isinstance(value, torch.nn.Module) and not hasattr(torch.nn.Module(), name)
    }
    return Function(target, modules) if modules else target


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

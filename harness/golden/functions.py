"""Functions of a user's that are references: which make the module, and which compute with one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import CellType, FunctionType
from typing import Any

import torch


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

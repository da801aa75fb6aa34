"""One operation as its implementation sees it, and the registry of implementations.

To add an operation:
1. Find the module of its kind in `harness/mil/ops`.
2. Write a builder, decorated with ``@operation(name, inputs=...)``: it is called once at load with
   an `Operation`, reads the constant parameters from it, and returns a function of the tensors
   named in ``inputs`` (None for one that is absent).
3. Add its rule to the tests with expected values from numpy or PyTorch.

A parameter that no builder reads is an error at load: nothing in a program is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.artifact.errors import ArtifactError
from harness.mil.policy import Policy
from harness.mil.values import Constant, TensorType

Run = Callable[..., Any]
Builder = Callable[["Operation"], Run]


@dataclass(frozen=True)
class Implementation:
    """How an operation is built, and which of its inputs are tensors at call time."""

    build: Builder
    inputs: tuple[str, ...]
    moves_data: bool


IMPLEMENTATIONS: dict[str, Implementation] = {}


def operation(
    *names: str, inputs: tuple[str, ...], moves_data: bool = False
) -> Callable[[Builder], Builder]:
    """Register a builder. One that ``moves_data`` makes no new values: nothing is rounded."""

    def register(build: Builder) -> Builder:
        for name in names:
            IMPLEMENTATIONS[name] = Implementation(build, inputs, moves_data)
        return build

    return register


@dataclass
class Operation:
    """An operation at load.

    ``constants`` holds the inputs and attributes that are known at load, ``given`` the names of
    all inputs that the program gives.
    """

    type: str
    where: str
    outputs: tuple[TensorType, ...]
    constants: Mapping[str, Constant]
    given: frozenset[str]
    opset: str
    policy: Policy
    read: set[str] = field(default_factory=set)

    def constant(self, name: str, default: Any = None) -> Any:
        """Return a parameter as Python's own value, ``default`` when it is not given.

        Raises ArtifactError when it is given but not known at load.
        """
        self.read.add(name)
        if name in self.constants:
            return self.constants[name].python
        if name in self.given:
            raise self.error(f"parameter '{name}' is computed by the program; it must be constant")
        return default

    def required(self, name: str) -> Any:
        """Return a parameter that must be given; raises ArtifactError when it is not."""
        value = self.constant(name)
        if value is None:
            raise self.error(f"parameter '{name}' is missing")
        return value

    def weight(self, name: str) -> torch.Tensor | None:
        """Return a constant tensor in its stored dtype, None when it is not given."""
        self.read.add(name)
        return self.constants[name].tensor() if name in self.constants else None

    @property
    def output(self) -> TensorType:
        """The type of the first output."""
        return self.outputs[0]

    def error(self, problem: str) -> ArtifactError:
        """Return an error that names the function and the operation."""
        return ArtifactError(f"{self.where}: {problem}")

"""Reads the constant methods that describe how to call a language model.

An artifact is untrusted: every method below returns a value of the promised type, or raises a
HarnessError that names the constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from harness.errors import HarnessError

if TYPE_CHECKING:
    import torch

Constants = Mapping[str, "bool | int | float | str | numpy.ndarray"]


@dataclass(frozen=True)
class ConstantReader:
    """The constants of one artifact, read by name and type."""

    constants: Constants

    def integer(self, name: str) -> int:
        """Return a positive integer."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise HarnessError(f"constant '{name}' is {_shown(value)}, not a positive integer")
        return value

    def index(self, name: str) -> int:
        """Return the only element of an integer tensor of shape [1]."""
        return self.table(name, 1)[0][0]

    def table(self, name: str, columns: int) -> tuple[tuple[int, ...], ...]:
        """Return the rows of an integer tensor [rows, columns], or [columns] for one row."""
        value = self._get(name)
        if not isinstance(value, numpy.ndarray) or value.dtype.kind not in "iu":
            raise HarnessError(f"constant '{name}' is {_shown(value)}, not a tensor of integers")
        if value.size == 0:
            return ()
        if value.ndim not in (1, 2) or value.shape[-1] != columns:
            raise HarnessError(
                f"constant '{name}' has shape {list(value.shape)}, expected [rows, {columns}]"
            )
        return tuple(tuple(row) for row in value.reshape(-1, columns).tolist())

    def frequencies(self, name: str) -> torch.Tensor:
        """Return a floating RoPE table [positions, width] as a tensor of the artifact's values."""
        import torch

        value = self._get(name)
        if not isinstance(value, numpy.ndarray) or value.dtype.kind != "f":
            raise HarnessError(f"constant '{name}' is {_shown(value)}, not a floating tensor")
        if value.ndim != 2 or value.size == 0:
            raise HarnessError(
                f"constant '{name}' has shape {list(value.shape)}, expected [positions, width]"
            )
        if not numpy.isfinite(value).all():
            raise HarnessError(f"constant '{name}' holds values that are not finite")
        return torch.from_numpy(numpy.array(value))  # a copy: the artifact's is read-only

    def _get(self, name: str) -> bool | int | float | str | numpy.ndarray:
        if name not in self.constants:
            raise HarnessError(
                f"constant '{name}' is missing: the artifact does not describe how to call its "
                "language model; export it with ExecuTorch's static language model exporter"
            )
        return self.constants[name]


def _shown(value: object) -> str:
    if isinstance(value, numpy.ndarray):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

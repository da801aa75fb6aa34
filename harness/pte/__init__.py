"""Executes a program (`.pte`): PyTorch runs the kernels, the caller runs the delegates.

This module has a method's inputs and outputs, with the names that its delegates use, without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.artifact import Artifact
from harness.artifact.pte import TensorValue
from harness.errors import ArtifactError


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, its shape and its dtype ("float16", "int32", "int64").

    A flexible size of a package's function is -1.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether a shape has the declared sizes."""
        return len(shape) == len(self.shape) and all(
            declared in (-1, size) for size, declared in zip(shape, self.shape, strict=True)
        )


Specs = tuple[TensorSpec, ...]


def same_shape(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two shapes are equal; () is (1,), as Core ML has no scalars."""
    return tuple(one) == tuple(other) or {tuple(one), tuple(other)} == {(), (1,)}


def method_signature(artifact: Artifact, method: str) -> tuple[Specs, Specs]:
    """Return a method's inputs and outputs, in declared order.

    Raises ArtifactError when there is no such method, or an input or output is not a tensor.
    """
    if artifact.pte is None or method not in artifact.methods:
        names = ", ".join(artifact.methods)
        raise ArtifactError(f"{artifact.path}: no method '{method}'; its methods: {names}")
    plan, names_of = artifact.pte.methods[method], artifact.value_names(method)

    def spec(index: int) -> TensorSpec:
        value = plan.values[index]
        if not isinstance(value, TensorValue):
            raise ArtifactError(
                f"{artifact.path}, method '{method}': value {index} is an input or "
                "output, but not a tensor"
            )
        return TensorSpec(names_of.get(index, f"value_{index}"), value.shape, value.dtype)

    return tuple(map(spec, plan.inputs)), tuple(map(spec, plan.outputs))

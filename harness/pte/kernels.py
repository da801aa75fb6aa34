"""Runs the kernel calls of a .pte with PyTorch's own operators.

A .pte calls the out-variants of ATen operators. Its arguments are those of the schema in order,
including the outputs, followed by the returned value. PyTorch registers the same schemas.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from harness.artifact.pte import TensorValue
from harness.artifact.pte_reader import SCALAR_TYPES
from harness.errors import HarnessError

_DIM_ORDER_COPY = "dim_order_ops::_to_dim_order_copy.out"


def call_kernel(
    operator: str, args: Sequence[Any], declared: Sequence[Any], where: str
) -> tuple[torch.Tensor, ...]:
    """Run `operator` ("aten::add.out") and return its outputs.

    `declared` holds the declaration of each value in `args`: an output gets its declared dtype, or
    that of the inputs if it is wider. Raises HarnessError that names `where` for an operator that
    PyTorch does not have and for one that fails.
    """
    try:
        if operator == _DIM_ORDER_COPY:
            return (args[0].to(_output_dtype(declared[-1], args[:1])),)
        overload = _overload(operator, where)
        return _call_out_variant(overload, args, declared)
    except HarnessError:
        raise
    except Exception as error:
        raise HarnessError(
            f"{where}, kernel {operator}: {type(error).__name__}: {error}"
        ) from error


def writes_in_place(operator: str) -> bool:
    """Return whether an operator ("aten::copy_") changes its first argument."""
    return operator.partition(".")[0].endswith("_")


@cache
def _overload(operator: str, where: str) -> Any:
    namespace, _, name = operator.partition("::")
    base, _, overload = name.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), base), overload or "default")
    except AttributeError:
        raise HarnessError(
            f"{where}: kernel {operator} is not one of PyTorch's; a program can be executed here "
            "when all its kernels are ATen's"
        ) from None


def _call_out_variant(
    overload: Any, args: Sequence[Any], declared: Sequence[Any]
) -> tuple[torch.Tensor, ...]:
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    outputs: list[torch.Tensor] = []
    for argument, value, declaration in zip(
        overload._schema.arguments, args, declared, strict=False
    ):
        if argument.is_out:
            value = torch.empty(0, dtype=_output_dtype(declaration, positional))
            outputs.append(value)
        elif argument.alias_info is not None and argument.alias_info.is_write:
            # An output may share memory with inputs or earlier values: write into a copy.
            value = value.to(_output_dtype(declaration, args), copy=True)
        elif (
            str(argument.real_type) in ("ScalarType", "Optional[ScalarType]") and value is not None
        ):
            value = getattr(torch, SCALAR_TYPES[value])
        if argument.kwarg_only:
            keywords[argument.name] = value
        else:
            positional.append(value)
    result = overload(*positional, **keywords)
    return tuple(outputs) or (result if isinstance(result, tuple) else (result,))


def _output_dtype(declared: Any, inputs: Sequence[Any]) -> torch.dtype:
    """Return the declared dtype, or an input's if it is a wider float."""
    if not isinstance(declared, TensorValue):
        raise HarnessError("an output is not declared as a tensor")
    dtype: torch.dtype = getattr(torch, declared.dtype)
    for value in inputs:
        if dtype.is_floating_point and torch.is_tensor(value) and value.is_floating_point():
            dtype = torch.promote_types(dtype, value.dtype)
    return dtype

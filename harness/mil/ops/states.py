"""States: tensors that persist from call to call (iOS 18).

coremltools writes its `coreml_update_state` as a `write_state` and a `read_state`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from harness.mil.operation import Kinds, Operation, Run, operation
from harness.mil.storage import StateCell
from harness.mil.types import StateType

_TAKES: dict[str, Kinds] = {"input": StateType}


@operation("read_state", inputs=("input",), types=_TAKES, moves_data=True)
def read_state(op: Operation) -> Run:
    """Return the current tensor of a state."""
    return lambda cell: cell.value


@operation("write_state", inputs=("input", "data"), types=_TAKES, moves_data=True)
def write_state(op: Operation) -> Run:
    """Replace a state's tensor with a copy of `data`."""

    def run(cell: StateCell, data: Tensor) -> tuple[Any, ...]:
        if not cell.declared.fits(data):
            raise op.error(f"a tensor of shape {list(data.shape)} for a state of {cell.declared}")
        cell.value = data.clone()
        return ()

    return run

"""Number policies, which set the dtypes of values while a program executes.

`strict` rounds every FLOAT16 result to fp16 and accumulates in fp32; it predicts fp16 hazards.
`widen` keeps FLOAT16 values in fp32 without rounding; it shows errors that fp16 noise hides.
`double` keeps every float in fp64; it is the reference. All three round a constexpr result to its
declared dtype, because a device uses these weights too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.artifact.proto import MilType
from harness.errors import HarnessError

_INTEGERS = {"INT64": torch.int64, "UINT32": torch.int64, "UINT64": torch.int64}
_FLOATS = {"FLOAT16": torch.float16, "FLOAT32": torch.float32, "FLOAT64": torch.float64}


@dataclass(frozen=True)
class Policy:
    """The dtypes of floats, and whether FLOAT16 results are rounded after each operation."""

    name: str
    carriers: dict[str, torch.dtype]
    rounds_half: bool

    def carrier(self, dtype: MilType) -> torch.dtype:
        """Return the torch dtype that carries a MIL dtype's values; small integers take int32."""
        if dtype.name in self.carriers:
            return self.carriers[dtype.name]
        return torch.bool if dtype.name == "BOOL" else _INTEGERS.get(dtype.name, torch.int32)

    def enter(self, tensor: torch.Tensor, dtype: MilType) -> torch.Tensor:
        """Convert a caller's tensor to the torch dtype that carries values of this dtype."""
        tensor = tensor.to(self.carrier(dtype))
        return self.rounded(tensor) if self.rounds_half and dtype.name == "FLOAT16" else tensor

    def constant(self, tensor: torch.Tensor, dtype: MilType) -> torch.Tensor:
        """Round to the declared dtype under every policy, then convert to the carrying dtype."""
        declared = _FLOATS.get(dtype.name)
        return (tensor.to(declared) if declared else tensor).to(self.carrier(dtype))

    @staticmethod
    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        """Round to the nearest fp16 value; values beyond 65504 become infinite."""
        return tensor.to(torch.float16).to(tensor.dtype)


_FP32 = {"FLOAT16": torch.float32, "FLOAT32": torch.float32, "FLOAT64": torch.float64}
POLICIES = {
    "strict": Policy("strict", _FP32, rounds_half=True),
    "widen": Policy("widen", _FP32, rounds_half=False),
    "double": Policy("double", dict.fromkeys(_FP32, torch.float64), rounds_half=False),
}


def get_policy(name: str) -> Policy:
    """Return a policy by name; raise HarnessError that lists the names for an unknown one."""
    if name not in POLICIES:
        raise HarnessError(f"no number policy '{name}'; choose from {', '.join(POLICIES)}")
    return POLICIES[name]

"""Implementations of MIL operations; importing this package registers them all.

Source of every rule: the operation's page in coremltools' MIL reference, opsets iOS 15 to iOS 18.
"""

from harness.mil.ops import (
    activation,
    arrangement,
    constexpr,
    convolution,
    elementwise,
    linear,
    movement,
    normalization,
    reduction,
)

__all__ = [
    "activation",
    "arrangement",
    "constexpr",
    "convolution",
    "elementwise",
    "linear",
    "movement",
    "normalization",
    "reduction",
]

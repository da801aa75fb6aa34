"""Implementations of MIL operations; importing this package registers them all.

Source of every rule: the operation's page in coremltools' MIL reference, opsets iOS 15 to iOS 18.
"""

from harness.mil.ops import constexpr, elementwise, linear, movement, reduction

__all__ = ["constexpr", "elementwise", "linear", "movement", "reduction"]

"""Quantized weights that stay packed: multiplied, and taken from, as they stand in their file."""

from harness.mil.packed.weight import PackedWeight, expanded

__all__ = ["PackedWeight", "expanded"]

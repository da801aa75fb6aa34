"""Quantized weights that stay packed: products and rows are computed from the codes in the file."""

from harness.mil.packed.weight import PackedWeight, expanded

__all__ = ["PackedWeight", "expanded"]

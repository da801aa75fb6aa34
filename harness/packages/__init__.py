"""Core ML packages out of other artefacts: combined into one, or taken out of a .pte. No torch."""

from harness.packages.combine import Combined, Part, combine_packages

__all__ = ["Combined", "Part", "combine_packages"]

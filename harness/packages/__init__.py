"""Core ML packages out of other artifacts: combined into one, or taken out of a .pte. No torch."""

from harness.packages.combine import Combined, Part, combine_packages
from harness.packages.extract import Extraction, extract_packages

__all__ = ["Combined", "Extraction", "Part", "combine_packages", "extract_packages"]

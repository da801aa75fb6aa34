"""Conformance kit and benchmark for Core ML language models."""

__version__ = "0.1.0"

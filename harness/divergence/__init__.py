"""Finds the first operation at which an artifact differs from its reference."""

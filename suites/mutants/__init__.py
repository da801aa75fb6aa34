"""Broken copies of real artifacts: each must be caught by a check."""

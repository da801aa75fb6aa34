"""Broken copies of real artefacts: each must be caught by a check."""

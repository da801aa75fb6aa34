"""Breaks copies of real artifacts: a check must catch each."""

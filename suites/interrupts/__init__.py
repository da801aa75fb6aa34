"""Ends commands that write files at every moment: a part must never be taken for whole."""

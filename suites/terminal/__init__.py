"""Runs every command of `harness` on a pseudo-terminal: none is silent for two seconds."""

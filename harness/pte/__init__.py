"""Executes a program (`.pte`): kernels by PyTorch, delegate calls by whoever is given."""

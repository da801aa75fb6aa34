"""Llama in plain PyTorch: the oracle, the static form that is exported, and what quantizes it.

Import the module you need: only :mod:`harness.models.config` is free of torch.
"""

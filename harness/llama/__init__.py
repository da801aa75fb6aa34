"""Llama in plain PyTorch: the oracle, the static form that is exported, and what quantises it.

Import the module you need: only :mod:`harness.llama.config` is free of torch.
"""

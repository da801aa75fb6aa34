"""Llama in plain PyTorch: the oracle, the static model that is exported, and the quantization.

Import the module that you need: only :mod:`harness.models.config` works without torch.
"""

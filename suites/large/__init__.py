"""Holds the executor to bars on large models: speed beside eager PyTorch, memory, load time."""

"""What the executor owes on large models: speed beside eager PyTorch, memory and load time."""

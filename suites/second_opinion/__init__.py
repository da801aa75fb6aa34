"""The suite of second opinions: Core AI's interpreter, our executor and eager PyTorch, compared."""

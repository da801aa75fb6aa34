"""Other versions of ExecuTorch, and checkouts that differ from a release by one line."""

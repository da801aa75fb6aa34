"""Healthy language models of varied make: `harness check` complains of none of them."""

"""Tokens in, tokens out: layout, caches and masks, prefill and decode, sampling, tokenizers.

Import the module that is needed: `session` and `sampling` import torch, `tokenizer` does not.
"""

"""Compares masks and caches with ExecuTorch's StaticAttentionIOManager: python -m ... LENGTHS.

LENGTHS are those of the layers' caches, `24,4,16`. Both are fed the same random chunks, in both
styles, and call a method whose updates hold their positions. Prints the number of comparisons.
"""

from __future__ import annotations

import random
import sys

import torch
from executorch.examples.models.llama.model_args import ModelArgs
from executorch.examples.models.llama.static_attention import StaticAttentionIOManager

from harness.generate.layout import ModelLayout
from harness.generate.phase import LayerCache, Phase
from harness.generate.session import Session
from harness.pte import TensorSpec

VOCAB, HEAD_DIM = 8, 2


class Positions:
    """A method without weights: each update is its row's position, which the cosines hold."""

    name = "forward"
    outputs = ()

    def __init__(self, lengths: list[int]) -> None:
        self.n_layers, self.lengths = len(lengths), list(dict.fromkeys(lengths))
        self.inputs = [TensorSpec("x", (1,), "float32")] * (
            3 + len(self.lengths) + 2 * len(lengths)
        )
        self.masks: dict[int, torch.Tensor] = {}

    def __call__(self, tokens: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        masks, (cos, *_) = tensors[: len(self.lengths)], tensors[len(self.lengths) :]
        self.masks = {n: mask.clone() for n, mask in zip(self.lengths, masks, strict=True)}
        update = cos[:, 0][None, None, :, None].expand(1, 1, -1, HEAD_DIM)
        return torch.zeros(1, tokens.shape[1], VOCAB), *[update] * (2 * self.n_layers)


def our_session(method: Positions, lengths: list[int], input_len: int, style: str) -> Session:
    masks = {length: 1 + i for i, length in enumerate(method.lengths)}
    cos, n = 1 + len(masks), len(lengths)
    caches = [
        LayerCache(cos + 2 + i, 1 + i, cos + 2 + n + i, 1 + n + i, length)
        for i, length in enumerate(lengths)
    ]
    phase = Phase(
        "forward", input_len, len(method.inputs), masks, cos, cos + 1, None, tuple(caches),
        "int32", "float32",
    )  # fmt: skip
    context = max(lengths) + input_len
    table = torch.arange(context, dtype=torch.float32)[:, None]
    layout = ModelLayout(
        "single", VOCAB, HEAD_DIM, 1, n, context, table, table, phase, phase, 0
    )  # fmt: skip
    return Session({"forward": method}, layout, style)


def their_manager(lengths: list[int], input_len: int, style: str) -> StaticAttentionIOManager:
    context = max(lengths) + input_len
    config = ModelArgs(
        dim=4, n_layers=len(lengths), n_heads=2, n_kv_heads=1, head_dim=HEAD_DIM,
        max_context_len=context, max_seq_len=context, vocab_size=VOCAB, generate_full_logits=True,
    )  # fmt: skip
    config.attention_type = "static_mha"
    manager = StaticAttentionIOManager(config, input_len, lengths, style=style)
    table = torch.arange(context + input_len, dtype=torch.float32)[:, None]
    manager.freqs_cos = manager.freqs_sin = table
    return manager


def compare(lengths: list[int], input_len: int, style: str, seed: int) -> int:
    method, rng, compared, fed = Positions(lengths), random.Random(seed), 0, 0
    ours = our_session(method, lengths, input_len, style)
    theirs = their_manager(lengths, input_len, style)
    masks: dict[int, torch.Tensor] = {}

    def model(tokens: torch.Tensor, options: dict) -> tuple[torch.Tensor, dict]:
        masks.update({n: mask.clone() for n, mask in options["masks"].items()})
        row = options["freqs_cos_override"][:, 0][None, None, :, None].expand(1, 1, -1, HEAD_DIM)
        states = (dict.fromkeys(theirs.k_caches, row), dict.fromkeys(theirs.v_caches, row))
        return torch.zeros(1, input_len, VOCAB), {"out_cache_state": states}

    while fed < max(lengths):
        chunk = [1] * min(rng.randint(1, input_len), max(lengths) - fed)
        theirs.prefill(model, chunk)
        ours.prefill(chunk)
        fed += len(chunk)
        for length, mask in method.masks.items():  # rows of padding differ, and mean nothing
            assert torch.equal(mask[0, : len(chunk)], masks[length][0, : len(chunk)]), (length, fed)
            compared += len(chunk)
        for mine, yours in (
            (ours._caches.keys, theirs.k_caches),
            (ours._caches.values, theirs.v_caches),
        ):
            for cache, other in zip(mine, yours.values(), strict=True):
                assert torch.equal(cache, other), fed
                compared += 1
    return compared


if __name__ == "__main__":
    sizes = [int(length) for length in sys.argv[1].split(",")]
    print(
        sum(
            compare(sizes, input_len, style, seed)
            for style in ("smart_mask", "shift_pointer")
            for input_len in (1, 3, 4, 8)
            for seed in range(4)
        )
    )

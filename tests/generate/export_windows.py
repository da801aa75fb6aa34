"""Exports the fixture tiny by ExecuTorch, with a window in some layers: python -m ... OUTPUT.

The exporter's `main()` gives all caches one length. Here its manager gets a length for each layer,
and `kv_cache_specs` the lengths of the caches.
"""

from __future__ import annotations

import importlib
import sys

import torch

from harness.export._executorch_child import EXPORTER, arguments, patch
from harness.export.options import ExportOptions
from harness.fixtures.cache import fixture

WINDOWS = (5, None, 19, 5)
OPTIONS = ExportOptions(
    mode="single", input_len=8, max_context_len=40,
    dtype="fp32", embedding_quantize=None, linear_quantize="none",
)  # fmt: skip


def main(output: str) -> None:
    exporter = importlib.import_module(EXPORTER)
    patch(exporter, OPTIONS)
    manager, metadata = exporter.StaticAttentionIOManager, exporter._get_metadata

    def with_windows(config: object, *, cache_lens: int, **rest: object) -> object:
        lengths = [window or cache_lens for window in WINDOWS]
        return manager(config, cache_lens=lengths, **rest)

    def with_lengths(config: object, inputs: tuple, *rest: object) -> dict:
        constants = metadata(config, inputs, *rest)
        caches = inputs[1]["in_cache_state"][0].values()
        constants["kv_cache_specs"][:, 4] = torch.tensor([cache.shape[-2] for cache in caches])
        return constants

    exporter.StaticAttentionIOManager, exporter._get_metadata = with_windows, with_lengths
    made = fixture("tiny")
    request = {"checkpoint": made.checkpoint, "params": made.params, "output": output}
    sys.argv = [EXPORTER, *arguments(request, OPTIONS)]
    exporter.main()


if __name__ == "__main__":
    main(sys.argv[1])

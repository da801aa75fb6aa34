"""Makes the constants from which a runner learns how to call an export's methods.

Their names are those of ExecuTorch's exporter; :mod:`harness.generate.layout` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.export.options import ExportOptions
from harness.export.plan import MethodPlan
from harness.models import ModelConfig
from harness.models.model import rope_tables
from harness.models.quantize import DTYPES


def constants(
    config: ModelConfig, options: ExportOptions, methods: Sequence[MethodPlan]
) -> dict[str, int | np.ndarray]:
    """Return the constants by name; RoPE tables are exact, rounded once to the export's dtype."""
    cos, sin = rope_tables(config, options.max_context_len, DTYPES[options.dtype])
    found: dict[str, int | np.ndarray] = {
        "vocab_size": config.vocab_size,
        "head_dim": config.head_dim,
        "n_heads_per_cache": config.n_kv_heads,
        "freqs_cos": cos.numpy(),
        "freqs_sin": sin.numpy(),
    }
    for method in methods:
        found |= _of_method(method, config.n_layers, options.cache_len)
    return found


def _of_method(method: MethodPlan, n_layers: int, cache_len: int) -> dict[str, int | np.ndarray]:
    inputs = {value.name: index for index, value in enumerate(method.inputs)}
    outputs = {value.name: index for index, value in enumerate(method.outputs)}
    rows = [
        (
            *(inputs[f"k_cache_{layer}"], outputs[f"new_k_{layer}"]),
            *(inputs[f"v_cache_{layer}"], outputs[f"new_v_{layer}"]),
            cache_len,
        )
        for layer in range(n_layers)
    ]
    prefix = method.prefix
    return {
        f"{prefix or 'forward_'}input_len": method.input_len,
        f"{prefix}freqs_cos_input_index": np.array([inputs["freqs_cos"]]),
        f"{prefix}freqs_sin_input_index": np.array([inputs["freqs_sin"]]),
        f"{prefix}mask_specs": np.array([[inputs["mask"], cache_len]]),
        f"{prefix}kv_cache_specs": np.array(rows),
    }

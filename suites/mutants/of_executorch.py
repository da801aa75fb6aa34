"""Faults in ExecuTorch's exporter: one line of its code is another in the child that exports.

The artifact is a fresh one, of untrained weights. Where an export fails, `export` is the complaint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial

from harness.export import executorch
from harness.suites.mutants.faults import MULTI, NUMBERS, PTE, SINGLE, Complaints, Mutant, fault
from harness.suites.mutants.of_exporters import judge_exported, line_of
from harness.suites.runners.faults import Fault as Line

_CHILD = "harness.suites.mutants.exporter_child"
_LLAMA = "examples.apple.coreml.llama.export_static_llm_coreml"
_ATTENTION = "examples.models.llama.static_attention"
_BACKEND = "backends.apple.coreml.compiler.coreml_preprocess:CoreMLBackend"
_TRANSFORMER = "examples.models.llama.llama_transformer:Transformer"


def judge_executorchs_export(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Export by ExecuTorch, with a line changed in its child process, and judge the `.pte`."""
    with ExitStack() as stack:
        if mutant.mutate:
            stack.enter_context(_in_the_child(line_of(mutant)))
        return judge_exported(mutant, checks, executorch.export)


@contextmanager
def _in_the_child(line: Line) -> Iterator[None]:
    """Let exports run in a child that changes a line of ExecuTorch's."""
    before = executorch.CHILD
    os.environ["HARNESS_FAULT"] = json.dumps(asdict(line))
    executorch.CHILD = _CHILD
    try:
        yield
    finally:
        executorch.CHILD = before
        del os.environ["HARNESS_FAULT"]


def theirs(function: str, old: str, new: str) -> Callable[[], Line]:
    """Return what makes a line of ExecuTorch's."""
    return lambda: Line("", f"executorch.{function}", old, new)


row = partial(
    fault, room="exporter", judge=judge_executorchs_export, kinds=PTE, tested=(), modes=SINGLE
)
row("their RoPE turns the other way", NUMBERS | {"roles": "do not rotate keys by pairs"})(
    theirs(f"{_ATTENTION}:_Rope.forward", "x_r * freqs_cos - x_i", "x_r * freqs_cos + x_i")
)
row(
    "their attention without its mask",
    {"roles": "a mask: cache position 0 moves outputs though its column is closed"},
)(
    theirs(
        f"{_ATTENTION}:StaticAttention._forward_mha",
        "attn_grouped = attn_grouped + mask",
        "attn_grouped = attn_grouped * 1.0",
    )
)
row("their cache rows paired with the next layer's", {"cache-rows": "the key cache of layer"})(
    theirs(f"{_LLAMA}:_get_metadata", "k_out_idx = 1 + i", "k_out_idx = 1 + (i + 1) % 3")
)
row(
    "their tables too short",
    {"owners": "freqs_cos has 24 positions, but caches and input hold 32"},
    "ET 14630",
)(
    theirs(
        f"{_LLAMA}:_get_metadata",
        "(None, model_args.max_context_len)",
        "(None, model_args.max_context_len - 8)",
    )
)
row(
    "their export for a system without 4 bits",
    {"export": "while lowering to Core ML: .*constexpr_affine_dequantize"},
    "ET 13896",
)(
    theirs(
        f"{_LLAMA}:main",
        "minimum_deployment_target=ct.target.iOS18",
        "minimum_deployment_target=ct.target.iOS16",
    )
)
row("their attention's scale", NUMBERS)(
    theirs(
        f"{_ATTENTION}:StaticAttention._forward_mha",
        "attn_grouped = attn_grouped * self.inv_scale",
        "attn_grouped = attn_grouped * self.head_dim**-0.4",
    )
)
row("their last norm left out", {"parity": "not recognised as a Llama or Qwen3: .* 6 norms"})(
    theirs(
        "examples.models.llama.llama_transformer:Transformer.forward", "h = self.norm(h)", "pass"
    )
)
row("their 8 bits for 4", {"weights": "differ from the checkpoint's: layers.0"})(
    theirs(f"{_LLAMA}:_transform_eager_model", "torch.int4", "torch.int8")
)
row("their metadata in another order", {"metadata-names": "metadata.json's order is"})(
    theirs(
        f"{_BACKEND}.model_metadata_from_spec",
        "[input.name for input in model_spec.description.input]",
        "[input.name for input in model_spec.description.input][::-1]",
    )
)
row(
    "their references to a function that is not there",
    {"references": "'main' is not in its package"},
    "ET 21951",
    modes=MULTI,
)(
    theirs(
        f"{_BACKEND}.preprocess_multimethod",
        '"functionName": method_name',
        '"functionName": "main"',
    )
)
row(
    "their sharing by another index",
    {"metadata-names": "method 'prefill', delegate 0, .*the program passes"},
    "ET 18531",
    modes=MULTI,
)(
    theirs(
        f"{_BACKEND}.preprocess_multimethod",
        "combined_processed_bytes: List[bytes] = []",
        "method_mlpackage_paths[method_names[-1]].reverse(); combined_processed_bytes = []",
    )
)
row("their option of sharing ignored", {"weight-sharing": "1 functions;"}, "ET 22352", modes=MULTI)(
    theirs(
        f"{_BACKEND}.multimethod_weight_sharing_strategy_from_compile_specs",
        'compile_spec.value.decode("utf-8")',
        '"disabled"',
    )
)

"""Runs ExecuTorch's static-LLM exporter; :mod:`harness.export.executorch` starts it as a process.

The exporter's `main()` does the work. This module replaces four names of the exporter's module:

- `load_model`: a checkpoint without `output.weight` gets its output layer from the embedding; the
  exporter would leave the layer on the meta device. Any other parameter left there is an error.
- `argparse`: its parser returns, too, the options that the command line cannot express (linear
  layers not quantized, embedding not quantized, linear layers not split).
- `MULTIMETHOD_WEIGHT_SHARING_STRATEGY`: POSITIONAL becomes DISABLED when the options forbid the
  sharing of weights.
- `save_pte_program`: a failed write raises; the exporter would log it and go on.

A request is `{"checkpoint", "params", "output", "options"}`; the answer is null.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from harness.child import serve
from harness.errors import HarnessError, NotInstalledError
from harness.export.options import ExportOptions

EXPORTER = "executorch.examples.apple.coreml.llama.export_static_llm_coreml"
PATCHED = (
    "main",
    "argparse",
    "load_model",
    "save_pte_program",
    "MULTIMETHOD_WEIGHT_SHARING_STRATEGY",
)


def arguments(request: dict[str, Any], options: ExportOptions) -> list[str]:
    """Return the exporter's own command line for these options."""
    words = {
        "--checkpoint": request["checkpoint"],
        "--params": request["params"],
        "--output": request["output"],
        "--max_context_len": options.max_context_len,
        "--input_len": options.input_len,
        "--dtype": options.dtype,
        "--max_splits": options.max_splits,
        "--embedding_quantize": options.embedding_quantize,
        "--target_split_size": options.target_split_size,
        "--linear_quantize": _none_if(options.linear_quantize, "none"),
    }
    flags = {
        "--multifunction": options.mode == "multifunction",
        "--no_graph_breaks": not options.graph_breaks,
    }
    line = [f"{name}={value}" for name, value in words.items() if value is not None]
    return line + [name for name, is_set in flags.items() if is_set]


def patch(exporter: ModuleType, options: ExportOptions) -> None:
    """Make the exporter honour the options that its command line cannot express."""
    if absent := [name for name in PATCHED if not hasattr(exporter, name)]:
        raise HarnessError(
            f"the exporter of this ExecuTorch has no {', '.join(absent)}; "
            "versions 1.2 to 1.5 have all that is needed"
        )
    exporter.save_pte_program = _save  # type: ignore[attr-defined]
    _patch_load(exporter)
    _patch_arguments(
        exporter,
        embedding_quantize=options.embedding_quantize,
        linear_quantize=_none_if(options.linear_quantize, "none"),
        target_split_size=options.target_split_size,
    )
    if options.weight_sharing == "none":
        disabled = exporter.MULTIMETHOD_WEIGHT_SHARING_STRATEGY.DISABLED
        exporter.MULTIMETHOD_WEIGHT_SHARING_STRATEGY = SimpleNamespace(  # type: ignore[attr-defined]
            POSITIONAL=disabled, DISABLED=disabled
        )


def export(request: dict[str, Any]) -> None:
    """Run the export that a request describes; temporary files go to the working folder."""
    os.chdir(tempfile.gettempdir())
    options = ExportOptions(**request["options"])
    try:
        exporter = importlib.import_module(EXPORTER)
    except ImportError as error:
        raise NotInstalledError(
            f"ExecuTorch's exporter does not import ({error}); install executorch 1.4 or 1.5 with "
            "coremltools 9.0"
        ) from error
    patch(exporter, options)
    sys.argv = [EXPORTER, *arguments(request, options)]
    exporter.main()
    if not Path(request["output"]).stat().st_size:
        raise FileNotFoundError("the exporter ended without an error but wrote nothing")


def _save(program: Any, path: str) -> str:
    with Path(path).open("wb") as file:
        program.write_to_file(file)
    return path


def _patch_load(exporter: ModuleType) -> None:
    load_model = exporter.load_model

    def load_complete_model(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        import torch

        model, model_args = load_model(*args, **kwargs)
        if model.output.weight.is_meta:
            # a copy: exported parameters that share memory would be one constant with two users
            tied = model.tok_embeddings.weight.detach().clone()
            model.output.weight = torch.nn.Parameter(tied, requires_grad=False)
        if empty := [name for name, value in model.named_parameters() if value.is_meta]:
            raise HarnessError(f"the exporter's model has no weights for {', '.join(empty[:8])}")
        return model, model_args

    exporter.load_model = load_complete_model  # type: ignore[attr-defined]


def _patch_arguments(exporter: ModuleType, **overrides: Any) -> None:
    """Let the exporter's parser return these values, whatever the command line holds."""

    class Parser(argparse.ArgumentParser):
        def parse_args(self, *args: Any, **kwargs: Any) -> Any:
            parsed = super().parse_args(*args, **kwargs)
            vars(parsed).update(overrides)
            return parsed

    exporter.argparse = SimpleNamespace(ArgumentParser=Parser)  # type: ignore[attr-defined]


def _none_if(value: str, nothing: str) -> str | None:
    return None if value == nothing else value


if __name__ == "__main__":
    serve(export)

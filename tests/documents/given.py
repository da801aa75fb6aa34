"""What the pages' commands take for granted, each written into a folder under its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.fixtures.cache import exported, fixture
from harness.suites.mutants.edit import Export
from harness.suites.mutants.of_weights import perturb_a_norm

HARNESS_TOML = """\
[exporters]
branch = "executorch@1.5.1"

[subjects.my-model]
checkpoint = "{checkpoint}"
params = "{params}"
tokenizer = "{tokenizer}"
modes = ["single", "multifunction"]
options = {{ input_len = 16, max_context_len = 128 }}

[subjects.shipped]
artifact = "{artifact}"
"""


def an_export(path: Path) -> None:
    """Write the multifunction export of `tiny`."""
    shutil.copyfile(multifunction(), path)


def multifunction() -> Path:
    """Return the path of that export in the cache."""
    return exported("tiny", replace(fixture("tiny").options, mode="multifunction"))


def a_worse_export(path: Path) -> None:
    """Write the same with one weight of a norm 1 % too large."""
    export = Export(multifunction())
    perturb_a_norm(export)
    export.save(path)


def a_checkpoint(path: Path) -> None:
    """Write tiny's weights, with Meta's names."""
    shutil.copyfile(fixture("tiny").checkpoint, path)


def a_project(path: Path) -> None:
    """Write a harness.toml that declares a model, an artifact and an exporter."""
    tiny = fixture("tiny")
    facts = {"checkpoint": tiny.checkpoint, "params": tiny.params, "tokenizer": tiny.tokenizer}
    path.write_text(HARNESS_TOML.format(**facts, artifact=multifunction()), encoding="utf-8")


def two_functions(path: Path) -> None:
    """Write a package with the functions `prefill` and `decode`, made by coremltools."""
    import coremltools as ct
    import torch

    block = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.SiLU(), torch.nn.Linear(128, 64))
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, length in {"prefill": 16, "decode": 1}.items():
        model = ct.convert(
            torch.jit.trace(block.eval(), torch.zeros(1, length, 64)),
            inputs=[ct.TensorType(name="hidden", shape=(1, length, 64))],
            outputs=[ct.TensorType(name="result")],
            minimum_deployment_target=ct.target.iOS18,
        )
        model.save(str(path.with_name(f"{name}.mlpackage")))
        descriptor.add_function(str(path.with_name(f"{name}.mlpackage")), "main", name)
    descriptor.default_function_name = "prefill"
    ct.utils.save_multifunction(descriptor, str(path))


GIVEN: dict[str, Callable[[Path], None]] = {
    "model.pte": an_export,
    "base.pte": an_export,
    "head.pte": a_worse_export,
    "checkpoint.pth": a_checkpoint,
    "harness.toml": a_project,
    "both.mlpackage": two_functions,
}

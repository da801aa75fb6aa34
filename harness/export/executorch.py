"""Exports a checkpoint through ExecuTorch's own static-LLM exporter, in a child process.

The exporter gets a process of its own for five reasons: it imports for eleven seconds, prints whole
graphs, writes into the temporary folder, changes global state of torch and coremltools, and may be
killed because it needs too much memory.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from harness.artifact.pte_reader import FILE_IDENTIFIER
from harness.child import Child
from harness.errors import ChildError, CrashError, HarnessError, NotInstalledError
from harness.export import Progress
from harness.export.options import ExportOptions, check_fit
from harness.files import partial_file
from harness.models.config import load_params

CHILD = "harness.export._executorch_child"
CHECKING = "checking the checkpoint"
STARTING = "importing the exporter"
# The beginning of a line that the exporter prints -> the stage that begins there. Stages appear in
# progress and error messages only: if the exporter's words change, nothing else does.
STAGES = {
    "Loading model": "loading the checkpoint",
    "Splitting linear layers": "splitting linear layers",
    "Quantizing embeddings": "quantizing the embedding",
    "Quantizing linear layers": "quantizing linear layers",
    "Testing eager execution": "running the model once in eager PyTorch",
    "Exporting model": "capturing the graph",
    "Exporting decode": "capturing the decode graph",
    "Exporting prefill": "capturing the prefill graph",
    "Lowering to edge": "lowering to Core ML",
    "Converting to ExecuTorch": "converting to ExecuTorch",
    "Saved ExecuTorch program": "finishing",
}


def export(
    checkpoint: str | Path,
    params: str | Path,
    options: ExportOptions,
    output: str | Path,
    progress: Progress | None = None,
) -> Path:
    """Write the `.pte` of a Meta-style checkpoint to `output`, whole or not at all.

    Raises HarnessError for options, params and weights that do not fit, and for a failed export.
    The latter names the stage, the reason and the exporter's log, which is kept on a failure only.
    Raises NotInstalledError when ExecuTorch is missing. An interrupt ends the child and leaves no
    file.
    """
    output = Path(output).absolute()
    if importlib.util.find_spec("executorch") is None:
        raise NotInstalledError("ExecuTorch is not installed; pip install 'executorch==1.4.*'")
    config = load_params(params)
    check_fit(options, config)
    show = progress or (lambda stage: None)
    with partial_file(output, FILE_IDENTIFIER) as partial:
        show(CHECKING)
        from harness.models.checkpoint import load_checkpoint

        load_checkpoint(
            checkpoint, config, options.quantization
        )  # mapped and released: the child reads the file itself
        request = {
            "checkpoint": str(Path(checkpoint).absolute()),
            "params": str(Path(params).absolute()),
            "output": str(partial),
            "options": options.as_dict(),
        }
        _run(request, show)
    return output


def _run(request: Mapping[str, object], progress: Progress) -> None:
    """Let a child process export; raises HarnessError with what the child reported."""
    stage = STARTING

    def follow(line: str) -> None:
        nonlocal stage
        words = line[:80].strip()
        begun = next((s for start, s in STAGES.items() if words.startswith(start)), stage)
        if begun != stage:
            stage = begun
            progress(stage)

    progress(stage)
    with Child(CHILD, "the exporter", _environment()) as child:
        try:
            child.ask(request, "asked to export", follow=follow)
        except (ChildError, CrashError) as error:
            log = _keep(child.output())
            raise HarnessError(
                f"the export failed while {stage}: {_reason(error, child)}. Log: {log}"
            ) from error


def _reason(error: ChildError | CrashError, child: Child) -> str:
    if isinstance(error, ChildError):
        return f"{error.kind}: {error.reason}"
    if not error.signal.startswith("SIG"):
        return f"{error.signal}: {_last_line(child.output(65536))}"
    perhaps = ", perhaps because memory ran out" if error.signal == "SIGKILL" else ""
    return f"{error.signal}: the exporter was killed{perhaps}"


def _environment() -> dict[str, str]:
    """Return the child's own variables: it imports this package, whatever the folder."""
    root = str(Path(__file__).resolve().parents[2])
    return {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _keep(log: bytes) -> Path:
    """Write a log to a temporary file that stays."""
    handle, name = tempfile.mkstemp(prefix="harness-export-", suffix=".log")
    with os.fdopen(handle, "wb") as file:
        file.write(log)
    return Path(name)


def _last_line(log: bytes) -> str:
    lines = log.decode("utf-8", "replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")

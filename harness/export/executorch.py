"""Exports a checkpoint through ExecuTorch's own static-LLM exporter, in a child process.

The exporter gets a process of its own for five reasons: it imports for eleven seconds, prints whole
graphs, writes into the temporary folder, changes global state of torch and coremltools, and may be
killed because it needs too much memory.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.artifact.pte_reader import FILE_IDENTIFIER
from harness.child import Child
from harness.errors import ChildError, CrashError, HarnessError
from harness.export import Progress
from harness.export.environments import Environment, installed
from harness.export.options import ExportOptions, check_fit
from harness.files import partial_file, private_folder
from harness.models.config import load_params
from harness.remedies import with_remedy

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
    environment: Environment | None = None,
) -> Path:
    """Write the `.pte` of a Meta-style checkpoint to `output`, whole or not at all.

    `environment` is the ExecuTorch that exports, by default the installed one.

    Raises HarnessError for options, params and weights that do not fit, and for a failed export.
    The latter names the stage, the reason and the exporter's log, which is kept on a failure only.
    Raises NotInstalledError when ExecuTorch is missing. An interrupt ends the child and leaves no
    file.
    """
    output = Path(output).absolute()
    environment = environment or installed()
    environment.check()
    config = load_params(params)
    check_fit(options, config)
    show = progress or (lambda stage: None)
    with partial_file(output, FILE_IDENTIFIER) as partial:
        show(CHECKING)
        from harness.models.checkpoint import load_checkpoint

        load_checkpoint(checkpoint, config, options.quantization)  # mapped and released
        with private_folder("harness-meta-files") as folder:
            from harness.export.meta_files import meta_files

            found = meta_files(Path(checkpoint).absolute(), Path(params).absolute(), folder)
            request = {
                "checkpoint": str(found[0]),
                "params": str(found[1]),
                "output": str(partial),
                "options": options.as_dict(),
            }
            _run(request, environment, show)
    return output


def _run(request: Mapping[str, object], environment: Environment, progress: Progress) -> None:
    """Export in a child process; raises HarnessError with the failure that it reported."""
    stage = STARTING

    def follow(line: str) -> None:
        nonlocal stage
        words = line[:80].strip()
        begun = next((s for start, s in STAGES.items() if words.startswith(start)), stage)
        if begun != stage:
            stage = begun
            progress(stage)

    progress(stage)
    with ExitStack() as stack:
        variables = {"PYTHONPATH": stack.enter_context(python_path_of(environment))}
        python = str(environment.python or sys.executable)
        child = stack.enter_context(Child(CHILD, environment.label, variables, python=python))
        try:
            child.ask(request, "asked to export", follow=follow)
        except (ChildError, CrashError) as error:
            log = _keep(child.output())
            raise HarnessError(
                f"the export failed while {stage}: {_reason(error, child)}. Log: {log}"
            ) from error


def _reason(error: ChildError | CrashError, child: Child) -> str:
    if isinstance(error, ChildError):
        return with_remedy(error.kind, error.reason)
    if not error.signal.startswith("SIG"):
        return f"{error.signal}: {_last_line(child.output(65536))}"
    perhaps = ", perhaps because memory ran out" if error.signal == "SIGKILL" else ""
    return f"{error.signal}: the exporter was killed{perhaps}"


@contextmanager
def python_path_of(environment: Environment) -> Iterator[str]:
    """Yield an environment's PYTHONPATH: an overlay comes first, and this package is importable.

    Another Python sees this package and none of its neighbours: in a folder of installed packages,
    these would come before that Python's own.
    """
    if environment.python is None:
        overlay = [str(environment.overlay)] if environment.overlay else []
        root = str(Path(__file__).resolve().parents[2])
        given = os.environ.get("PYTHONPATH")
        yield os.pathsep.join([*overlay, root, *([given] if given else [])])
        return
    with private_folder("harness-package") as folder:
        package = Path(__file__).resolve().parents[1]
        (folder / package.name).symlink_to(package, target_is_directory=True)
        yield str(folder)


def _keep(log: bytes) -> Path:
    """Write a log to a temporary file, which is kept; return its path."""
    handle, name = tempfile.mkstemp(prefix="harness-export-", suffix=".log")
    with os.fdopen(handle, "wb") as file:
        file.write(log)
    return Path(name)


def _last_line(log: bytes) -> str:
    lines = log.decode("utf-8", "replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")

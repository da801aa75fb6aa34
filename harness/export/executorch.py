"""Exports a checkpoint through ExecuTorch's own static-LLM exporter, in a child process.

The exporter gets a process of its own for five reasons: it imports for eleven seconds, prints whole
graphs, writes into the temporary folder, changes global state of torch and coremltools, and may be
killed because it needs too much memory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.artifact.pte_reader import FILE_IDENTIFIER
from harness.errors import HarnessError, NotInstalledError
from harness.export import Progress
from harness.export.options import ExportOptions, check_fit
from harness.files import partial_file, private_folder
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
KILL_AFTER_SECONDS = 5


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
    with (
        partial_file(output, FILE_IDENTIFIER) as partial,
        private_folder("harness-export") as folder,
    ):
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
            "report": str(folder / "report.json"),
        }
        _Child(folder, request).run(show)
    return output


@dataclass
class _Child:
    """The child process; its folder holds the request, the report, the log and temporary files."""

    folder: Path
    request: Mapping[str, object]
    stage: str = STARTING

    @property
    def log(self) -> Path:
        return self.folder / "export.log"

    def run(self, progress: Progress) -> None:
        """Run the child to its end; raises HarnessError with the failure that it reported."""
        request_path = self.folder / "request.json"
        request_path.write_text(json.dumps(self.request), encoding="utf-8")
        progress(self.stage)
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", CHILD, str(request_path)],
            stdin=subprocess.PIPE,  # held open: the child ends when it closes
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=_environment(self.folder),
            start_new_session=True,  # Ctrl-C reaches this process only, which ends the whole group
        )
        try:
            self._follow(process, progress)
            status = process.wait()
        finally:
            _end(process)
        if status:
            raise self._failure(status)

    def _follow(self, process: subprocess.Popen[bytes], progress: Progress) -> None:
        assert process.stdout is not None
        with self.log.open("wb") as log:
            for line in process.stdout:
                log.write(line)
                words = line[:80].decode("utf-8", "replace").strip()
                stage = next((s for start, s in STAGES.items() if words.startswith(start)), None)
                if stage is not None and stage != self.stage:
                    self.stage = stage
                    progress(stage)

    def _failure(self, status: int) -> HarnessError:
        kind, message = self._reported(status)
        known = {"HarnessError": HarnessError, "NotInstalledError": NotInstalledError}
        if kind in known:  # our own sentence explains it without the exporter's log
            return known[kind](message)
        kept = _keep(self.log)
        return HarnessError(f"the export failed while {self.stage}: {kind}: {message}. Log: {kept}")

    def _reported(self, status: int) -> tuple[str, str]:
        try:
            report = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
            lines = [line.strip() for line in report["message"].splitlines() if line.strip()]
            return report["kind"], lines[0].rstrip(".") if lines else "no message"
        except (OSError, ValueError, KeyError):  # it died before it could say why
            if status < 0:
                name = signal.Signals(-status).name
                return name, "the exporter was killed" + (
                    ", perhaps because memory ran out" if name == "SIGKILL" else ""
                )
            return f"exit status {status}", _last_line(self.log)


def _environment(folder: Path) -> dict[str, str]:
    """Return the child's environment: temporary files in its folder, this package importable."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": path}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the child and the processes that it started, if it has not ended yet."""
    if process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)
            try:
                process.wait(KILL_AFTER_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _keep(log: Path) -> Path:
    """Move a log out of the folder that is about to be deleted; return its new path."""
    handle, name = tempfile.mkstemp(prefix="harness-export-", suffix=".log")
    os.close(handle)
    shutil.move(log, name)
    return Path(name)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65536))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")

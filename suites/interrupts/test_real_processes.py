"""Real exports, as a user starts them: a signal ends them at seeded random times (`--every`).

ExecuTorch's exporter runs in a child process, which must end, too.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from harness.suites.interrupts.leftovers import content, is_whole, taken_for_whole
from harness.suites.interrupts.process import ROOT
from harness.suites.interrupts.test_interrupts import KEPT_BY_TORCH, OURS, SMALL

THEIRS = (*OURS[:5], "--exporter", "executorch", *SMALL, "-o", "{output}")
TIMES = 6
PATIENCE = 20  # seconds for a child to see that its parent is gone


class Export:
    """One exporter's command, writing below a folder."""

    def __init__(self, words: Sequence[str], folder: Path, model: Path) -> None:
        self.output, self.tmp = folder / "out" / "model.pte", folder / "tmp"
        if "coreml" in words:
            self.output = self.output.with_suffix("")
        for path in (self.output.parent, self.tmp):
            path.mkdir(exist_ok=True)
        self._words = [word.format(model=model, output=self.output) for word in words]

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command as a process."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *self._words],
            env={**os.environ, "TMPDIR": str(self.tmp), "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # a process that was started in the background ignores SIGINT, and so do its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def left(self) -> list[str]:
        """Return the names of all that is left beside the output."""
        found = [*self.output.parent.iterdir(), *self.tmp.iterdir()]
        return [p.name for p in found if p != self.output and not p.name.startswith(KEPT_BY_TORCH)]


def gone(processes: list[psutil.Process]) -> bool:
    """Wait for processes, and return whether all have ended soon."""
    return not psutil.wait_procs(processes, timeout=PATIENCE)[1]


@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("words", [OURS, THEIRS], ids=["ours", "executorch"])
def test_a_real_export_is_whole_or_absent(
    words: Sequence[str], ending: str, model: Path, tmp_path: Path, every: bool
) -> None:
    if not every:
        pytest.skip("minutes of exports; `--every` runs them")
    whole_run = Export(words, tmp_path, model)
    for _ in range(2):  # the first warms up
        start = time.monotonic()
        assert whole_run.start().wait() == 0 and whole_run.left() == []
        lasts = time.monotonic() - start
    whole = content(whole_run.output)
    ended = 0
    for number in range(TIMES):
        folder = tmp_path / str(number)
        folder.mkdir()
        export = Export(words, folder, model)
        process = export.start()
        moment = random.Random(f"{ending} {number}").uniform(0.1, 1.0) * lasts
        time.sleep(moment)
        try:
            children = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        process.send_signal(getattr(signal, ending))
        status = process.wait(60)
        print(f"{ending} after {moment:.1f} of {lasts:.1f} s: status {status}, {export.left()}")
        assert gone(children), f"{ending} after {moment:.1f} s: {children} go on"
        finished = whole_run.output if words is THEIRS else None
        # it was faster than the signal, or it was done and Python was ending
        if status == 0 or (status == -signal.SIGINT and export.output.exists()):
            assert is_whole(export.output, whole, finished)
            continue
        ended += 1
        tidy = {"SIGINT": 130, "SIGTERM": 143}.get(ending)
        assert status == (tidy or -signal.SIGKILL) or moment < 2
        assert not export.output.exists() or ending == "SIGKILL"  # whole, as judged below
        assert list(taken_for_whole(export.output.parent, whole, {}, finished)) == []
        if status == tidy:
            assert export.left() == [], f"after {moment:.1f} s"
    assert ended, "every export was faster than its signal"

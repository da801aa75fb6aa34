"""Coverage-guided fuzzing of one family of readers, by atheris, in a process of its own.

The process goes on after a fault, which it writes into the folder of faults once for each place in
the code: the input, and beside it what happened. Only what ends the process (a crash, a hang of
native code) starts it again.

`python -m harness.suites.fuzz.guided FAMILY SOURCES CORPUS FAULTS SCRATCH SECONDS` is that process.
libFuzzer ends it without cleaning up: the parent owns its scratch folder. With a file for CORPUS
and no SECONDS, the process attempts that input alone.
"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

PROCESS = "harness.suites.fuzz.guided"
SOUND = "sound-"  # how the names of the first files of a corpus begin
LONGEST = 5.0  # seconds of processor's time that an input may take
HANG = 60  # seconds by the clock after which libFuzzer ends the process
MAX_INPUT = 1 << 16  # bytes; the sound files have at most half of them
_STATUS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
_STRUCTURED = 0.5  # the share of inputs that keep the file's structure
_QUICK_DEATHS = 3  # in a row, after which a family is given up
_GIGABYTE = 1 << 30
_SLACK = 256 << 20  # address space that is mapped and not used


@dataclass
class Outcome:
    """What fuzzing a family gave: executions, branches, features, files of the corpus, faults."""

    family: str
    executions: int = 0
    edges: int = 0
    features: int = 0
    corpus: int = 0
    faults: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.family:10} {self.executions:,} executions, {self.edges:,} branches, "
            f"{self.features:,} features, {self.corpus:,} in the corpus, {len(self.faults)} faults"
        )


def fuzz(
    family: str,
    sources: Path,
    corpus: Path,
    faults: Path,
    seconds: float,
    progress: Callable[[Outcome], None],
) -> Outcome:
    """Fuzz a family for some seconds; files that `corpus` gets serve the next time, too.

    Faults of an earlier time are attempted first, and those that pass now are removed. Raises
    HarnessError, with what the process said, when it cannot go on.
    """
    from harness.errors import HarnessError  # not at the top: the process instruments them
    from harness.files import private_folder

    outcome, deaths = Outcome(family), 0
    faults.mkdir(parents=True, exist_ok=True)
    with private_folder("harness-fuzz") as scratch:
        for kept in _inputs(faults):
            if _passes(family, sources, kept, scratch):
                kept.unlink()
                kept.with_suffix(".txt").unlink(missing_ok=True)
        end = time.monotonic() + seconds
        folders = [str(folder) for folder in (sources, corpus, faults, scratch)]
        while (left := end - time.monotonic()) > 1:
            start, before = time.monotonic(), outcome.executions
            said = _one_process(outcome, folders, left, progress)
            early = time.monotonic() - start < left - 2
            deaths = deaths + 1 if early and outcome.executions == before else 0
            if deaths == _QUICK_DEATHS and _inputs(faults):
                break  # an input of the corpus ends the process
            if deaths == _QUICK_DEATHS:
                raise HarnessError(f"{family}: the fuzzer ends at once:\n{said}")
    outcome.faults = _inputs(faults)
    return outcome


def _inputs(faults: Path) -> tuple[Path, ...]:
    """Return the inputs in a folder of faults."""
    return tuple(sorted(path for path in faults.iterdir() if path.suffix != ".txt"))


def _passes(family: str, sources: Path, kept: Path, scratch: Path) -> bool:
    """Return whether an input is no fault any more, in a process that it may end or hang."""
    found = scratch / kept.name
    found.mkdir()
    folders = [str(path) for path in (sources, kept, found, scratch)]
    try:
        command = [sys.executable, "-m", PROCESS, family, *folders]
        ended = subprocess.run(command, capture_output=True, timeout=HANG, check=False)
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0 and not _inputs(found)


def _one_process(
    outcome: Outcome, folders: list[str], seconds: float, progress: Callable[[Outcome], None]
) -> str:
    """Run one process until it ends; return its last lines."""
    before = outcome.executions
    command = [sys.executable, "-m", PROCESS, outcome.family, *folders, str(int(seconds))]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        try:
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace").rstrip()
                lines = [*lines[-30:], line]
                if found := _STATUS.search(line):
                    count, outcome.edges, outcome.features, outcome.corpus = map(
                        int, found.groups()
                    )
                    outcome.executions = before + count
                    progress(outcome)
        finally:
            process.kill()
    return "\n".join(lines)


class Faults:
    """The faults of a run: each place in the code once, with the first input that reached it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, kind: str, place: str, data: bytes, text: str) -> None:
        """Write an input that is at fault, unless one of the same kind and place is there."""
        name = hashlib.sha256(f"{kind} {place}".encode()).hexdigest()[:12]
        path = self._folder / f"{kind}-{name}"
        if not path.exists():
            path.write_bytes(data)
            path.with_suffix(".txt").write_text(f"{kind} at {place}\n{text}", encoding="utf-8")


def attempt(read: Callable[[bytes], object], data: bytes, faults: Faults) -> None:
    """Read an input; write a fault unless it gives a result or HarnessError in time and memory."""
    from harness.errors import HarnessError
    from harness.suites.fuzz.worker import asked_for_too_much

    start = time.process_time()
    try:
        read(data)
    except HarnessError as error:
        if asked_for_too_much(error):
            faults.add("memory", _place(error), data, traceback.format_exc())
    except Exception as error:
        kind = "memory" if isinstance(error, MemoryError) else type(error).__name__
        faults.add(kind, _place(error), data, traceback.format_exc())
    taken = time.process_time() - start
    if taken > LONGEST:
        faults.add("slow", f"2^{int(taken).bit_length()} s", data, f"{taken:.1f} s")


def _place(error: BaseException) -> str:
    """Return the innermost line of the harness that an error comes from."""
    import harness

    frames = traceback.extract_tb(error.__traceback__)
    room = Path(harness.__file__).parent
    inside = [f for f in frames if Path(f.filename).is_relative_to(room)]
    ours = [f for f in inside if "suites" not in f.filename] or frames
    return f"{Path(ours[-1].filename).name}, {ours[-1].name}: {ours[-1].line}" if ours else ""


def main(words: Iterable[str] = ()) -> None:
    """Fuzz until the seconds are over, or attempt one input."""
    import atheris

    name, *rest = words or sys.argv[1:]
    sources, corpus, found, scratch = map(Path, rest[:4])
    with atheris.instrument_imports(include=["harness", "flatbuffers"]):
        from harness.child import limit_memory
        from harness.suites.fuzz import of_bytes
        from harness.suites.fuzz.readers import FAMILIES

        family, faults = FAMILIES[name], Faults(found)
        read = family.prepare(sources, scratch)
        for path in corpus.glob(f"{SOUND}*"):  # they import what readers import when they need it
            attempt(read, path.read_bytes(), faults)

    def one_input(data: bytes) -> None:
        limit_memory(4 * len(data) + _GIGABYTE + _SLACK)
        attempt(read, data, faults)

    if corpus.is_file():
        one_input(corpus.read_bytes())
        return

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < _STRUCTURED:
            try:
                changed = family.mutated(data, rng)
            except ValueError:
                changed = rng.choice(of_bytes.MUTATIONS)(data or b"\0", rng)
            if 0 < len(changed) <= max_size:
                return changed
        return bytes(atheris.Mutate(data, max_size))

    options = [f"-max_total_time={rest[4]}", f"-timeout={HANG}", "-rss_limit_mb=0"]
    options += [f"-max_len={MAX_INPUT}", f"-artifact_prefix={found}/", "-len_control=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one_input, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

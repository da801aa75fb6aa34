"""Runs cases in child processes, one after another: a crash or a hang ends a child, not the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.child import Child
from harness.errors import CallTimeoutError, ChildError, CrashError, HarnessError

WORKER = "harness.suites.fuzz.worker"
SECONDS = 10.0  # of the processor's time that a case may take: a busy machine does not stretch it
LONGEST = 120.0  # that a case may take by the clock: waiting takes no processor's time
STARTING = 300.0  # that a child may take to import and to execute the sound artifacts
SOUND = frozenset({"executed", "loaded", "refused"})


@dataclass(frozen=True)
class Result:
    """The outcome of a case, of `kind`.

    A mutated artifact may be `executed`, `loaded` (and not called, as its inputs would be too
    large) or `refused` with a sentence. It may not end in an `exception`, in `nameless` (a sentence
    that does not say which artifact), `memory`, `hang` or `crash`.
    """

    case: int
    kind: str
    outcome: str
    said: str = ""
    seconds: float = 0.0
    memory: int = 0

    @property
    def passes(self) -> bool:
        """Whether a mutated artifact may have this outcome."""
        return self.outcome in SOUND


def results(folder: Path, seed: int, first: int, end: int) -> Iterator[Result]:
    """Yield the result of every case.

    Raises HarnessError when a child fails between cases: it does so when a sound artifact is not
    executed.
    """
    while first < end:
        with Child(WORKER, "the worker", arguments=[str(folder), str(seed)]) as child:
            while child.end.alive and first < end:
                yield _attempted(child, first)
                first += 1


def _attempted(child: Child, case: int) -> Result:
    """Let a child make a case and attempt it."""
    try:
        kind = child.ask({"make": case}, f"asked to make case {case}", STARTING)
    except (CallTimeoutError, ChildError, CrashError) as error:
        printed = child.output(4000).decode("utf-8", "replace")
        raise HarnessError(f"{error}\n{printed}") from error
    try:
        attempt = {"attempt": case}
        doing = f"asked to attempt case {case}"
        return Result(case, kind, **child.ask(attempt, doing, LONGEST, processor_seconds=SECONDS))
    except CallTimeoutError:
        return Result(case, kind, "hang")
    except (ChildError, CrashError) as error:
        child.end()
        return Result(case, kind, "crash", said=str(error))


def counted(found: list[Result]) -> str:
    """Return the counts by kind and outcome, and the longest and the largest case."""
    lines = []
    for kind in sorted({result.kind for result in found}):
        outcomes = Counter(result.outcome for result in found if result.kind == kind)
        said = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())
        lines.append(f"{kind:8} {said}")
    slowest = max(found, key=lambda result: result.seconds)
    largest = max(found, key=lambda result: result.memory)
    failed = sum(not result.passes for result in found)
    lines += [
        f"longest: {slowest.seconds:.1f} s (case {slowest.case}); "
        f"most memory: {largest.memory / 1e6:.0f} MB (case {largest.case})",
        f"{len(found):,} cases, {failed} failed",
    ]
    return "\n".join(lines)

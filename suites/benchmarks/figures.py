"""Measures an export on a runtime, with eager PyTorch in fp32 beside it as the control.

Both take turns in every round, so that what slows the machine down slows both, and the ratio shows
the artifact alone. A run whose logits are wrong has no figures. Run as a program, this module is
the process that exports.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from harness.child import Child, peak_memory, serve
from harness.errors import HarnessError
from harness.files import partial_file
from harness.fixtures.cache import fixture
from harness.fixtures.project import require
from harness.runtimes import BASELINE, runtime_row
from harness.suites.conformance.subjects import Subjects, modes_of, row_of

if TYPE_CHECKING:
    from harness.generate.session import Session as Sequence
    from harness.subject import Subject

STEPS = 8  # decode steps at each depth; a round's sample is the least
LOADS = 3  # processes, each of which loads, runs and loads again
SEED = 20_261_127
CORE_ML = ", Core ML"  # ends the name of a figure that Core ML's own clock measured
T = TypeVar("T")
# figure -> its samples, and the control's on which it depends
Figures = dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Session:
    """What is measured of one export; results are kept as files in `folder`."""

    folder: Path
    subject: str
    exporter: str
    mode: str
    rounds: int

    def measured(self, runtime: str) -> Figures:
        """Return the figures on a runtime, measured now unless this folder has them.

        Raises NotImplementedError for a mode that the subject does not have, and HarnessError for
        a failed export and wrong results; the failure is kept, too.
        """
        if self.mode not in (modes := modes_of(self.subject)):
            raise NotImplementedError(f"{self.subject} has no mode {self.mode}, only {modes[0]}")
        path = self._path(f"{runtime}.json")
        if not path.exists():
            try:
                record: dict[str, object] = {"figures": self._measure(runtime)}
            except HarnessError as error:
                record = {"error": str(error)}
            _write(path, record)
        match json.loads(path.read_text(encoding="utf-8")):
            case {"figures": dict(figures)}:
                return {name: (values, control) for name, (values, control) in figures.items()}
            case {"error": str(message)}:
                raise HarnessError(message)
        raise AssertionError(f"{path} is damaged")

    def _path(self, ending: str) -> Path:
        words = (self.subject, self.exporter, self.mode, ending)
        return self.folder / "-".join(words).replace("/", "_").replace(":", "_")

    def _measure(self, runtime: str) -> Figures:
        artifact, exported = self._artifact()
        from harness.subject import Subject  # torch, which the export before it does without

        subject = Subject(artifact)
        size = _bytes(artifact)
        if not subject.is_language_model:
            is_control = runtime == BASELINE  # it executes language models only
            calls = {} if is_control else _calls(subject, runtime, self.rounds)
            return {"size": ([size], []), **calls, **exported}
        figures = Pair(subject, runtime).figures(self.rounds)
        weights = 4.0 * subject.weights.size
        figures["size"] = ([size], [weights])
        if exported:
            seconds = [ms / 1000 for ms in figures["load, cold"][1]]
            figures["export"] = (exported["export"][0], [min(seconds)])
            figures["export memory"] = (
                exported["export memory"][0],
                [min(figures["peak memory"][1])],
            )
        return figures

    def _artifact(self) -> tuple[Path, Figures]:
        """Return the artifact, and the figures of its export, which is made once."""
        row = row_of(self.subject)
        if "artifact" in row.files:
            require(row, "artifact")
            return row.files["artifact"], {}
        ending = "export" if self.exporter == "coreml" else "export.pte"
        output, record = self._path(ending), self._path("export.json")
        if not record.exists():
            request = {
                "subject": self.subject,
                "exporter": self.exporter,
                "mode": self.mode,
                "output": str(output),
            }
            what = f"{self.exporter}'s export of {self.subject}/{self.mode}"
            with Child(__name__, what) as child:
                answer = child.ask(request, "asked to export")
            _write(record, answer)
        answer = json.loads(record.read_text(encoding="utf-8"))
        return output, {"export": ([answer["s"]], []), "export memory": ([answer["bytes"]], [])}


def export(request: dict[str, str]) -> dict[str, float]:
    """Export; return the seconds that it took, and the peak bytes of the largest process."""
    from harness.export.exporters import get_exporter

    exporter = get_exporter(request["exporter"])
    subjects = Subjects(lambda stage: None)
    options = subjects.options(request["subject"], request["mode"])
    source = fixture(row_of(request["subject"]).name)
    start = time.perf_counter()
    exporter.export(source.checkpoint, source.params, options, request["output"])
    seconds = time.perf_counter() - start
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return {"s": seconds, "bytes": max(peak_memory(), children * unit)}


class Pair:
    """A language model on a runtime and on the control, with the logits that both must give."""

    def __init__(self, subject: Subject, runtime: str) -> None:
        import torch

        from harness.checks.accuracy import allowed_on, prompt_length, tolerances
        from harness.generate.session import Session
        from harness.models.stream import Passage

        self._subject = subject
        self._names = (runtime, BASELINE)
        # Two sessions even where both are the control: their ratio shows the noise.
        self._sessions = [Session.open(subject.artifact, name) for name in self._names]
        layout = self._sessions[0].layout
        steps = min(STEPS, layout.context // 4)
        if not steps:
            raise HarnessError(
                f"{subject.artifact.path}: a context of {layout.context} tokens is too short"
            )
        self._steps = steps
        self._depths = {"0": 0, "half": layout.context // 2, "full": layout.context - steps}
        self._n_prompt = prompt_length(subject)
        generator = torch.Generator().manual_seed(SEED)
        tokens = torch.randint(layout.vocab_size, (layout.context,), generator=generator)
        self._tokens: list[int] = tokens.tolist()
        rows = frozenset(range(layout.context))
        self._allowed = {}
        for name in self._names:
            passage = Passage(tuple(self._tokens), rows, cost=runtime_row(name).rounds)
            on_tokens = allowed_on(subject, passage)
            self._allowed[name] = max(*tolerances(subject, name).values(), on_tokens)
            self._wanted = subject.computed(passage).logits(range(layout.context))

    def figures(self, rounds: int) -> Figures:
        """Time rounds after a warm-up, the sides in turn, and loads in new processes."""
        found: tuple[dict[str, list[float]], ...] = ({}, {})
        for number in range(1 + rounds):
            for side in (0, 1) if number % 2 else (1, 0):
                timed = self._round(self._sessions[side], self._names[side])
                for name, value in timed.items() if number else ():
                    found[side].setdefault(name, []).append(value)
        for number in range(min(LOADS, rounds)):
            for side in (0, 1) if number % 2 else (1, 0):
                for name, value in self._loads(self._names[side]).items():
                    found[side].setdefault(name, []).append(value)
        values, control = found
        return {name: (values[name], control[name.removesuffix(CORE_ML)]) for name in values}

    def _round(self, session: Sequence, runtime: str) -> dict[str, float]:
        """Return the milliseconds of one round, after its logits were compared."""
        import torch

        from harness.checks.accuracy import error
        from harness.measure.timing import WrongAnswerError

        def timed(action: Callable[[], torch.Tensor], position: int) -> Took:
            row, took = _clocked(action)
            rows.append(row)
            positions.append(position)
            return took

        rows: list[torch.Tensor] = []
        positions: list[int] = []
        found: dict[str, float] = {}
        with _no_collection():
            session.reset()
            prompt = self._tokens[: self._n_prompt]
            took = timed(lambda: session.prefill(prompt), self._n_prompt - 1)
            found |= _figures("first token", [took])
            for depth, start in self._depths.items():
                session.reset()
                if start:
                    before = self._tokens[:start]
                    took = timed(lambda before=before: session.prefill(before), start - 1)  # type: ignore[misc]
                    found |= _figures("prefill", [took], start)  # the last, which is the longest
                steps = [
                    timed(lambda at=at: session.decode(self._tokens[at]), at)  # type: ignore[misc]
                    for at in range(start, start + self._steps)
                ]
                found |= _figures(f"decode at {depth}", steps)
        off = error(torch.stack(rows), self._wanted[positions])
        if not off.relative <= self._allowed[runtime]:
            raise WrongAnswerError(
                f"{self._subject.artifact.path} on {runtime}: the timed run's logits are off by "
                f"{off.relative:.3g} of the largest, {self._allowed[runtime]:.3g} is allowed; its "
                "time is not a result"
            )
        return found

    def _loads(self, runtime: str) -> dict[str, float]:
        """Load in a new process, run one round there, measure its memory, and load again."""
        from harness.artifact import open_artifact
        from harness.generate.session import Session
        from harness.runtimes import isolated_runtime

        isolated = isolated_runtime(runtime)
        artifact = open_artifact(self._subject.artifact.path)
        session, cold = _clocked(lambda: Session.open(artifact, isolated))
        self._round(session, runtime)
        before, peak = isolated.memory(artifact)
        _, cached = _clocked(lambda: Session.open(artifact, isolated))
        loads = _figures("load, cold", [cold]) | _figures("load, cached", [cached])
        return {**loads, "peak memory": float(peak - before)}


class Took(NamedTuple):
    """Milliseconds of an action, and those of them by Core ML's own clock; 0 elsewhere."""

    call: float
    core_ml: float


def _clocked(action: Callable[[], T]) -> tuple[T, Took]:
    from harness.measure.timing import milliseconds
    from harness.runtimes.base import core_ml_ns

    told = core_ml_ns()
    result, call = milliseconds(action)
    return result, Took(call, (core_ml_ns() - told) / 1e6)


def _figures(name: str, times: list[Took], tokens: int = 1) -> dict[str, float]:
    """Return the least time per token, and the least by Core ML's clock if it told them all."""
    call, core_ml = (min(clock) / tokens for clock in zip(*times, strict=True))
    return {name: call} | ({name + CORE_ML: core_ml} if core_ml else {})


def _calls(subject: Subject, runtime: str, rounds: int) -> Figures:
    """Time loads, and calls of all methods, of a model that is not a language model."""
    from harness.measure.timing import timed_calls

    timed = timed_calls(subject, runtime, rounds)
    calls = [sum(one) for one in zip(*timed.calls.values(), strict=True)]
    return {"load, cached": (timed.loads, []), "calls": (calls, [])}


def _write(path: Path, value: object) -> None:
    with partial_file(path) as partial:
        partial.write_text(json.dumps(value), encoding="utf-8")


def _bytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    return float(sum(file.stat().st_size for file in files if file.is_file()))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage before a round and not in it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


if __name__ == "__main__":
    serve(export)

"""Faults in runners and tools: ExecuTorch's runner, which `suites/runners` breaks, and ours.

Ours have a line changed while a sound artifact is judged; ExecuTorch's script runs in a child.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from harness.checks import Check, artifact_checks, run_check
from harness.checks.run import defined_in
from harness.errors import HarnessError, NotInstalledError
from harness.export.environments import placed
from harness.export.exporters import Exporter, get_exporter
from harness.packages import extract
from harness.runtimes import REFERENCE
from harness.subject import Subject
from harness.suites.conformance.subjects import Subjects
from harness.suites.exporters import at_hand
from harness.suites.generation import sequences
from harness.suites.mutants.faults import BOTH, FOLDER, PTE, SINGLE, Complaints, Mutant, fault
from harness.suites.mutants.judge import opened, said, sound
from harness.suites.mutants.of_exporters import changed, line_of
from harness.suites.runners.faults import FAULTS
from harness.suites.runners.faults import Fault as Line
from harness.suites.runners.script import Bench, Scripts
from harness.suites.runners.test_faults import caught


@functools.cache
def _exporter() -> Exporter:
    name = next(at_hand(), None)
    if name is None:
        raise NotInstalledError("no ExecuTorch is at hand: `harness exporters` says why")
    return get_exporter(name)


@functools.cache
def _scripts() -> Scripts:
    return Scripts(placed(_exporter().place), _folder())


@functools.cache
def _bench(model: str, mode: str) -> Bench:
    return Bench(_scripts(), _exporter(), model, mode, _folder())


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="harness-runners-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def judge_runner(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Run ExecuTorch's script, sound and broken; `runner` says which place reported it."""
    name = mutant.mutate() if mutant.mutate else None
    assert isinstance(name, str)  # each row is judged by the sound script, too
    healthy, broken = caught(_bench(FAULTS[name].fixture, mutant.mode), name)
    if not healthy.ok:
        return {"the sound runner": (healthy.message,)}
    return {"runner": (broken.message,)}


def judge_generator(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Judge a sound artifact of two layers while a line of our generator is changed."""
    source = _sound(mutant.mode)
    known: dict[str, Check[Subject]] = {**artifact_checks(), **defined_in(sequences)}
    with ExitStack() as stack:
        if mutant.mutate:
            stack.enter_context(changed(line_of(mutant)))
        subject = opened(source.artifact.path, source)
        return said(
            run_check(
                known[name],
                subject,
                REFERENCE if known[name].takes_runtime else None,
                suite="mutants",
            )
            for name in checks
        )


@functools.cache
def _sound(mode: str) -> Subject:
    return Subjects(lambda stage: None, unshared=False).get("coreml:layers-2", mode)


REPORTS = {
    "mask never updated": ("ET 9101",),
    "BOS doubled": ("ET 16606",),
    "cache not handed over": ("ET 21979",),
    "padding stored": ("ET 21384",),
}
for _name, _fault in FAULTS.items():
    fault(
        f"a runner: {_name}",
        {"runner": rf"^\{{'{_fault.place}'\}} reported it"},
        *REPORTS.get(_name, ()),
        room="runner",
        judge=judge_runner,
        kinds=PTE,
        modes=_fault.modes,
        tested=(),
        has_control=False,
    )(partial(str, _name))


def ours(function: str, old: str, new: str) -> Callable[[], Line]:
    """Return what makes a line of our generator."""
    return lambda: Line("", f"harness.generate.{function}", old, new)


row = partial(fault, room="runner", judge=judge_generator, kinds=FOLDER, tested=(), modes=BOTH)
row("a reset that keeps the caches", {"residues": "prompt lengths error"}, "ET 21979")(
    ours("session:Session.reset", "self.rewind(0)", "self._tokens, self._stored = [], 0")
)
row(
    "a mask that opens a slot late",
    {"calls": "row 0 of the mask is not that of position 8"},
    "ET 9101",
)(
    ours(
        "caches:Slots.hold",
        "_additive(self.held[0, 0] >= 0)",
        "_additive((self.held[0, 0] >= 0) & (self.held[0, 0] < position))",
    )
)
row("rows of the tables one late", {"calls": "cos is not rows 0 to 7 of the table"}, "ET 14630")(
    ours(
        "inputs:BoundMethod.__call__",
        "slice(position, position +",
        "slice(position + 1, 1 + position +",
    )
)
row(
    "a lookahead that accepts every branch",
    {"lookahead": "it gives .* greedy"},
    "ET 12725",
    "ET 16463",
    modes=SINGLE,
)(
    ours(
        "lookahead:LookaheadDecoder._child",
        "children.get((row, token))",
        "next((r for (parent, _), r in children.items() if parent == row), None)",
    )
)
row(
    "a context that is one too long",
    {"residues": "longer than the context, but it is not refused"},
    "ET 15042",
)(ours("session:Session._require_room", "if n > self.room:", "if n > self.room + 1:"))
row(
    "the last position of the chunk",
    {"calls": r"last_valid_token_pos is \[7\]"},
    modes=("multifunction",),
)(ours("inputs:BoundMethod.__call__", "len(tokens) - 1", "phase.input_len - 1"))


def judge_extraction(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Extract the packages of a sound `.pte`, and compare them with what is inside."""
    artifact = sound(mutant.mode).artifact
    with ExitStack() as stack:
        if mutant.mutate:
            stack.enter_context(changed(line_of(mutant)))
        try:
            extract.extract_packages(artifact, mutant.folder / "out")
        except HarnessError as error:
            return {"extract": (str(error),)}
    found = []
    for number, bundle in enumerate(artifact.bundles):
        folder = mutant.folder / "out" / f"package_{number}"
        for name, content in bundle.files.items():
            if not (folder / name).is_file() or (folder / name).read_bytes() != bytes(content):
                found.append(f"package {number}, {name}: it is not what the .pte holds")
    return {"extract": tuple(found)} if found else {}


row = partial(fault, room="runner", judge=judge_extraction, kinds=PTE, modes=BOTH)
row(
    "an extraction that leaves weights out",
    {"extract": r"package 0, .*weight.bin: it is not what"},
    "ET 15924",
)(
    lambda: Line(
        "",
        "harness.packages.extract:extract_packages",
        "write_files(source.files,",
        "write_files({n: f for n, f in source.files.items() if not n.endswith('.bin')},",
    )
)

"""Runtimes by name, `kind[:option]`: a row each, whose class is imported when it is needed.

To add a runtime, write its class (see `base.Runtime`) in a module of this room and add its row to
`RUNTIMES`. The bounds of parity, the command line, conformance and the benchmarks read the row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING

from harness.errors import HarnessError, NotInstalledError
from harness.pte import TensorSpec
from harness.runtimes.base import Method, Runtime
from harness.text import did_you_mean

if TYPE_CHECKING:
    from harness.runtimes.isolated import IsolatedRuntime

__all__ = [
    "BASELINE",
    "REFERENCE",
    "RUNTIMES",
    "Method",
    "Runtime",
    "RuntimeRow",
    "TensorSpec",
    "default_runtime",
    "get_runtime",
    "isolated_runtime",
    "runtime_row",
]

_SEPARATOR = re.compile("[:@]")


@dataclass(frozen=True)
class RuntimeRow:
    """One runtime: its name, its class, and where it is used.

    `import_class` returns the class, which takes the name's option, if any. `rounds` says that the
    runtime computes in the artifact's own precision: its bounds are calibrated. A runtime that
    carries more precision gets a fixed, smaller bound.

    `needs_child` isolates native code that may crash in a child process. `asks_in_child` is for a
    runtime that imports for seconds before it knows whether it is available.

    `usual` makes the row the meaning of its kind alone. `preference` ranks the candidates for this
    machine's default runtime: the available one with the highest number above 0 is the default.
    Checks execute an artifact on the `reference` when they need its values without rounding errors.
    Benchmarks give speeds as multiples of the `baseline`'s. Each is one row.

    With `has_places`, the name may go on with `@PLACE`, another Python's: see `executorch.py`.
    With `pte_only`, it executes `.pte` files and no other artifact.

    The last three say where the runtime is used unless others are named: in the conformance suite,
    by `harness check`, in benchmarks.
    """

    name: str
    import_class: Callable[[], Callable[..., Runtime]]
    rounds: bool
    needs_child: bool = False
    asks_in_child: bool = False
    usual: bool = False
    preference: int = 0
    reference: bool = False
    baseline: bool = False
    has_places: bool = False
    pte_only: bool = False
    in_conformance: bool = False
    in_check: bool = False
    timed: bool = False

    @property
    def kind(self) -> str:
        """The name's first part."""
        return _SEPARATOR.split(self.name)[0]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of the class: the option, if the name has one."""
        return tuple(_SEPARATOR.split(self.name, maxsplit=1)[1:])

    @property
    def place(self) -> str:
        """The place of the Python that runs it, "" for this one."""
        return self.name.partition("@")[2] if self.has_places else ""


def _mil() -> Callable[..., Runtime]:
    from harness.runtimes.mil import MilRuntime

    return MilRuntime


def _eager() -> Callable[..., Runtime]:
    from harness.runtimes.eager import EagerRuntime

    return EagerRuntime


def _coreml() -> Callable[..., Runtime]:
    from harness.runtimes.coreml import CoreMLRuntime

    return CoreMLRuntime


def _iphone() -> Callable[..., Runtime]:
    from harness.runtimes.iphone import IPhoneRuntime

    return IPhoneRuntime


def _executorch() -> Callable[..., Runtime]:
    from harness.runtimes.executorch import ExecuTorchRuntime

    return ExecuTorchRuntime


def _coreml_row(units: str, usual: bool = False, preference: int = 0) -> RuntimeRow:
    return RuntimeRow(
        f"coreml:{units}",
        _coreml,
        rounds=True,
        needs_child=True,
        usual=usual,
        preference=preference,
        in_conformance=True,
        timed=True,
    )


RUNTIMES = {
    row.name: row
    for row in (
        RuntimeRow("mil:strict", _mil, rounds=True, in_conformance=True, in_check=True, timed=True),
        RuntimeRow(
            "mil:widen",
            _mil,
            rounds=False,
            usual=True,
            preference=1,
            reference=True,
            in_conformance=True,
            in_check=True,
            timed=True,
        ),
        RuntimeRow("mil:double", _mil, rounds=False),
        RuntimeRow("eager:fp16", _eager, rounds=True),
        RuntimeRow("eager:fp32", _eager, rounds=False, usual=True, baseline=True, timed=True),
        RuntimeRow("eager:fp64", _eager, rounds=False),
        _coreml_row("cpu_only", preference=2),  # a Mac without a Neural Engine, as hosted ones are
        _coreml_row("cpu_and_gpu"),
        _coreml_row("cpu_and_ne", usual=True, preference=3),
        RuntimeRow("coreml:iphone", _iphone, rounds=True, needs_child=True, timed=True),
        RuntimeRow(
            "executorch",
            _executorch,
            rounds=True,
            needs_child=True,
            asks_in_child=True,
            has_places=True,
            pte_only=True,
            in_conformance=True,
            timed=True,
        ),
    )
}
"""The rows of all runtimes by name, whether they are available here or not."""

REFERENCE = next(row.name for row in RUNTIMES.values() if row.reference)
"""The name of the runtime that gives an artifact's values without rounding errors, anywhere."""

BASELINE = next(row.name for row in RUNTIMES.values() if row.baseline)
"""The name of the runtime whose speed is 1 in benchmarks."""


def runtime_row(name: str) -> RuntimeRow:
    """Return the row of a runtime; a kind alone means its usual option ("mil" is "mil:widen").

    Raises HarnessError with the known names for any other.
    """
    given = name.removesuffix(":")  # "mil:" has no option either
    usual = (row for row in RUNTIMES.values() if row.kind == given and row.usual)
    row = RUNTIMES.get(given) or next(usual, None)
    kind, _, place = name.partition("@")
    if place and kind in RUNTIMES and RUNTIMES[kind].has_places:
        row = replace(RUNTIMES[kind], name=name)
    if row is None:
        hint = did_you_mean(name, RUNTIMES)
        raise HarnessError(f"no runtime '{name}'; {hint}choose from {', '.join(RUNTIMES)}")
    return row


def get_runtime(name: str) -> Runtime:
    """Return a runtime, isolated if its row says so; raises as `runtime_row` does."""
    row = runtime_row(name)
    runtime = isolated_runtime(name) if row.needs_child else row.import_class()(*row.arguments)
    assert runtime.name == row.name, f"{type(runtime)}: its name is {runtime.name}, not {row.name}"
    return runtime


def usable_runtimes(names: Iterable[str]) -> list[str]:
    """Return the full names of runtimes, each once.

    Raises NotInstalledError for one that cannot be used here, HarnessError for an unknown name.
    """
    names = list(names)
    for name in names:
        if reason := get_runtime(name).unavailable():
            raise NotInstalledError(f"runtime {name} cannot be used here: {reason}")
    return list(dict.fromkeys(get_runtime(name).name for name in names))


def isolated_runtime(name: str) -> IsolatedRuntime:
    """Return any runtime in child processes, for example where its memory is measured."""
    from harness.runtimes.isolated import IsolatedRuntime

    row = runtime_row(name)
    return IsolatedRuntime(
        row.import_class(),
        *row.arguments,
        ask_here=not row.asks_in_child,
        place=row.place,
        pte_only=row.pte_only,
        needs_core_ml=row.asks_in_child,
    )


def default_runtime() -> str:
    """Return the name of the runtime for this machine: Core ML on a Mac, our executor elsewhere.

    It is the available one that its row prefers most.
    """
    candidates = [row for row in RUNTIMES.values() if row.preference]
    preferred = sorted(candidates, key=attrgetter("preference"), reverse=True)
    return next(row.name for row in preferred if get_runtime(row.name).unavailable() is None)

"""Runs our executor beside Core ML itself in a test, and compares what both return.

The test judges Core ML by its own expected values. What our executor gives for the same model and
the same inputs is compared with Core ML's results here, per operation: see `cases`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from harness.errors import HarnessError
from harness.results import Case, Figure
from harness.shim.model import ModelProxy

BOUNDS = {"fp32": 1e-4, "fp16": 2.0**-9}
"""Of the largest value: the bound of coremltools' own tests, and two units in fp16's last place."""
_PLAIN = ("const", "cast", "identity")  # operations that surround the tested one
_MAX_PROBLEM = 200


@dataclass
class Comparison:
    """What our executor gave beside one test's predictions.

    `operation` names what the program tests, `values` counts what was compared, `error` is the
    largest difference relative to the largest value of Core ML's, `problem` why nothing was.
    """

    operation: str = ""
    precision: str = "fp32"
    values: int = 0
    error: float = 0.0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, which xdist can carry."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the comparison that `to_json` gave."""
        return cls(**data)


class Beside:
    """One model in our executor, loaded with the arguments of Core ML's proxy."""

    at_work: ClassVar[bool] = False

    def __init__(self, comparison: Comparison, arguments: tuple[Any, ...], half: Any) -> None:
        self._comparison = comparison
        self._states: dict[int, Any] = {}
        self._model: ModelProxy | None = None
        with self._working():
            self._model = ModelProxy(*arguments[:4])
        if self._model is None:
            return
        comparison.operation = comparison.operation or _operation(self._model)
        comparison.precision = "fp16" if half(self._model) else comparison.precision

    def predict(self, values: Mapping[str, Any], results: Mapping[str, Any], *state: Any) -> None:
        """Predict on the inputs that Core ML was given, and compare with its results.

        A state is Core ML's from before the prediction, which `before` has copied.
        """
        if self._model is None:
            return
        ours: Mapping[str, Any] | None = None
        with self._working():
            ours = self._model.predict(values, *(self._states.get(id(s)) for s in state))
        if ours is not None:
            for name, native in results.items():
                self._compare(np.asarray(ours.get(name)), np.asarray(native))

    def before(self, *state: Any) -> None:
        """Copy Core ML's state into ours, before Core ML's prediction changes it."""
        if self._model is None:
            return
        with self._working():
            for native in state:
                ours = self._states.setdefault(id(native), self._model.newState())
                for name in self._model.state_names:
                    ours.write_state(name, np.asarray(native.read_state(name)))

    def _compare(self, ours: np.ndarray, native: np.ndarray) -> None:
        found = self._comparison
        if ours.shape != native.shape or native.dtype.kind not in "fiub":
            found.problem = found.problem or f"{ours.dtype} {ours.shape}, not {native.shape}"
            return
        have, want = ours.astype(np.float64), native.astype(np.float64)
        same = (have == want) | (np.isnan(have) & np.isnan(want))
        scale = np.max(np.abs(want), initial=0.0, where=np.isfinite(want)) or 1.0
        worst = np.max(np.abs(have - want), initial=0.0, where=~same) / scale
        found.error = max(found.error, float(np.nan_to_num(worst, nan=np.inf)))
        found.values += native.size

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Run ours; an error of it is the comparison's problem, and not the test's."""
        Beside.at_work = True
        try:
            yield
        except (RuntimeError, HarnessError) as error:
            self._comparison.problem = self._comparison.problem or str(error)[:_MAX_PROBLEM]
        finally:
            Beside.at_work = False


def _operation(model: ModelProxy) -> str:
    """Return the operations of a program that are not mere surroundings, as one name."""
    names = sorted({name for name in model.operations if name not in _PLAIN})
    return "+".join(names) if 0 < len(names) <= 3 else f"{len(names)} operations"


@dataclass
class _Row:
    values: int = 0
    tests: int = 0
    error: float = 0.0
    problems: list[str] = field(default_factory=list)


def cases(found: Iterable[Comparison]) -> Iterator[Case]:
    """Yield a case for each operation and precision: our executor against Core ML."""
    rows: dict[tuple[str, str], _Row] = defaultdict(_Row)
    for one in found:
        row = rows[one.operation or "not loaded", one.precision]
        row.tests += 1
        row.values += one.values
        row.error = max(row.error, one.error)
        row.problems += [one.problem] if one.problem else []
    for (operation, precision), row in sorted(rows.items()):
        bound = BOUNDS[precision]
        reasons = []
        if not row.error <= bound:
            reasons.append(f"differs from Core ML by {row.error:.3g} of the largest value")
        if row.problems:
            reasons.append(f"{len(row.problems)} of {row.tests} not compared: {row.problems[0]}")
        outcome = "fail" if reasons else ("pass" if row.values else "skip")
        yield Case(
            "operators",
            "against-core-ml",
            fixture=operation,
            mode=precision,
            runtime="coreml",
            outcome=outcome,
            reason="; ".join(reasons) or ("" if row.values else "no values were compared"),
            comparisons=row.values,
            figures={"largest difference": Figure(row.error, bound=None if reasons else bound)},
            facts={"tests": row.tests},
        )

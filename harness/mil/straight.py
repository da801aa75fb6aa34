"""A plan as one Python function, a line for each step: no loop, no lookups, nothing to unpack.

A language model's plan has two thousand steps of a few microseconds each; a loop over them would
cost a fifth of that. The source holds numbers only, nothing that a program could have named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from harness.mil.plan import Plan, Step

_NAME = "<plan>"
_LINES_BEFORE = 2  # of the first step: the head, and what stands in the slots


def straight_function(
    plan: Plan, gives_tuple: Sequence[bool]
) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return a function of slots in which the inputs stand, that returns the results.

    `gives_tuple` says for each step whether what it calls returns a tuple.
    """
    entering = [slot for slot, _ in (*plan.inputs.values(), *plan.captures)]
    known = {slot: f"c{slot}" for slot, value in enumerate(plan.slots) if value is not None}
    names = [known.get(slot, f"v{slot}") for slot in range(len(plan.slots))]
    lines = ["def run(slots):"]
    lines.append("; ".join(f" v{slot} = slots[{slot}]" for slot in entering).strip() or "pass")
    lines += [
        _line(number, step, names, tupled)
        for number, (step, tupled) in enumerate(zip(plan.steps, gives_tuple, strict=True))
    ]
    lines.append(f"return ({''.join(f'{names[slot]}, ' for slot in plan.results)})")
    source = "\n ".join(lines)
    scope: dict[str, Any] = {f"f{number}": step.run for number, step in enumerate(plan.steps)}
    scope |= {name: plan.slots[slot] for slot, name in known.items()}
    exec(compile(source, _NAME, "exec"), scope)
    function: Callable[[Sequence[Any]], tuple[Any, ...]] = scope["run"]
    return function


def failed_step(plan: Plan, traceback: TracebackType | None) -> Step | None:
    """Return the step at which a function of `straight_function` was when it raised."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _NAME:
            index = traceback.tb_lineno - _LINES_BEFORE - 1
            return plan.steps[index] if 0 <= index < len(plan.steps) else None
        traceback = traceback.tb_next
    return None


def _line(number: int, step: Step, names: Sequence[str], gives_tuple: bool) -> str:
    arguments = ", ".join(names[slot] if slot >= 0 else "None" for slot in step.reads)
    targets = "".join(f"{names[slot]}, " for slot in step.writes)
    call = f"f{number}({arguments})"
    if gives_tuple:
        assigned = f"{targets or '()'} = {call}"
    else:
        assigned = f"{targets.removesuffix(', ')} = {call}"
    freed = "".join(f"; {names[slot]} = None" for slot in step.frees)
    return assigned + freed

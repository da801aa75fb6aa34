"""The plan of a block, its steps over numbered slots, and its runs, which observers can follow.

A run executes step by step, or as generated code. `built` makes the function of a step: it adds
rounding; parameters that a program computes, and nested blocks, are bound at the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, cast

import torch

from harness.errors import ExecutionError, HarnessError
from harness.mil.operation import IMPLEMENTATIONS, Operation, Run
from harness.mil.storage import StateCell
from harness.mil.types import Policy, TensorType, ValueType
from harness.mil.values import Constant


@dataclass(frozen=True)
class Step:
    """One operation: its function, and the slots that it reads (-1: absent), writes and frees.

    `names` and `types` are the names and the declared types of its results. `constants` are the
    parameters that are known at load. A `fused` step computes what several operations do, and
    returns a tuple.
    """

    run: Run
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]
    where: str
    types: tuple[ValueType, ...]
    operation: str = ""
    names: tuple[str, ...] = ()
    constants: Mapping[str, tuple[Constant, ...]] = field(default_factory=dict)
    fused: bool = False

    def parameter(self, name: str, default: Any = None) -> Any:
        """Return a parameter that is known at load, `default` if it is not given."""
        values = self.constants.get(name)
        return values[0].python if values else default


@dataclass(frozen=True)
class Plan:
    """A compiled block.

    `slots` are the values before a run: all constants, and None for the rest. `names` maps a value
    to its slot. `results` are the slots of the outputs, in order. `captures` are the slots that a
    nested block fills from the block around it, as pairs (its own slot, the outer slot).
    """

    inputs: dict[str, tuple[int, ValueType]]
    outputs: dict[str, tuple[int, ValueType]]
    results: tuple[int, ...]
    steps: tuple[Step, ...]
    slots: tuple[Any, ...]
    names: dict[str, int]
    captures: tuple[tuple[int, int], ...]


def with_frees(steps: list[Step], kept: set[int]) -> tuple[Step, ...]:
    """Return the steps; each frees the slots that no later step reads."""
    seen = set(kept)
    result = []
    for step in reversed(steps):
        last = {slot for slot in (*step.reads, *step.writes) if slot >= 0} - seen
        seen |= last
        result.append(replace(step, frees=tuple(last)))
    return tuple(reversed(result))


Observer = Callable[[Step, tuple[torch.Tensor, ...]], None]
Evaluate = Callable[[Sequence[object]], tuple[Any, ...]]
_OBSERVERS: list[Observer] = []
_MAX_LINES = 50_000  # of generated code; Python compiles them in a second
_FILE_NAME = "<plan>"
_LINES_BEFORE = 2  # before the first step: the head and the inputs


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Call `observer` with every operation and its tensors, in all functions inside the `with`."""
    _OBSERVERS.append(observer)
    try:
        yield
    finally:
        _OBSERVERS.remove(observer)


class Block:
    """A plan that can be run; its runs are independent of each other.

    Results come from one generated function, of the plan that `fuse` makes: equal inputs give equal
    bits from the first run on. Before the first run, every step of the plan itself runs on these
    inputs, and its results are checked. A run with an observer takes the plan itself.
    """

    def __init__(self, plan: Plan, fuse: Callable[[Plan], Plan] = lambda plan: plan) -> None:
        self.plan = plan
        self._fuse = fuse
        self._fused = plan
        self._gives_tuple: dict[tuple[int, ...], bool] | None = None  # by the slots written
        self._generated: Evaluate | None = None

    def run(self, slots: list[object]) -> tuple[object, ...]:
        """Run over slots that hold the inputs; return the results.

        Raise HarnessError that names the operation that failed.
        """
        if _OBSERVERS or len(self.plan.steps) > _MAX_LINES:
            return self._run_steps(slots)
        if self._generated is None:
            if self._gives_tuple is None:
                # a write replaces the tensor of a cell, so that only copies change
                self._run_steps([copy(s) if isinstance(s, StateCell) else s for s in slots])
            assert self._gives_tuple is not None
            self._fused = self._fuse(self.plan)
            tupled = [s.fused or self._gives_tuple[s.writes] for s in self._fused.steps]
            self._generated = _generate(self._fused, tupled)
        try:
            return self._generated(slots)
        except HarnessError:
            raise
        except Exception as error:
            step = _failed_step(self._fused, error.__traceback__)
            if step is None:
                raise
            raise _failure(step, error) from error

    def nested(self, inputs: Sequence[object], captured: Sequence[object]) -> tuple[object, ...]:
        """Run a block that belongs to an operation, on its inputs and the captured values."""
        slots = list(self.plan.slots)
        for (slot, _), value in zip(self.plan.inputs.values(), inputs, strict=True):
            slots[slot] = value
        for (slot, _), value in zip(self.plan.captures, captured, strict=True):
            slots[slot] = value
        return self.run(slots)

    def _run_steps(self, slots: list[object]) -> tuple[object, ...]:
        gives_tuple = {step.writes: self._execute(step, slots) for step in self.plan.steps}
        results = tuple(slots[slot] for slot in self.plan.results)
        self._gives_tuple = gives_tuple
        return results

    def _execute(self, step: Step, slots: list[object]) -> bool:
        """Execute one step; return whether it returned a tuple."""
        try:
            result = step.run(*[slots[slot] if slot >= 0 else None for slot in step.reads])
        except HarnessError:
            raise
        except Exception as error:
            raise _failure(step, error) from error
        results = result if isinstance(result, tuple) else (result,)
        if self._gives_tuple is None:
            _check_results(results, step)
        if _OBSERVERS and all(isinstance(declared, TensorType) for declared in step.types):
            for observer in _OBSERVERS:
                observer(step, results)
        for slot, value in zip(step.writes, results, strict=True):
            slots[slot] = value
        for slot in step.frees:
            slots[slot] = None
        return isinstance(result, tuple)


def _failure(step: Step, error: Exception) -> ExecutionError:
    """Return an error in one line, without the lines that torch adds about its own source."""
    first = str(error).partition("\n")[0]
    return ExecutionError(step.where, type(error).__name__, first)


def _check_results(results: tuple[object, ...], step: Step) -> None:
    """Raise HarnessError unless the results have the declared number and shapes."""
    if len(results) != len(step.types):
        raise HarnessError(
            f"{step.where}: returns {len(results)} results, the program declares {len(step.types)}"
        )
    for result, declared in zip(results, step.types, strict=True):
        if not declared.fits(result):
            have = f"shape {list(result.shape)}" if hasattr(result, "shape") else type(result)
            want = list(declared.shape) if isinstance(declared, TensorType) else declared
            raise HarnessError(f"{step.where}: returns {have}, the program declares {want}")


def _generate(plan: Plan, gives_tuple: Sequence[bool]) -> Evaluate:
    """Return a plan as one Python function, which takes the slots and returns the results.

    A language model's plan has two thousand steps of a few microseconds each; a loop over them
    would take a fifth of that time. The source has a line for each step. Its names are numbers: it
    contains no text of the program. `gives_tuple` is true for each step that returns a tuple.
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
    scope: dict[str, object] = {f"f{number}": step.run for number, step in enumerate(plan.steps)}
    scope |= {name: plan.slots[slot] for slot, name in known.items()}
    exec(compile(source, _FILE_NAME, "exec"), scope)
    return cast(Evaluate, scope["run"])


def _failed_step(plan: Plan, traceback: TracebackType | None) -> Step | None:
    """Return the step whose line of a generated function raised the exception."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _FILE_NAME:
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


# --- the functions of steps


def built(operation: Operation) -> Run:
    """Return the function of an operation; it rounds FLOAT16 results if the policy does.

    Raise ArtifactError for a wrong parameter, and for one that the builder does not read.
    """
    implementation = IMPLEMENTATIONS[operation.type]
    try:
        run = implementation.build(operation)
    except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        problem = f"the operation does not take a parameter's value ({error})"
        raise operation.error(problem) from error
    unread = operation.given - operation.read - {*implementation.inputs}
    if unread:
        raise operation.error(f"parameter '{min(unread)}' is not understood")
    makes_values = not (implementation.moves_data or operation.type.startswith("constexpr_"))
    if operation.policy.rounds_half and makes_values:
        return _rounding(run, operation.outputs, operation.policy)
    return run


def _rounding(run: Run, outputs: tuple[ValueType, ...], policy: Policy) -> Run:
    """Return `run` with its FLOAT16 results rounded."""
    halves = [isinstance(o, TensorType) and o.dtype.name == "FLOAT16" for o in outputs]
    if not any(halves):
        return run
    if len(outputs) == 1:
        return lambda *values: policy.rounded(run(*values))

    def rounded(*values: object) -> tuple[object, ...]:
        pairs = zip(run(*values), halves, strict=True)
        return tuple(policy.rounded(result) if half else result for result, half in pairs)

    return rounded


def built_at_call(operation: Operation, computed: Mapping[str, ValueType]) -> Run:
    """Return a function that takes the computed parameters after the tensors, and builds with them.

    It builds again only when a parameter changes.
    """
    last: tuple[list[tuple[tuple[int, ...], bytes]], Run] | None = None

    def run(*values: torch.Tensor) -> object:
        nonlocal last
        cut = len(values) - len(computed)
        arrays = [value.numpy() for value in values[cut:]]
        key = [(array.shape, array.tobytes()) for array in arrays]
        held = last
        if held is None or held[0] != key:
            constants = dict(operation.constants)
            for (name, declared), array in zip(computed.items(), arrays, strict=True):
                if not isinstance(declared, TensorType):
                    raise operation.error(f"parameter '{name}' is not a tensor")
                constants[name] = (Constant(TensorType(declared.dtype, array.shape), array),)
            held = key, built(replace(operation, constants=constants, read=set()))
            last = held
        return held[1](*values[:cut])

    return run


def with_blocks(run: Run, blocks: Sequence[Block], captured: Sequence[int]) -> Run:
    """Return a function that takes the captured values of blocks after the tensors.

    It passes the blocks to `run` as functions of their inputs.
    """

    def bound(*values: object) -> object:
        end = len(values)
        functions: list[Run] = []
        for block, count in zip(reversed(blocks), reversed(captured), strict=True):
            functions.append(partial(_call, block, values[end - count : end]))
            end -= count
        return run(*values[:end], *reversed(functions))

    return bound


def _call(block: Block, captured: Sequence[object], *inputs: object) -> tuple[object, ...]:
    return block.nested(inputs, captured)

"""Plans with fewer steps: one step computes what several steps compute.

Only generated code is fused: an observer sees the plan as it was compiled. A policy that rounds
each result fuses nothing, and `double` only joins linears. In `widen`, where shapes are fixed:

- linears with packed weights that read one input are one call;
- reshapes, transposes and slices only change the place where a value is read (`Located`);
- operations on rows (`harness.mil.rows`) that follow each other are one step. A `concat` of a cache
  and new rows is not computed if only products read it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from harness.mil.block import Plan, Step, with_frees
from harness.mil.linears import is_packed_linear, merged, with_joined_linears
from harness.mil.operation import Run
from harness.mil.packed import PackedLinears
from harness.mil.rows import NUMBERS, Located, Program, Rows, RowStep, located
from harness.mil.rows.steps import MAX_OFFSETS, row_step
from harness.mil.types import Policy, StateType, TensorType, ValueType

_VIEWS = {
    *("identity", "reshape", "transpose", "expand_dims", "squeeze", "slice_by_index"),
    *("slice_by_size", "split", "cast", "concat"),
}
"""Operations that may return a view of their operand."""
_MANY_ROWS, _NARROW = 64, 16  # many narrow rows are faster in torch, which ignores rows


def fused(plan: Plan, policy: Policy) -> Plan:
    """Return a plan that computes the same results in fewer steps."""
    if policy.rounds_half:
        return plan
    if policy.name == "widen":
        return _Fusion(plan, policy).fused()
    steps = list(with_joined_linears(plan, plan.steps))
    return replace(plan, steps=with_frees(steps, _kept(plan.slots, plan)))


def _kept(slots: Iterable[object], plan: Plan) -> set[int]:
    return {*plan.results, *(slot for slot, value in enumerate(slots) if value is not None)}


@dataclass
class _Unit:
    """A step of the fused plan that is not made yet: an operation, or a group of those on rows.

    `level` is larger than that of every unit that it depends on.
    """

    place: int
    step: Step
    reads: set[int]
    level: int = 0
    rows: list[RowStep] = field(default_factory=list)
    after: int = -1  # another unit that must run before


class _Fusion:
    """Fuses one plan, whose operations on rows compute in fp32."""

    def __init__(self, plan: Plan, policy: Policy) -> None:
        self._plan = plan
        self._policy = policy
        self._slots = list(plan.slots)
        self._values: dict[int, Located] = {}
        self._parts: dict[int, tuple[Located, ...]] = {}
        self._units: list[_Unit] = []
        self._writer: dict[int, int] = {}  # by slot
        self._tables: dict[bytes, np.ndarray] = {}
        self._states = {s for s, t in plan.inputs.values() if isinstance(t, StateType)}
        self._last_ordered = -1

    def fused(self) -> Plan:
        """Return the fused plan."""
        for slot, value in enumerate(self._plan.slots):
            if isinstance(value, Tensor) and value.is_contiguous():
                self._values[slot] = located(slot, value.shape, value.dtype)
        for slot, declared in self._plan.inputs.values():
            self._locate(slot, declared)
        for step in self._flat(with_joined_linears(self._plan, self._plan.steps)):
            if not self._is_view(step):
                self._add(step)
        self._sink()
        self._group()
        steps = list(self._steps(self._in_order()))
        kept = _kept(self._slots, self._plan)
        return replace(self._plan, slots=tuple(self._slots), steps=with_frees(steps, kept))

    def _locate(self, slot: int, declared: ValueType) -> None:
        if isinstance(declared, TensorType) and declared.is_fixed:
            shape = [size or 0 for size in declared.shape]
            self._values[slot] = located(slot, shape, self._policy.carrier(declared.dtype))

    def _flat(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Yield the steps; packed linears of a fixed shape write all results to one vector."""
        for step in steps:
            run, x = step.run, self._values.get(step.reads[0]) if step.reads else None
            if is_packed_linear(self._plan, step):
                run = PackedLinears([self._plan.slots[step.reads[1]]])
            if not isinstance(run, PackedLinears) or x is None:
                yield step
                continue
            yield self._flattened(step, run, x)

    def _flattened(self, step: Step, run: PackedLinears, x: Located) -> Step:
        base, before = len(self._slots), 0
        self._slots.append(None)
        counts = [t.count for t in step.types if isinstance(t, TensorType)]
        whole = self._values[base] = located(base, [sum(counts)], torch.float32)
        for slot, declared, count in zip(step.writes, step.types, counts, strict=True):
            assert isinstance(declared, TensorType)
            view = whole.view[before : before + count].view([size or 0 for size in declared.shape])
            self._values[slot] = Located(base, view)
            before += count
        return replace(
            step,
            run=partial(run.joined, x.view.numel() // x.view.shape[-1]),
            reads=(x.base if x.is_whole else step.reads[0],),
            writes=(base,),
            types=(),
            fused=True,
        )

    def _is_view(self, step: Step) -> bool:
        """Return whether a step's results are views of its operand, and keep where they are."""
        operand = self._values.get(step.reads[0]) if len(step.reads) == 1 else None
        if operand is None or step.operation not in _VIEWS or step.fused:
            return False
        try:
            results = step.run(operand.view)
        except Exception:  # it needs the elements
            return False
        results = results if isinstance(results, tuple) else (results,)
        memory = operand.view.untyped_storage()._cdata
        if any(r.untyped_storage()._cdata != memory for r in results):
            return False
        for slot, view in zip(step.writes, results, strict=True):
            self._values[slot] = Located(operand.base, view)
        return True

    def _base(self, slot: int) -> int:
        return self._values[slot].base if slot in self._values else slot

    def _add(self, step: Step) -> None:
        """Add a step as a unit, at the lowest level that it can have."""
        if not step.fused:
            for slot, declared in zip(step.writes, step.types, strict=True):
                self._locate(slot, declared)
        row = None if step.fused else row_step(step, self._values, self._parts)
        if row is None:
            unit = _Unit(len(self._units), step, {slot for slot in step.reads if slot >= 0})
        else:
            unit = _Unit(len(self._units), step, {v.base for v in (*row.reads, *row.matrices)})
            unit.rows.append(row)
        self._note_parts(step)
        if self._is_ordered(step):
            unit.after, self._last_ordered = self._last_ordered, unit.place
            unit.level = self._units[unit.after].level + 1 if unit.after >= 0 else 0
        for writer in self._writers(unit):
            joins = bool(unit.rows) and self._joins(writer, unit)
            unit.level = max(unit.level, writer.level + (not joins))
        self._units.append(unit)
        self._writer.update(dict.fromkeys(step.writes, unit.place))

    def _note_parts(self, step: Step) -> None:
        """Keep the parts of a `concat` along the last axis but one."""
        (slot, *_) = step.writes or (-1,)
        if step.operation != "concat" or slot not in self._values:
            return
        rank = self._values[slot].view.dim()
        parts = [self._values[s] for s in step.reads if s in self._values]
        plain = rank > 1 and len(parts) == len(step.reads) and not step.parameter("interleave")
        if plain and step.parameter("axis") % rank == rank - 2:
            self._parts[slot] = tuple(part for part in parts if part.view.numel())

    def _is_ordered(self, step: Step) -> bool:
        """Return whether a step must keep its order: it has a state, or draws random numbers."""
        return step.operation.startswith("random_") or not self._states.isdisjoint(step.reads)

    def _writers(self, unit: _Unit) -> list[_Unit]:
        """Return the units whose results a unit reads."""
        bases = {self._base(slot) for slot in unit.reads}
        return [self._units[self._writer[b]] for b in sorted(bases) if b in self._writer]

    def _joins(self, writer: _Unit, unit: _Unit) -> bool:
        """Return whether two operations can be one step: one reads only whole rows of the other."""
        if not (writer.rows and unit.rows):
            return False
        (before,), (row,) = writer.rows, unit.rows
        (slot,) = before.step.writes
        return (
            before.rows == row.rows
            and all(matrix.base != slot for matrix in row.matrices)
            and all(
                row.start(read, before.width) is not None for read in row.reads if read.base == slot
            )
        )

    def _sink(self) -> None:
        """Raise each operation on rows to the level of those that read it, if it joins them all."""
        readers: dict[int, list[_Unit]] = {}
        for unit in self._units:
            for writer in self._writers(unit):
                readers.setdefault(writer.place, []).append(unit)
        results = {self._base(slot) for slot in self._plan.results}
        for unit in reversed(self._units):
            after = readers.get(unit.place, [])
            is_inner = after and not results.intersection(unit.step.writes)
            if is_inner and all(self._joins(unit, reader) for reader in after):
                unit.level = min(reader.level for reader in after)

    def _group(self) -> None:
        """Join the operations on rows that read each other and have one level.

        Levels grow from unit to unit otherwise, so that no group depends on itself.
        """
        group_of: dict[int, list[_Unit]] = {}
        for unit in self._units:
            joined = [unit]
            for writer in self._writers(unit):
                if writer.level == unit.level and group_of[writer.place] is not joined:
                    less, joined = sorted((joined, group_of[writer.place]), key=len)
                    joined += less
                    group_of.update(dict.fromkeys((u.place for u in less), joined))
            group_of[unit.place] = joined
        for members in {id(group): group for group in group_of.values()}.values():
            if members[0].rows:
                self._merge(sorted(members, key=lambda unit: unit.place))

    def _merge(self, members: list[_Unit]) -> None:
        """Make one unit of a group, at the place of its last member; or leave the group alone."""
        rows = [row for unit in members for row in unit.rows]
        bases = {base for unit in members for base in unit.reads}
        widths = [row.width for row in rows]
        narrow = rows[0].rows > _MANY_ROWS and sum(widths) < _NARROW * len(widths)
        alone = len(rows) == 1 and len(rows[0].matrices) < 2
        if alone or narrow or rows[0].rows * len(bases) > MAX_OFFSETS:
            for unit in members:
                unit.rows, unit.reads = [], {slot for slot in unit.step.reads if slot >= 0}
            return
        last = members[-1]
        last.rows = rows
        written = {slot for row in rows for slot in row.step.writes}
        last.reads = bases - written
        self._writer.update(dict.fromkeys(written, last.place))

    def _in_order(self) -> list[_Unit]:
        """Return the units that the results need, each as soon as it can run in the old order."""
        waiting: dict[int, set[int]] = {}
        todo = [self._writer[b] for s in self._plan.results if (b := self._base(s)) in self._writer]
        todo += [unit.place for unit in self._units if self._is_ordered(unit.step)]
        while todo:
            place = todo.pop()
            if place not in waiting:
                unit = self._units[place]
                waiting[place] = {writer.place for writer in self._writers(unit)} - {place}
                waiting[place] |= {unit.after} - {-1}
                todo += waiting[place]
        readers: dict[int, list[int]] = {}
        for place, before in waiting.items():
            for writer in before:
                readers.setdefault(writer, []).append(place)
        ready = [place for place, before in waiting.items() if not before]
        heapq.heapify(ready)
        ordered = []
        while ready:
            place = heapq.heappop(ready)
            ordered.append(self._units[place])
            for reader in readers.get(place, ()):
                waiting[reader].discard(place)
                if not waiting[reader]:
                    heapq.heappush(ready, reader)
        return ordered

    def _steps(self, ordered: list[_Unit]) -> Iterator[Step]:
        """Yield the steps of the units, and before a step the views that it reads."""
        needed = {self._base(slot) for unit in ordered for slot in unit.reads}
        needed |= {self._base(slot) for slot in self._plan.results}
        made: set[int] = set()
        for unit in ordered:
            if unit.rows:
                yield self._rows(unit, needed)
            else:
                yield from self._views(unit.step.reads, made)
                yield unit.step
        yield from self._views(self._plan.results, made)

    def _views(self, slots: Iterable[int], made: set[int]) -> Iterator[Step]:
        """Yield steps that make the slots' values, if these are views and not `made` yet."""
        for slot in slots:
            if slot in made or self._base(slot) == slot:
                continue
            made.add(slot)
            value = self._values[slot]
            writer = (
                self._units[self._writer[value.base]].step if value.base in self._writer else None
            )
            yield Step(
                run=_whole(value) if value.is_whole else _part(value),
                reads=(value.base,),
                writes=(slot,),
                frees=(),
                where=writer.where if writer else "",
                types=(),
                operation="view",
                fused=True,
            )

    def _rows(self, unit: _Unit, needed: set[int]) -> Step:
        """Return the step of a group of operations on rows."""
        widths = {row.step.writes[0]: row.width for row in unit.rows}
        kept = {slot: width for slot, width in widths.items() if slot in needed}
        program = Program(unit.rows[0].rows, kept)
        for row in unit.rows:
            program.add(row)
        bases = {
            base: self._values[base].view.shape if self._slots[base] is None else self._slots[base]
            for base in program.bases
            if base != NUMBERS
        }
        run = Rows(program, [self._values[slot].view.shape for slot in kept], bases, self._tables)
        members = [row.step for row in unit.rows if row.step.writes[0] in kept]
        return merged(members, run, run.reads)


def _whole(value: Located) -> Run:
    shape = tuple(value.view.shape)
    return lambda base: (base.reshape(shape),)


def _part(value: Located) -> Run:
    shape, stride, start = value.view.shape, value.view.stride(), value.view.storage_offset()

    def run(base: Tensor) -> tuple[Tensor]:
        whole = base.contiguous()
        return (whole.as_strided(shape, stride, whole.storage_offset() + start),)

    return run

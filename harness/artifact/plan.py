"""How a `.pte` calls its delegates and uses memory, and the memory that a function needs.

Nothing executes. The runtime trusts a `.pte` without a look. Sources:
ExecuTorch's `schema/program.fbs`, `runtime/executor/method.cpp` and
`tensor_parser_portable.cpp`, `runtime/executor/pte_data_map.cpp`, and the verifier of
`exir/memory_planning.py`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.artifact.flatbuffer import damaged
from harness.artifact.proto import declared_shape, mil_types
from harness.artifact.pte import (
    DelegateCall,
    FreeCall,
    JumpFalseCall,
    KernelCall,
    ListValue,
    MoveCall,
    Pte,
    PteMethod,
    TensorValue,
)

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Block, Function, Operation, ValueType

Problem = tuple[str, str]  # the place in a method, and what is wrong there
_VIEW = "executorch_prim::et_view"
_NEIGHBOURS = 8  # in memory, of a tensor: those that can overlap it


def check_indices(method: PteMethod) -> None:
    """Raise ArtifactError for an index without a value, a delegate or an instruction."""
    used = [*method.inputs, *method.outputs]
    for value in method.values:
        used += [i for i in value.items if i != -1] if isinstance(value, ListValue) else []
    for instruction in method.instructions:
        match instruction:
            case KernelCall(_, args):
                used += args
            case DelegateCall(delegate, args):
                used += args
                if not 0 <= delegate < len(method.delegates):
                    raise damaged(f"method '{method.name}' calls delegate {delegate}")
            case MoveCall(source, target):
                used += [source, target]
            case JumpFalseCall(condition, destination):
                used.append(condition)
                if not 0 <= destination <= len(method.instructions):
                    raise damaged(f"method '{method.name}' jumps to {destination}")
            case FreeCall(freed):
                used.append(freed)
    if any(not 0 <= index < len(method.values) for index in used):
        raise damaged(f"method '{method.name}' uses a value that it does not have")


def key_problems(pte: Pte) -> Iterator[Problem]:
    """Yield the keys of named data that occur twice, or with which another key begins.

    The runtime takes the first entry of a key.
    """
    counts = Counter(pte.keys)
    for key in sorted(key for key, count in counts.items() if count > 1):
        yield key, "the key occurs twice; the runtime only finds the first data"
    for key, following in pairwise(sorted(counts)):
        if following.startswith(key):
            yield key, f"another key begins with this one: '{following}'"


def tensor_problems(method: PteMethod) -> Iterator[Problem]:
    """Yield tensors that the runtime refuses to load, and memory outside the planned buffers."""
    for index, value in enumerate(method.values):
        if not isinstance(value, TensorValue):
            continue
        where = f"value {index}"
        if value.unbounded:
            yield where, "its shape has no bound; the runtime refuses to load such a tensor"
        if len(value.dim_order) != len(value.shape):
            yield where, f"its dim_order has {len(value.dim_order)} of {len(value.shape)} axes"
        if value.planned is None:
            continue
        buffer, offset = value.planned
        if not 1 <= buffer < len(method.buffer_sizes):
            yield where, f"is planned in buffer {buffer}; the method has {_buffers(method)}"
        elif offset + value.nbytes > (size := method.buffer_sizes[buffer]):
            end = offset + value.nbytes
            yield where, f"is planned at bytes {offset} to {end} of buffer {buffer} of {size} bytes"


def _buffers(method: PteMethod) -> str:
    last = len(method.buffer_sizes) - 1
    return f"buffers 1 to {last}" if last > 0 else "none"


@dataclass(frozen=True, order=True)
class _Life:
    """The memory of a planned tensor, and the first and the last instruction that need it."""

    buffer: int
    begin: int
    end: int
    index: int
    first: int
    last: int


def overlap_problems(method: PteMethod, names: Mapping[int, str]) -> Iterator[Problem]:
    """Yield pairs of tensors that share memory while both are needed.

    Views of one another may share memory. So may a kernel's operand and its result, which may be
    written in place. A method with jumps has no fixed order and is not judged.
    """
    if any(isinstance(step, JumpFalseCall) for step in method.instructions):
        return
    base = _bases(method)
    alive: list[_Life] = []  # in the order of memory
    ends: list[tuple[int, _Life]] = []
    for life in sorted(_lives(method), key=lambda life: life.first):
        while ends and ends[0][0] < life.first:
            del alive[bisect_left(alive, heappop(ends)[1])]
        place = bisect_left(alive, life)
        for other in alive[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]:
            same = other.buffer == life.buffer
            overlap = same and other.begin < life.end and life.begin < other.end
            if overlap and base[other.index] != base[life.index]:
                handover = other.last == life.first < len(method.instructions)
                if not (handover and not _is_delegate(method.instructions[life.first])):
                    text = f"shares memory with {_named(other.index, names)} while both are needed"
                    yield _named(life.index, names), text
        alive.insert(place, life)
        heappush(ends, (life.last, life))


def _is_delegate(step: object) -> bool:
    return isinstance(step, DelegateCall)


def _named(index: int, names: Mapping[int, str]) -> str:
    return f"value {index} ('{names[index]}')" if index in names else f"value {index}"


def _lives(method: PteMethod) -> Iterator[_Life]:
    end = len(method.instructions)
    first = dict.fromkeys(method.inputs, -1)
    last = dict.fromkeys(method.inputs, -1)
    for number, step in enumerate(method.instructions):
        for index in _tensors(method, _arguments(step)):
            first.setdefault(index, number)
            last[index] = number
    for index in method.outputs:
        first.setdefault(index, end)
        last[index] = end
    for index in first:
        value = method.values[index]
        if isinstance(value, TensorValue) and value.planned and value.nbytes:
            buffer, offset = value.planned
            persists = value.initial is not None  # a buffer keeps its content between calls
            begin, finish = (0, end) if persists else (first[index], last[index])
            yield _Life(buffer, offset, offset + value.nbytes, index, begin, finish)


def _bases(method: PteMethod) -> dict[int, int]:
    """Return for each value the one that it is a view of, itself for any other value."""
    base = {index: index for index in range(len(method.values))}
    for step in method.instructions:
        if isinstance(step, KernelCall) and step.operator.startswith(_VIEW) and step.args:
            base[step.args[-1]] = base[step.args[0]]
        elif isinstance(step, MoveCall):
            base[step.target] = base[step.source]
    return base


def _arguments(step: object) -> tuple[int, ...]:
    match step:
        case KernelCall(_, args) | DelegateCall(_, args):
            return args
        case MoveCall(source, target):
            return source, target
        case FreeCall(value):
            return (value,)
    return ()


def _tensors(method: PteMethod, args: Iterable[int]) -> Iterator[int]:
    """Yield the tensors among values, and those in lists among them."""
    for index in args:
        value = method.values[index]
        if isinstance(value, TensorValue):
            yield index
        elif isinstance(value, ListValue):
            yield from (i for i in value.items if i >= 0 and _is_tensor(method, i))


def _is_tensor(method: PteMethod, index: int) -> bool:
    return isinstance(method.values[index], TensorValue)


def call_problems(
    method: PteMethod, inputs_of: Mapping[int, int], names: Mapping[int, str]
) -> Iterator[Problem]:
    """Yield delegates called twice alike, values read before they are written, outputs never set.

    `inputs_of` has the number of inputs of each Core ML delegate; of any other step, every argument
    may be a result. A method with jumps has no fixed order and is not judged.
    """
    if any(isinstance(step, JumpFalseCall) for step in method.instructions):
        return
    waiting = _written_later(method, inputs_of)
    called: dict[DelegateCall, int] = {}
    for number, step in enumerate(method.instructions):
        if not isinstance(step, DelegateCall) or step.delegate not in inputs_of:
            waiting -= set(_tensors(method, _arguments(step)))
            continue
        where, split = f"delegate {step.delegate}", inputs_of[step.delegate]
        if step in called:
            yield where, f"instructions {called[step]} and {number} call it with the same values"
        called.setdefault(step, number)
        taken = set(_tensors(method, step.args[:split]))
        given = set(_tensors(method, step.args[split:]))
        for index in sorted(taken & waiting):
            yield where, f"reads {_named(index, names)} before anything writes it"
        for index in sorted(given & {*method.inputs}):
            yield where, f"writes {_named(index, names)}, an input of the method"
        for index in sorted((taken & given) - waiting - {*method.inputs}):
            yield where, f"reads and writes {_named(index, names)} in one call"
        waiting -= given | taken
    for index in method.outputs:
        if index in waiting:
            yield f"output {_named(index, names)}", "nothing writes it"


def _written_later(method: PteMethod, inputs_of: Mapping[int, int]) -> set[int]:
    """Return the tensors without content before the first instruction.

    These are results of Core ML delegates, and values without memory. A buffer, whose content stays
    from call to call, is none of them.
    """
    results = {
        index
        for step in method.instructions
        if isinstance(step, DelegateCall) and step.delegate in inputs_of
        for index in step.args[inputs_of[step.delegate] :]
    }
    empty = {
        index
        for index, value in enumerate(method.values)
        if isinstance(value, TensorValue) and value.data is None and value.initial is None
        if index in results or value.planned is None
    }
    return empty - {*method.inputs}


@dataclass(frozen=True)
class ActivationPeak:
    """The largest sum of the sizes of all values that a function holds at one time, in bytes.

    Inputs and outputs count, constants and states do not. `operation` is where the peak is. With
    `is_minimum`, a flexible size counts as 1. A device may need less, as results share memory
    there, or more, as it may keep copies in layouts of its own.
    """

    bytes: int
    operation: str
    is_minimum: bool


def activation_peak(function: Function, block: Block) -> ActivationPeak:
    """Return the activation peak of a function, by the declared shapes of its values."""
    return ActivationPeak(*_peak(block, [value.type for value in function.inputs]))


def _peak(block: Block, given: Iterable[ValueType]) -> tuple[int, str, bool]:
    """Return a block's peak, the operation where it is, and whether a size is flexible.

    `given` are the types of its inputs, which the caller holds to the end.
    """
    last = dict.fromkeys(block.outputs, len(block.operations))
    for index, operation in enumerate(block.operations):
        for name in _reads(operation):
            last[name] = max(last.get(name, 0), index)
    ending: defaultdict[int, list[int]] = defaultdict(list)
    sizes = [_size(kind) for kind in given]
    flexible = any(is_flexible for _, is_flexible in sizes)
    live = sum(size for size, _ in sizes)
    peak, where = live, "its inputs"
    for index, operation in enumerate(block.operations):
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            continue
        own = [(output.name, *_size(output.type)) for output in operation.outputs]
        inner = [_peak(nested, [v.type for v in nested.inputs]) for nested in operation.blocks]
        live += sum(size for _, size, _ in own)
        reached = live + max((found for found, _, _ in inner), default=0)
        flexible |= any(one for _, _, one in (*own, *inner))
        if reached > peak:
            peak, where = reached, f"{operation.type} '{own[0][0] if own else ''}'"
        for name, size, _ in own:
            ending[last.get(name, index)].append(size)
        live -= sum(ending.pop(index, ()))
    return peak, where, flexible


def _reads(operation: Operation) -> Iterator[str]:
    """Yield the names that an operation and the blocks in it read."""
    for argument in operation.inputs.values():
        yield from (binding.name for binding in argument.arguments if binding.name)
    for block in operation.blocks:
        yield from block.outputs
        for inner in block.operations:
            yield from _reads(inner)


def _size(kind: ValueType) -> tuple[int, bool]:
    """Return the bytes of a tensor, 0 for a state or a list, and whether a size is flexible."""
    if kind.WhichOneof("type") != "tensorType":
        return 0, False
    dtype, shape = mil_types().get(kind.tensorType.dataType), declared_shape(kind.tensorType)
    count = math.prod(1 if size is None else size for size in shape)
    return (count * (dtype.bits if dtype else 0) + 7) // 8, None in shape

"""Mutations of a `.pte`'s tables: compile specs, memory plan, calls, keys.

They change the program that ExecuTorch's own serializer reads and writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness.artifact.delegate import METADATA
from harness.artifact.files import flatten, read_flattened, root_name
from harness.subject import Subject
from harness.suites.mutants.faults import MULTI, PTE, SINGLE, Complaints, Mutant, fault
from harness.suites.mutants.judge import OF_BYTES, complaints, judged, opened, sound

Table = Any  # a dataclass of `executorch.exir.schema`
Rewrite = Callable[..., object]  # changes ExecuTorch's `PTEFile` in place


def rewrite(source: Path, change: Rewrite, target: Path) -> Path:
    """Write a `.pte` with ExecuTorch's serializer, after `change`, and return its path."""
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary

    file = deserialize_pte_binary(source.read_bytes())
    change(file)
    written = serialize_pte_binary(file, extract_delegate_segments=True)
    target.write_bytes(bytes(written))
    return target


def _rewritten(mutant: Mutant) -> Subject:
    source = sound(mutant.mode)
    change = mutant.mutate or (lambda file: None)
    return opened(rewrite(source.artifact.path, change, mutant.folder / "mutant.pte"), source)


def judge_tables(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Judge a `.pte` whose tables a mutation changes, by all checks of bytes, too."""
    return complaints(_rewritten(mutant), {*checks, *OF_BYTES}, causes=True)


row = partial(fault, room="tables of a .pte", judge=judge_tables, kinds=PTE, alone=True)


def plans(file: Any) -> list[Table]:
    """Return the methods that execute something."""
    return [plan for plan in file.program.execution_plan if plan.delegates]


def specs(file: Any) -> Iterator[list[Table]]:
    """Yield the compile specs of each delegate."""
    for plan in plans(file):
        yield from (delegate.compile_specs for delegate in plan.delegates)


def set_spec(key: str, value: bytes, everywhere: bool = True) -> Rewrite:
    """Set a compile spec, of every delegate or of the last one."""

    def change(file: Any) -> None:
        for held in list(specs(file))[0 if everywhere else -1 :]:
            next(spec for spec in held if spec.key == key).value = value

    return change


@row("a spec twice", {"compile-specs": "compute_units is given 2 times"}, room="compile specs")
def spec_twice(file: Any) -> None:
    """Give a compile spec twice."""
    for held in specs(file):
        held.append(held[0])


def first_cache(file: Any) -> Table:
    """Return the last input of the first method, a cache or a position."""
    plan = plans(file)[0]
    return next(v.val for v in map(plan.values.__getitem__, plan.inputs) if len(v.val.sizes) == 4)


@row("another layout", {"memory-plan": r"method 'forward': '\w+': its dim_order is \[0, 1, 3, 2\]"})
def reverse_axes(file: Any) -> None:
    """Let a cache be laid out with its last two axes exchanged."""
    order = first_cache(file).dim_order
    order[-2:] = reversed(order[-2:])


def make_dynamic(unbound: bool) -> Rewrite:
    """Let the shape of a cache be dynamic."""

    def change(file: Any) -> None:
        from executorch.exir.schema import TensorShapeDynamism

        kinds = TensorShapeDynamism
        first_cache(file).shape_dynamism = kinds.DYNAMIC_UNBOUND if unbound else kinds.DYNAMIC_BOUND

    return change


def planned(file: Any) -> list[Table]:
    """Return the planned tensors of the first method."""
    values = [value.val for value in plans(file)[0].values]
    return [v for v in values if getattr(v, "allocation_info", None) is not None]


@row(
    "memory behind the buffer",
    {
        "memory-plan": r"method 'forward': value \d+: is planned at bytes \d+ to \d+ of buffer "
        r"1 of \d+ bytes"
    },
)
def past_the_buffer(file: Any) -> None:
    """Place a tensor at the end of its buffer."""
    plan, tensor = plans(file)[0], planned(file)[0]
    size = plan.non_const_buffer_sizes[tensor.allocation_info.memory_id]
    tensor.allocation_info.memory_offset_low = size


@row(
    "memory of no buffer",
    {"memory-plan": r"value \d+: is planned in buffer 5; the method has buffers 1 to 1"},
)
def unknown_buffer(file: Any) -> None:
    """Place a tensor in a buffer that the method does not have."""
    planned(file)[0].allocation_info.memory_id = 5


@row(
    "memory of two tensors",
    {
        "memory-plan": r"method 'forward': value \d+ \('\w+'\): shares memory with value \d+ "
        r"\('\w+'\) while both"
    },
)
def in_one_place(file: Any) -> None:
    """Place all planned tensors at the start of the buffer."""
    for tensor in planned(file):
        tensor.allocation_info.memory_offset_low = 0


@row(
    "calls in another order",
    {
        "memory-plan": r"method 'forward': delegate 2: reads value \d+ \('\w+'\) before "
        r"anything writes it"
    },
)
def swap_calls(file: Any) -> None:
    """Call the last delegate before the one that gives its input."""
    instructions = plans(file)[0].chains[0].instructions
    instructions[-2], instructions[-1] = instructions[-1], instructions[-2]


@row(
    "a call twice",
    {
        "memory-plan": "method 'forward': delegate 0: instructions 0 and 1 call it with the "
        "same values"
    },
)
def call_twice(file: Any) -> None:
    """Call a delegate a second time with the same values."""
    instructions = plans(file)[0].chains[0].instructions
    instructions.insert(1, instructions[0])


@row(
    "a second copy",
    {"copies": "package 3: is a copy of package 2; one of [0-9]+ bytes would do"},
    modes=MULTI,
    room="sharing",
)
def second_copy(file: Any) -> None:
    """Store the last package again under another key, and let one method use the copy."""
    store = file.named_data
    key = list(store.pte_data)[-1]
    data = bytes(store.buffers[store.pte_data[key].buffer_index])
    view = memoryview(data)
    files = {name: bytes(content) for name, content in read_flattened(view, "copy").items()}
    metadata = json.loads(files[METADATA])
    other = metadata["identifier"][:-4] + "0000"
    files[METADATA] = json.dumps(metadata | {"identifier": other}).encode()
    copy = type(store.pte_data[key])(len(store.buffers), store.pte_data[key].alignment, None)
    store.buffers.append(flatten(files, root_name(view, "copy")))
    store.pte_data[f"coreml_{other}"] = copy
    for data in file.program.backend_delegate_data:
        if b'"prefill"' in data.data and key.encode() in data.data:
            data.data = data.data.replace(key.encode(), f"coreml_{other}".encode())


@row(
    "a key that begins another",
    {"memory-plan": r"named data: (coreml_\S+): another key begins with this one: '\1.second'"},
    modes=MULTI,
)
def key_begins_another(file: Any) -> None:
    """Rename the data of a package, so that another key begins with its key."""
    store = file.named_data
    first, second = list(store.pte_data)[:2]
    store.pte_data[f"{first}.second"] = store.pte_data.pop(second)
    for data in file.program.backend_delegate_data:
        data.data = data.data.replace(second.encode(), f"{first}.second".encode())


row(
    "unknown units",
    {"compile-specs": "'forward', delegate 0: compute_units is b'cpu_and_tpu'; known are"},
    room="compile specs",
)(set_spec("compute_units", b"cpu_and_tpu"))


row(
    "other units of one delegate",
    {
        "compile-specs": r"delegate 2: compute_units differs from that of method 'forward', "
        r"delegate 0"
    },
    room="compile specs",
)(set_spec("compute_units", b"cpu_only", everywhere=False))


row(
    "a later target",
    {
        "compile-specs": r"delegate 0: min_deployment_target is 10 \(iOS 26\), but .* version 9 "
        r"\(iOS 18\)"
    },
    room="compile specs",
)(set_spec("min_deployment_target", b"10"))


row(
    "an earlier target",
    {
        "compile-specs": r"min_deployment_target is 8 \(iOS 17\), but the package has "
        r"specification version 9"
    },
    modes=SINGLE,
    room="compile specs",
)(set_spec("min_deployment_target", b"8"))


row(
    "another precision",
    {"compile-specs": "model_compute_precision is float32, but the model is float16"},
    room="compile specs",
)(set_spec("model_compute_precision", b"float32"))


row(
    "a compiled model",
    {"compile-specs": "model_type is compiled_model, but the payload holds a model.mlpackage"},
    room="compile specs",
)(set_spec("model_type", b"compiled_model"))


row(
    "a strategy that was not followed",
    {"compile-specs": "is disabled, but the delegate refers to a shared package"},
    modes=MULTI,
    room="compile specs",
)(set_spec("multimethod_weight_sharing_strategy", b"disabled"))


row("a dynamic shape", {"memory-plan": r"method 'forward': '\w+': its shape is dynamic"})(
    make_dynamic(unbound=False)
)


row(
    "a shape without bound", {"memory-plan": r"method 'forward': value \d+: its shape has no bound"}
)(make_dynamic(unbound=True))


def judge_boundary(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Judge a `.pte` whose tables a mutation changes by the warnings about what is passed."""
    found = [one for one in judged(_rewritten(mutant), "hazards").findings if one.code == "H49"]
    return {"hazards": tuple(text for one in found for text in one.sentences)} if found else {}


@row(
    "a scalar at the boundary",
    {"hazards": r"method 'forward', delegate 0: '\w+' has rank 0; Core ML's function takes \[1\]"},
    "ET 10451",
    judge=judge_boundary,
    alone=False,
)
def scalar_input(file: Any) -> None:
    """Declare an input that is passed to a delegate as a scalar."""
    plan = plans(file)[0]
    value = next(v.val for v in map(plan.values.__getitem__, plan.inputs) if len(v.val.sizes) == 2)
    value.sizes, value.dim_order = [], []

"""Load and call mutated copies of a package, in a process of limited memory.

``python mutating.py PACKAGE`` prints how many were executed and refused; anything else than a
HarnessError ends it with a traceback.
"""

import random
import resource
import sys
from pathlib import Path

import torch

from harness.artifact import Package
from harness.errors import HarnessError
from harness.mil import get_policy, load_function
from harness.mil.operation import IMPLEMENTATIONS

BYTES, EDITS = 2500, 2500
MEMORY = 2 << 30  # bytes of address space beyond what stands when the mutations begin

VALUES = {
    "ints": (0, -1, 1, 2, 3, -5, 100_000, 1 << 30, -(1 << 31), (1 << 31) - 1),
    "floats": (0.0, -1e30, float("nan"), float("inf")),
    "strings": ("x", "int8", "fp16", "reflect", "replicate", "TANH_APPROXIMATION"),
    "bools": (True, False),
}
SIZES = (0, 1, 2, 3, 1 << 20, 1 << 40, (1 << 64) - 1)
DTYPES = (1, 2, 10, 11, 12, 21, 23, 25, 31, 99)


def wrong_bytes(spec: bytes, rng: random.Random) -> bytes:
    broken = bytearray(spec)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(broken))
        broken[place] = rng.choice([rng.randrange(256), broken[place] ^ 1 << rng.randrange(8)])
    return bytes(broken)


def another_value(block, operation, rng):
    constants = [op for op in block.operations if op.type == "const"]
    tensor = rng.choice(constants).attributes["val"].immediateValue.tensor
    field = tensor.WhichOneof("value")
    if field in VALUES:
        values = getattr(tensor, field).values
        values[rng.randrange(len(values))] = rng.choice(VALUES[field])
        if rng.random() < 0.2:
            values.append(values[0])


def another_source(block, operation, rng):
    names = [output.name for op in block.operations for output in op.outputs]
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name" and rng.random() < 0.5:
                binding.name = rng.choice(names)


def another_shape(block, operation, rng):
    for output in operation.outputs:
        if output.type.tensorType.dimensions:
            dimension = rng.choice(output.type.tensorType.dimensions)
            dimension.constant.size = rng.choice(SIZES)


def another_dtype(block, operation, rng):
    rng.choice(operation.outputs).type.tensorType.dataType = rng.choice(DTYPES)


def another_kind(block, operation, rng):
    operation.type = rng.choice([*sorted(IMPLEMENTATIONS), "const", "cond"])


def one_input_less(block, operation, rng):
    if operation.inputs:
        del operation.inputs[rng.choice(sorted(operation.inputs))]


CHANGES = (
    another_value,
    another_value,
    another_source,
    another_shape,
    another_dtype,
    another_kind,
    one_input_less,
)


def wrong_meaning(package: Package, rng: random.Random) -> bytes:
    model = type(package.model)()
    model.CopyFrom(package.model)
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    for _ in range(rng.randint(1, 2)):
        rng.choice(CHANGES)(block, rng.choice(block.operations), rng)
    return model.SerializeToString()


def attempt(package: Package, spec: bytes) -> bool:
    """Whether a mutated specification was loaded and executed; False when it was refused."""
    files = {**package.files, package.spec_path: memoryview(spec)}
    try:
        broken = Package(files, "mutated")
        name = next(iter(broken.functions), "main")
        function = load_function(broken, name, get_policy("strict"))
        shapes = {key: [size or 1 for size in kind.shape] for key, kind in function.inputs.items()}
        function({key: torch.zeros(shape) for key, shape in shapes.items()})
    except HarnessError:
        return False
    return True


def main() -> None:
    package = Package.from_folder(Path(sys.argv[1]))
    spec = bytes(package.files[package.spec_path])
    assert attempt(package, spec), "the package itself is executed"
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    rng = random.Random(17)
    done = [attempt(package, wrong_bytes(spec, rng)) for _ in range(BYTES)]
    done += [attempt(package, wrong_meaning(package, rng)) for _ in range(EDITS)]
    print(sum(done), len(done) - sum(done))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

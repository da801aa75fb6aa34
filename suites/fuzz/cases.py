"""A case: an artifact, mutated by the seed and the case's number alone, and its execution."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.artifact import Package, open_artifact
from harness.artifact.facts import artifact_facts
from harness.artifact.package import WEIGHTS
from harness.errors import HarnessError
from harness.mil import get_policy, load_function
from harness.runtimes import get_runtime
from harness.suites.fuzz import of_bytes, of_programs

_MAX_INPUT = 1 << 22  # elements; no call gets more, whatever a program asks for
KINDS = ("fields",) * 9 + ("bytes",) * 6 + ("weights",) * 3 + ("pte",) * 2


@dataclass(frozen=True)
class Case:
    """A case: `size` is the file's, in bytes; `run` returns whether it executed the artifact."""

    kind: str
    size: int
    run: Callable[[], bool]


class Sources:
    """The sound artifacts: .mlpackage folders, and .pte files, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages = [Package.from_folder(path) for path in sorted(folder.glob("*.mlpackage"))]
        self.programs = {path: path.read_bytes() for path in sorted(folder.glob("*.pte"))}
        assert self.packages, f"no sound artifacts in {folder}"

    def check(self) -> None:
        """Execute every sound artifact: a mutant of one that does not run would prove nothing."""
        for package in self.packages:
            assert _call_package(package.files, package.what)
        for path in self.programs:
            assert _call_pte(path)

    def case(self, seed: int, number: int) -> Case:
        """Make a case."""
        rng = random.Random(f"{seed} {number}")
        kind = rng.choice([kind for kind in KINDS if kind != "pte" or self.programs])
        if kind == "pte":
            return self._pte(rng)
        package = rng.choice(self.packages)
        spec = package.model.SerializeToString(deterministic=True)
        files = dict(package.files)
        if kind == "weights":
            data = rng.choice(of_bytes.OF_WEIGHTS)(bytes(files[WEIGHTS]), rng)
            files[WEIGHTS] = memoryview(data)
        else:
            data = (
                of_programs.mutated(package.model, rng)
                if kind == "fields"
                else rng.choice(of_bytes.MUTATIONS)(spec, rng)
            )
            files[package.spec_path] = memoryview(data)
        size = sum(len(content) for content in files.values())
        return Case(kind, size, lambda: _call_package(files, "mutated"))

    def _pte(self, rng: random.Random) -> Case:
        source = rng.choice(sorted(self.programs))
        data = self.programs[source]
        # The tables are at the beginning, the payloads' directories at the end of segments.
        start = rng.choice((0, 0, rng.randrange(len(data))))
        end = min(len(data), start + 4096)
        broken = data[:start] + rng.choice(of_bytes.MUTATIONS)(data[start:end], rng) + data[end:]
        path = self.folder / "mutated" / "mutated.pte"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(broken)
        return Case("pte", len(broken), lambda: _call_pte(path))


def _call_package(files: Any, what: str) -> bool:
    """Load and call a package's first function; False when it asks for inputs beyond reason."""
    package = Package(files, what)
    name = next(iter(package.functions), "main")
    function = load_function(package, name, get_policy("strict"))
    inputs = _zeros({key: kind.shape for key, kind in function.inputs.items()})
    if inputs is None:
        return False
    function(inputs)
    return True


def _call_pte(path: Path) -> bool:
    """Read, load and call the first method of a .pte."""
    artifact = open_artifact(path)
    artifact_facts(artifact)
    names = list(artifact.methods)
    if not names:
        raise HarnessError(f"{path}: has no methods")
    method = get_runtime("mil:strict").load(artifact, names[0])
    inputs = _zeros({str(n): spec.shape for n, spec in enumerate(method.inputs)})
    if inputs is None:
        return False
    dtypes = [getattr(torch, spec.dtype) for spec in method.inputs]
    method(*(tensor.to(dtype) for tensor, dtype in zip(inputs.values(), dtypes, strict=True)))
    return True


def _zeros(shapes: dict[str, Any]) -> dict[str, torch.Tensor] | None:
    sizes = {name: [1 if size is None else size for size in s] for name, s in shapes.items()}
    counts = [torch.Size(size).numel() if _fits(size) else None for size in sizes.values()]
    if any(count is None or count > _MAX_INPUT for count in counts):
        return None
    return {name: torch.zeros(size) for name, size in sizes.items()}


def _fits(sizes: list[int]) -> bool:
    return all(0 <= size <= _MAX_INPUT for size in sizes)

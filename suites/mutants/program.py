"""Small programs as coremltools converts them, each in a broken and in a sound spelling.

A row's function returns the program and its calls with their right values. It is judged twice: with
the broken spelling a check or a lint must name the place, with the sound one it must not. `hazards`
is every lint; `outputs` compares values, `outputs strict` in the artifact's own precision.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.artifact import Package
from harness.artifact.hazards import hazards_of
from harness.checks import run_check, value_checks
from harness.errors import ConversionError
from harness.golden import Call, Expected, Golden
from harness.runtimes import REFERENCE
from harness.subject import Subject
from harness.suites.mutants.faults import ANY, Complaints, Mutant, fault
from harness.suites.mutants.judge import complaints, said

_Inputs = Sequence[tuple[str, Sequence[int]]]


@dataclass
class Program:
    """A program of MIL's builder: its inputs (dtype, shape), and steps with right outputs.

    `states` are shapes of fp16 states, which the function takes after the inputs.
    """

    function: Callable[..., Any]
    inputs: _Inputs
    calls: Sequence[tuple[Sequence[Any], Sequence[Any]]] = ()
    target: str = "iOS17"
    precision: str = "FLOAT32"
    states: Sequence[Sequence[int]] = field(default=())

    compress: Callable[[Any], Any] | None = None

    def save(self, path: Path) -> Path:
        """Convert it by coremltools and save it as a package."""
        import coremltools as ct
        from coremltools.converters.mil.mil import Builder as mb
        from coremltools.converters.mil.mil import types

        dtypes = {"fp32": types.fp32, "fp16": types.fp16, "int32": types.int32}
        specs = [mb.TensorSpec(shape, dtype=dtypes[kind]) for kind, shape in self.inputs]
        specs += [mb.StateTensorSpec(shape, dtype=types.fp16) for shape in self.states]
        target = getattr(ct.target, self.target)
        with np.errstate(over="ignore"):
            model = ct.convert(
                mb.program(input_specs=specs, opset_version=target)(self.function),
                convert_to="mlprogram",
                compute_precision=getattr(ct.precision, self.precision),
                minimum_deployment_target=target,
                skip_model_load=True,
            )
        (self.compress or (lambda model: model))(model).save(str(path))
        return path


@dataclass
class Traced:
    """A function of tensors that torch traces; `inputs` are coremltools' types of its inputs."""

    function: Callable[..., Any]
    example: Sequence[torch.Tensor]
    inputs: Callable[[], Sequence[Any]]
    calls: Sequence[tuple[Sequence[Any], Sequence[Any]]] = ()
    forbidden: str = ""  # the beginning of a warning that is an error

    def save(self, path: Path) -> Path:
        """Convert it by coremltools and save it as a package."""
        import coremltools as ct

        function = self.function

        class Module(torch.nn.Module):
            def forward(self, *tensors: torch.Tensor) -> Any:
                return function(*tensors)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.forbidden:
                warnings.filterwarnings("error", self.forbidden)
            program = torch.jit.trace(Module().eval(), tuple(self.example), check_trace=False)
            model = ct.convert(
                program,
                inputs=list(self.inputs()),
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS18,
                skip_model_load=True,
            )
        model.save(str(path))
        return path


@dataclass
class Lowered:
    """The absolute value of an input, lowered by ExecuTorch's partitioner."""

    example: torch.Tensor

    def save(self, path: Path) -> Path:
        """Lower it and write the `.pte`."""
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner
        from executorch.exir import to_edge_transform_and_lower

        class Absolute(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.abs()

        exported = torch.export.export(Absolute(), (self.example,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lowered = to_edge_transform_and_lower(exported, partitioner=[CoreMLPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)
        return path


def judge_conversion(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Convert a model in its sound and its broken spelling; `convert` is what the user is told."""
    assert mutant.mutate is not None  # each row is judged in its sound spelling, too
    mutant.mutate(False).save(mutant.folder / "sound.mlpackage")  # type: ignore[attr-defined]
    try:
        mutant.mutate(True).save(mutant.folder / "broken.mlpackage")  # type: ignore[attr-defined]
    except Exception as error:
        return {"convert": (str(ConversionError("the model", type(error).__name__, str(error))),)}
    return {}


def judge_report(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Judge a program in its broken spelling, unless its sound one is complained about."""
    assert mutant.mutate is not None  # each row is judged in its sound spelling, too
    for broken in (False, True):
        program = mutant.mutate(broken)
        assert isinstance(program, Program | Traced)
        path = program.save(mutant.folder / f"{'broken' if broken else 'sound'}.mlpackage")
        found = _judged(path, program, checks)
        if not broken and found:
            return {"the sound program": tuple(text for texts in found.values() for text in texts)}
    return found


_of_programs = partial(fault, room="reports", modes=ANY, tested=(), has_control=False)
report = partial(_of_programs, judge=judge_report, kinds=("package",))
conversion = partial(_of_programs, judge=judge_conversion, kinds=("model",))


def _judged(path: Path, program: Program | Traced, checks: Collection[str]) -> Complaints:
    subject = Subject(path)
    if program.calls:
        subject.golden = _golden(subject.artifact.methods[0], program.calls)
    found: dict[str, tuple[str, ...]] = {}
    for check in checks:
        if check == "hazards":
            found |= _hazards(path)
        elif check.startswith("outputs"):
            runtime = "mil:strict" if check == "outputs strict" else REFERENCE
            case = run_check(value_checks()["outputs"], subject, runtime, suite="mutants")
            if texts := said([case]).get("outputs"):
                found[check] = texts
        else:
            found |= complaints(subject, [check])
    return found


def _golden(method: str, calls: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> Golden:
    expected = tuple(
        Call(
            tuple(torch.as_tensor(value) for value in given),
            {i: Expected((torch.as_tensor(v),), 2.0**-11) for i, v in enumerate(wanted)},
        )
        for given, wanted in calls
    )
    return {method: {"the report's": expected}}


def _hazards(path: Path) -> Complaints:
    package = Package.from_folder(path)
    lines = tuple(
        f"{code} {one.place}: {one.evidence}"
        for name in package.functions
        for code, one in hazards_of(package, name)
    )
    return {"hazards": lines} if lines else {}


def mb() -> Any:
    """Return MIL's builder; coremltools takes seconds to import."""
    from coremltools.converters.mil.mil import Builder

    return Builder

"""A child process that runs a subject by three executors and compares each with fp64."""

from __future__ import annotations

import gc
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.child import limit_memory, serve
from harness.shim import install
from harness.suites.second_opinion.compare import measured
from harness.suites.second_opinion.executors import (
    EXECUTORS,
    Refused,
    flat,
    in_precision,
    reference,
)
from harness.suites.second_opinion.models import SUBJECTS
from harness.suites.second_opinion.operations import Function, Subject
from harness.suites.second_opinion.values import DTYPES, ORDINARY, drawn

MEMORY = 8 << 30
Found = dict[str, Any]
Given = dict[str, dict[str, list[Tensor]]]  # by subject and kind


class Batch(nn.Module):
    """Subjects side by side in one module: one conversion for all, no value shared."""

    def __init__(self, modules: Sequence[nn.Module], sizes: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.sizes = nn.ModuleList(modules), tuple(sizes)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Return the outputs of all parts, one after the other."""
        found, place = [], 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            found += flat(part(*inputs[place : place + size]))
            place += size
        return found


@torch.no_grad()
def judged(request: dict[str, Any]) -> dict[str, dict[str, Found]]:
    """Return what each executor gave for each subject in one precision.

    What it gave is the largest `error` of each kind of values, the `problems` by kind, and the
    number of elements `compared`; or `refused`, the message of its converter.
    """
    warnings.simplefilter("ignore")
    names, precision = request["subjects"], request["precision"]
    modules = {name: in_precision(SUBJECTS[name].make(), DTYPES[precision]) for name in names}
    given: Given = {name: _inputs(name, precision) for name in names}
    found: dict[str, dict[str, Found]] = {}
    for executor in request.get("executors", EXECUTORS):
        found[executor] = _ran(executor, names, modules, given, precision)
    return found


def _inputs(name: str, precision: str) -> dict[str, list[Tensor]]:
    subject = SUBJECTS[name]
    return {
        kind: [drawn(one, kind, precision, i, name) for i, one in enumerate(subject.inputs)]
        for kind in subject.kinds
    }


def _ran(
    executor: str,
    names: Sequence[str],
    modules: dict[str, nn.Module],
    given: Given,
    precision: str,
) -> dict[str, Found]:
    """Run a batch; halve one that a converter refuses until the subject is alone."""
    ordinary = [given[name][ORDINARY] for name in names]
    sizes = [len(inputs) for inputs in ordinary]
    batch = Batch([modules[name] for name in names], sizes)
    try:
        run = EXECUTORS[executor](batch, [x for inputs in ordinary for x in inputs], precision)
    except Refused as error:
        if len(names) == 1:
            return {names[0]: {"refused": str(error)}}
        half = len(names) // 2
        first = _ran(executor, names[:half], modules, given, precision)
        return first | _ran(executor, names[half:], modules, given, precision)
    found: dict[str, Found] = {
        name: {"errors": {}, "problems": {}, "compared": 0} for name in names
    }
    for kind in dict.fromkeys(kind for name in names for kind in given[name]):
        values = {name: given[name].get(kind, given[name][ORDINARY]) for name in names}
        outputs = run([x for name in names for x in values[name]])
        for name in names:
            wanted = _wanted(executor, SUBJECTS[name], modules[name], values[name])
            mine, outputs = outputs[: len(wanted)], outputs[len(wanted) :]
            if kind in given[name]:
                _add(found[name], kind, mine, wanted, SUBJECTS[name], precision)
    return found


def _wanted(
    executor: str, subject: Subject, module: nn.Module, inputs: Sequence[Tensor]
) -> list[Tensor]:
    """Return the outputs in fp64: of the module, or of what MIL documents for our executor."""
    if executor == "mil" and subject.documented is not None:
        module = Function(subject.documented)
    return reference(module, inputs)


def _add(
    found: Found,
    kind: str,
    outputs: list[Tensor],
    wanted: list[Tensor],
    subject: Subject,
    precision: str,
) -> None:
    one = measured(outputs, wanted, subject.measure, subject.bound(precision), precision)
    found["errors"][kind] = one.error
    found["compared"] += one.compared
    if one.problem:
        found["problems"][kind] = one.problem


if __name__ == "__main__":
    install()  # before anything imports coremltools
    importlib.import_module("coremltools")
    gc.freeze()  # coremltools collects garbage at each conversion: not what is loaded by now
    limit_memory(MEMORY)
    serve(judged)

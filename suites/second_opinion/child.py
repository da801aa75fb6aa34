"""A child process that runs a subject by three executors and compares each with fp64."""

from __future__ import annotations

import gc
import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
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


@dataclass(frozen=True)
class Prepared:
    """A subject in one precision; by kind of values its inputs, and the outputs in fp64.

    `documented` are the outputs that our executor must give.
    """

    module: nn.Module
    inputs: dict[str, list[Tensor]]
    exact: dict[str, list[Tensor]]
    documented: dict[str, list[Tensor]]


@cache
def prepared(name: str, precision: str) -> Prepared:
    """Return a subject with its inputs and what they must give, which is computed once."""
    subject = SUBJECTS[name]
    module = in_precision(subject.make(), DTYPES[precision])
    inputs = {
        kind: [drawn(one, kind, precision, i, name) for i, one in enumerate(subject.inputs)]
        for kind in subject.kinds
    }
    exact = {kind: reference(module, given) for kind, given in inputs.items()}
    documented = exact
    if subject.documented is not None:
        function = Function(subject.documented)
        documented = {kind: reference(function, given) for kind, given in inputs.items()}
    return Prepared(module, inputs, exact, documented)


@torch.no_grad()
def judged(request: dict[str, Any]) -> dict[str, dict[str, Found]]:
    """Return what each executor gave for each subject in one precision.

    What it gave is the largest `error` of each kind of values, the `problems` by kind, and the
    number of elements `compared`; or `refused`, the message of its converter.
    """
    warnings.simplefilter("ignore")
    names, precision = request["subjects"], request["precision"]
    executors = request.get("executors", EXECUTORS)
    return {executor: _ran(executor, names, precision) for executor in executors}


def _ran(executor: str, names: Sequence[str], precision: str) -> dict[str, Found]:
    """Run a batch; halve one that a converter refuses until the subject is alone."""
    parts = {name: prepared(name, precision) for name in names}
    ordinary = [part.inputs[ORDINARY] for part in parts.values()]
    batch = Batch([part.module for part in parts.values()], [len(inputs) for inputs in ordinary])
    try:
        run = EXECUTORS[executor](batch, [x for inputs in ordinary for x in inputs], precision)
    except Refused as error:
        if len(names) == 1:
            return {names[0]: {"refused": str(error)}}
        half = len(names) // 2
        first = _ran(executor, names[:half], precision)
        return first | _ran(executor, names[half:], precision)
    found: dict[str, Found] = {
        name: {"errors": {}, "problems": {}, "compared": 0} for name in names
    }
    for kind in dict.fromkeys(kind for part in parts.values() for kind in part.inputs):
        given = [part.inputs.get(kind, part.inputs[ORDINARY]) for part in parts.values()]
        outputs = run([x for inputs in given for x in inputs])
        for name, part in parts.items():
            wanted = part.documented if executor == "mil" else part.exact
            count = len(wanted[ORDINARY])
            mine, outputs = outputs[:count], outputs[count:]
            if kind in wanted:
                _add(found[name], kind, mine, wanted[kind], SUBJECTS[name], precision)
    return found


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

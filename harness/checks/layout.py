"""The constant methods that tell a runner where caches, masks and tables go."""

from __future__ import annotations

from collections.abc import Iterator

from harness.generate.constants import ConstantReader
from harness.results import Finding
from harness.subject import Subject


def check_cache_rows(subject: Subject) -> Iterator[Finding]:
    """Each row of `kv_cache_specs` pairs a layer's cache inputs with the same layer's outputs.

    Inputs and outputs come in layer order, so a row must have one place in all four columns.
    ExecuTorch 1.4 sorts rows by the cache's name as text ("l10,h0" before "l2,h0") but numbers the
    outputs in layer order: from eleven layers on, a runner that believes the rows stores one
    layer's keys in another layer's cache.
    """
    reader = ConstantReader(subject.artifact.constants)
    names = [name for name in subject.artifact.constants if name.endswith("kv_cache_specs")]
    for name in names:
        rows = reader.table(name, 5)
        columns = list(zip(*rows, strict=True))[:4]  # key in, key out, value in, value out
        places = zip(*(_places(column) for column in columns), strict=True)
        crossed = sum(len(set(place)) > 1 for place in places)
        yield Finding(
            "cache-rows",
            name,
            ok=crossed == 0,
            message=f"{crossed} of {len(rows)} rows pair one layer's input with another layer's "
            "output",
            comparisons=len(rows),
            facts={"crossed rows": crossed},
        )


def _places(column: tuple[int, ...]) -> list[int]:
    """Return each number's place among the column's numbers in order."""
    places = {number: place for place, number in enumerate(sorted(column))}
    return [places[number] for number in column]

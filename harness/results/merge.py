"""Merges the streams of a run's parts into one run; refuses overlaps and gaps. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.files import partial_file
from harness.results import Footer, InvalidStream, Run, read_run
from harness.results.lines import format_line
from harness.results.machine import Header

# What must be equal in all parts of one run. Their machines may differ.
_EQUAL = ("versions", "exporter_packages", "options", "project", "artifact")
_SEPARATOR = " | "


def merge(paths: Sequence[str | Path]) -> Run:
    """Read streams and return one run with the cases of all, in the order of their shards.

    Raises InvalidStream for a stream that is there twice, a shard that is missing, a case that two
    streams hold, and headers that differ in anything but time and machine.
    """
    runs = {str(path): read_run(path) for path in paths}
    if len(runs) < len(paths):
        twice = next(str(path) for path in paths if list(map(str, paths)).count(str(path)) > 1)
        raise InvalidStream(f"{twice} is named twice: name each stream once")
    if len(runs) == 1:
        return next(iter(runs.values()))
    _check_shards(runs)
    _check_headers(runs)
    _check_overlaps(runs)
    ordered = sorted(runs.values(), key=lambda run: run.header.shard.get("index", 0))
    cases = tuple(case for run in ordered for case in run.cases)
    seconds = round(sum(run.footer.seconds for run in ordered), 3)
    return Run(_merged_header([run.header for run in ordered]), cases, Footer.of(cases, seconds))


def write_run(path: Path, run: Run) -> None:
    """Write a run as a stream, whole or not at all."""
    records = [run.header.to_json(), *(case.to_json() for case in run.cases), run.footer.to_json()]
    with partial_file(path) as partial:
        text = "".join(f"{format_line(record)}\n" for record in records)
        partial.write_text(text, encoding="utf-8", newline="\n")


def _check_shards(runs: Mapping[str, Run]) -> None:
    """Raise InvalidStream unless the streams are all shards of one run, or none is a shard."""
    shards = {path: run.header.shard for path, run in runs.items()}
    if not any(shards.values()):
        return
    if whole := [path for path, shard in shards.items() if not shard]:
        raise InvalidStream(f"{whole[0]} is not a shard, others are: name the shards of one run")
    counts = {shard["count"] for shard in shards.values()}
    if len(counts) > 1:
        kinds = ", ".join(f"{path} is {_name(shard)}" for path, shard in shards.items())
        raise InvalidStream(f"The streams are shards of different runs: {kinds}")
    (count,) = counts
    found: dict[int, str] = {}
    for path, shard in shards.items():
        if (other := found.setdefault(shard["index"], path)) != path:
            raise InvalidStream(f"{other} and {path} are both shard {_name(shard)}: name one")
    if missing := [f"{index}/{count}" for index in range(1, count + 1) if index not in found]:
        raise InvalidStream(
            f"Shard {', '.join(missing)} is missing: name the streams of all {count} shards"
        )


def _check_headers(runs: Mapping[str, Run]) -> None:
    (first, base), *others = runs.items()
    for path, run in others:
        for group in _EQUAL:
            ours, theirs = (getattr(one.header, group) for one in (base, run))
            if changes := list(_changes(ours, theirs)):
                raise InvalidStream(
                    f"{first} and {path} differ in {group.replace('_', ' ')}: {', '.join(changes)};"
                    " merge streams of one commit, one environment and the same options"
                )


def _changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            yield f"{name} {ours.get(name)} and {theirs.get(name)}"


def _check_overlaps(runs: Mapping[str, Run]) -> None:
    owners: dict[str, str] = {}
    for path, run in runs.items():
        for case in run.cases:
            if (owner := owners.setdefault(case.id, path)) != path:
                raise InvalidStream(f"{owner} and {path} both hold case {case.id}")


def _merged_header(headers: Sequence[Header]) -> Header:
    """Return the header of a merged run; what differs between its machines is joined."""
    return replace(
        headers[0],
        started=min(header.started for header in headers),
        machine=_all([header.machine for header in headers]),
        mac=_all([header.mac for header in headers]),
        conditions={},
        shard={},
        merged=sum(header.merged or 1 for header in headers),
    )


def _all(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one table of several; values of one name that differ are joined."""
    values: dict[str, list[Any]] = {}
    for table in tables:
        for name, value in table.items():
            if value not in values.setdefault(name, []):
                values[name].append(value)
    return {name: _joined(found) for name, found in values.items()}


def _joined(values: Sequence[Any]) -> Any:
    """Return the only value; of several texts all, of several numbers the least."""
    if len(values) == 1:
        return values[0]
    if all(isinstance(value, str) for value in values):
        return _SEPARATOR.join(sorted(values))
    if all(isinstance(value, int | float) for value in values):
        return min(values)
    return values[0]


def _name(shard: Mapping[str, int]) -> str:
    return f"{shard['index']}/{shard['count']}"

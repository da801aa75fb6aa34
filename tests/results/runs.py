"""Small runs for the tests of streams, reports and the gate."""

import json
from dataclasses import replace
from pathlib import Path

from harness.results import Case, Figure, Header, Writer

HEADER = Header(
    started="2026-01-01T00:00:00+00:00",
    versions={"torch": "2.13.0"},
    machine={
        "os": "Linux",
        "release": "6",
        "arch": "x86_64",
        "cpu": "a",
        "cpus": 2,
        "memory_bytes": 1 << 34,
        "python": "3.11.7",
    },
    options={"runtime": "default"},
    project={},
)
PARITY = Case(
    suite="conformance",
    check="parity",
    fixture="tiny",
    mode="single",
    runtime="mil:widen",
    comparisons=1000,
    figures={
        "decode error": Figure(2e-7, "", bound=1e-5),
        "decode": Figure(3.0, "ms/token"),
    },
    facts={"pte bytes": 578076, "operations": 597, "opset": "CoreML8"},
)
SKIPPED = replace(
    PARITY, runtime="executorch", outcome="skip", reason="not here", comparisons=0, figures={}
)


def write_run(path: Path, *cases: Case, header: Header = HEADER) -> Path:
    """Write a finished run of these cases."""
    with Writer(path, header) as writer:
        for case in cases:
            writer.add(case)
    return path


def lines_of(path: Path) -> list[dict]:
    """Return the stream's records."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, records: list) -> Path:
    """Write records without validating them."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path

"""The hooks of the suites that judge subjects, with more models and the reference runtime alone."""

from __future__ import annotations

import pytest

from harness.runtimes import REFERENCE
from harness.suites.conformance.conftest import (
    Suite,
    add_options,
    configure,
    judge,
    pytest_collection_modifyitems,
    pytest_generate_tests,
    pytest_report_header,
    pytest_runtest_makereport,
    record,
    subjects,
)

__all__ = [
    "judge",
    "pytest_collection_modifyitems",
    "pytest_generate_tests",
    "pytest_report_header",
    "pytest_runtest_makereport",
    "record",
    "subjects",
]

GENERATION = Suite(
    "generation",
    ("tiny", "layers-1", "layers-2", "layers-12", "qwen3"),
    (REFERENCE,),
    "results/generation",
    unshared=False,
)
STEPS = 600  # of each subject; the suite's 18 subjects make 10,800


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser, GENERATION)
    parser.getgroup(GENERATION.name).addoption(
        "--steps",
        type=int,
        default=STEPS,
        help="the least number of steps in any order, of each subject",
    )


def pytest_configure(config: pytest.Config) -> None:
    configure(config, GENERATION)

"""Each option of each exporter: it changes what it promises, is reported as ignored, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.checks import run_check
from harness.export.exporters import Exporter
from harness.fixtures.cache import exported, fixture
from harness.models.config import load_params
from harness.results import Case
from harness.suites.options.judge import check_of
from harness.suites.options.traces import MODEL, TRACES, Trace


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: f"{trace.name}-{trace.base.mode}")
def test_an_option_leaves_its_trace(
    record: Callable[[Case], None], exporter: Exporter, exporter_name: str, trace: Trace
) -> None:
    config = load_params(fixture(MODEL).params)
    record(
        run_check(
            check_of(trace, config),
            lambda: lambda options: exported(MODEL, options, exporter=exporter),
            suite="options",
            fixture=exporter_name,
            mode=trace.base.mode,
        )
    )

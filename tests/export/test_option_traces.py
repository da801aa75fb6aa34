"""The judge can fail: an exporter that drops an option, reports it wrongly, or does half of it."""

from dataclasses import replace

import pytest

from harness.export import plan
from harness.export.coreml import export
from harness.fixtures.cache import exported, fixture
from harness.models.config import load_params
from harness.suites.options import judge as judges
from harness.suites.options.judge import judge
from harness.suites.options.traces import MODEL, TRACES, WHOLE, Trace

CONFIG = load_params(fixture(MODEL).params)
CHANGED = [trace for trace in TRACES if trace.verdict == "changed"]


def sound(options):
    """Export by ours."""
    return exported(MODEL, options, exporter="coreml")


def without(trace):
    """Return an exporter that parses and stores the option of a trace, and never reads it."""
    value = getattr(trace.base, trace.option)
    return lambda options: sound(replace(options, **{trace.option: value}))


@pytest.mark.parametrize("trace", CHANGED, ids=lambda trace: f"{trace.name}-{trace.base.mode}")
def test_an_option_that_is_never_read_is_dead(trace):
    verdict = judge(trace, CONFIG, without(trace))
    assert verdict.kind == "dead" and f"--{trace.option.replace('_', '-')} " in verdict.text


def test_an_option_that_a_part_of_the_exporter_drops_is_dead(tmp_path, monkeypatch):
    """The plan is made with a fixed number of splits; all else knows the option."""
    trace = next(trace for trace in CHANGED if trace.option == "max_splits")
    count = plan.split_count
    monkeypatch.setattr(
        plan, "split_count", lambda options, rows: count(replace(options, max_splits=8), rows)
    )
    source = fixture(MODEL)

    def make(options):
        return export(source.checkpoint, source.params, options, tmp_path / str(options.max_splits))

    assert judge(trace, CONFIG, make).kind == "dead"


def test_an_option_without_effect_that_nobody_reports_is_dead(monkeypatch):
    trace = Trace("max_splits", 4, WHOLE, "ignored")
    assert judge(trace, CONFIG, sound).kind == "ignored"
    monkeypatch.setattr(judges, "ignored_options", lambda *given: iter(()))
    assert judge(trace, CONFIG, sound).kind == "dead"


def test_a_report_of_no_effect_is_wrong_where_there_is_one(monkeypatch):
    trace = next(trace for trace in CHANGED if trace.option == "graph_breaks")
    said = ["--graph-breaks False has no effect"]
    monkeypatch.setattr(judges, "ignored_options", lambda *given: iter(said))
    assert judge(trace, CONFIG, sound).kind == "misreported"


@pytest.mark.parametrize(
    ("option", "value", "instead", "missing"),
    [
        ("input_len", 8, {"input_len": 4}, "tokens of a call"),
        ("embedding_quantize", "4,32", {"embedding_quantize": "4,0"}, "group of the embedding"),
        ("target_split_size", 64, {"target_split_size": 32}, "linears by rows"),
        ("linear_quantize", "b4w", {"linear_quantize": "none"}, "group of the linears"),
        ("graph_breaks", False, {"max_context_len": 96}, "delegate calls"),
        ("weight_sharing", "none", {"dtype": "fp32", "weight_sharing": "positional"}, "packages"),
    ],
)
def test_an_option_that_changes_something_else_is_broken(option, value, instead, missing):
    trace = next(one for one in CHANGED if (one.option, one.value) == (option, value))
    swapped = replace(trace.base, **instead)
    verdict = judge(
        trace, CONFIG, lambda options: sound(trace.base if options == trace.base else swapped)
    )
    assert verdict.kind == "broken" and missing in verdict.text

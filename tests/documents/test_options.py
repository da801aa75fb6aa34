"""docs/options.md: its names and defaults are the parsers', and each option leaves its trace."""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest

from harness.artifact import open_artifact
from harness.artifact.facts import artifact_facts
from harness.checks import artifact_checks, run_check
from harness.cli.export import add_export_arguments
from harness.export.options import ExportOptions
from harness.fixtures.cache import exported, fixture
from harness.runtimes import REFERENCE
from harness.subject import Subject
from tests.documents.pages import ROOT

PAGE = ROOT / "docs" / "options.md"
SCRIPT = "executorch.examples.apple.coreml.llama.export_static_llm_coreml"
PARSER_OF = f"""
import argparse, json, runpy, sys
def show(parser, *given):
    rows = [[list(a.option_strings), a.required, a.default] for a in parser._actions]
    print("parser: " + json.dumps(rows))
    sys.exit()
argparse.ArgumentParser.parse_args = show
runpy.run_module({SCRIPT!r}, run_name="__main__")
"""


@cache
def table():
    """Return the page's rows, each a list of six cells."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def on_the_page(names, default):
    """Return the options of two columns: names and default, as the parsers below give them."""
    return {
        frozenset(re.findall(r"`(-[^`]+)`", row[names])): row[default].strip("`")
        for row in table()
        if row[names] != "-"
    }


def shown(required, default):
    if required:
        return "required"
    return "-" if default in (None, argparse.SUPPRESS) else "off" if default is False else default


def test_the_table_has_our_options_with_their_defaults():
    parser = argparse.ArgumentParser(add_help=False)
    add_export_arguments(parser)
    defaults = ExportOptions().as_dict()
    found = {}
    for action in parser._actions:
        default = defaults.get(action.dest, action.default)
        if isinstance(action, argparse._StoreFalseAction):
            default = not default
        found[frozenset(action.option_strings)] = str(shown(action.required, default))
    assert on_the_page(0, 1) == found


def test_the_table_has_the_options_of_executorchs_script_with_their_defaults():
    pytest.importorskip("executorch")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PARSER_OF], capture_output=True, text=True
    )
    line = re.search(r"^parser: (.*)$", done.stdout, re.MULTILINE)
    assert line, done.stderr[-2000:]
    rows = json.loads(line[1])
    found = {frozenset(n): str(shown(*rest)) for n, *rest in rows if "--help" not in n}
    assert on_the_page(2, 3) == found


SINGLE = ExportOptions(input_len=16, max_context_len=128)
MULTI = replace(SINGLE, mode="multifunction")
CUT = replace(SINGLE, target_split_size=64)


def method(facts, name="forward"):
    return next(m for m in facts.methods if m.name == name)


def shapes(facts):
    return {(t.dtype, *t.shape) for m in facts.methods for t in (*m.inputs, *m.outputs)}


def counts(facts, kind):
    return sum(f.operations.get(kind, 0) for p in facts.packages for f in p.functions)


def stored(facts):
    return sum(package.sharing.stored for package in facts.packages)


def longest(facts):
    """Return the length of the caches: that of the keys of a layer."""
    return max(t.shape[2] for t in method(facts).inputs if len(t.shape) == 4)


# The option, the export without it, what it changes, and the trace that the page names.
TRACES = [
    ("--mode", SINGLE, {"mode": "multifunction"}, lambda a, b: (
        [m.name for m in a.methods] == ["forward"]
        and sorted(m.name for m in b.methods) == ["forward", "prefill"]
        and not any(p.multifunction for p in a.packages)
        and all(p.multifunction for p in b.packages)
        and (longest(a), longest(b)) == (112, 127)
    )),
    ("--weight-sharing", MULTI, {"weight_sharing": "none"}, lambda a, b: (
        (len(a.packages), len(b.packages)) == (3, 6)
        # a package of two functions also stores equal scales once
        and 1 <= stored(b) / (2 * stored(a)) < 1.02
    )),
    ("--input-len", SINGLE, {"input_len": 8}, lambda a, b: (
        {s[1:] for s in shapes(a) if s[0] == "int32"} == {(1, 16)}
        and {s[1:] for s in shapes(b) if s[0] == "int32"} == {(1, 8)}
        and (longest(a), longest(b)) == (112, 120)
    )),
    ("--max-context-len", SINGLE, {"max_context_len": 64}, lambda a, b: (
        (longest(a), longest(b)) == (112, 48)
        and a.constants["freqs_cos"]["shape"][0] == 128
        and b.constants["freqs_cos"]["shape"][0] == 64
    )),
    ("--dtype", SINGLE, {"dtype": "fp32"}, lambda a, b: (
        {s[0] for s in shapes(a)} == {"int32", "float16"}
        and {s[0] for s in shapes(b)} == {"int32", "float32"}
        and (a.constants["freqs_cos"]["dtype"], b.constants["freqs_cos"]["dtype"])
        == ("float16", "float32")
    )),
    ("--embedding-quantize", SINGLE, {"embedding_quantize": None}, lambda a, b: (
        counts(a, "constexpr_blockwise_shift_scale")
        == counts(b, "constexpr_blockwise_shift_scale") + 1
        and stored(b) - stored(a) == 512 * 64 * 2 - 512 * (64 + 2)
    )),
    ("--linear-quantize", SINGLE, {"linear_quantize": "b4w"}, lambda a, b: (
        stored(b) > stored(a)
        and counts(a, "constexpr_blockwise_shift_scale")
        == counts(b, "constexpr_blockwise_shift_scale")
    )),
    ("--linear-quantize", SINGLE, {"linear_quantize": "none"}, lambda a, b: (
        counts(a, "constexpr_blockwise_shift_scale") > 1
        and counts(b, "constexpr_blockwise_shift_scale") == 1
    )),
    ("--target-split-size", SINGLE, {"target_split_size": 64}, lambda a, b: (
        # of the rows of tiny's layers, 192 are cut into 3 and the head's 512 into 8
        counts(b, "linear") - counts(a, "linear") == 4 * 2 * 2 + 7
    )),
    ("--max-splits", CUT, {"max_splits": 2}, lambda a, b: (
        counts(a, "linear") - counts(b, "linear") == 4 * 2 * 1 + 6
    )),
    ("--no-graph-breaks", SINGLE, {"graph_breaks": False}, lambda a, b: (
        (len(a.packages), len(b.packages)) == (3, 1)
        and (method(a).delegate_calls, method(b).delegate_calls) == (3, 1)
    )),
]  # fmt: skip
NAMES = [f"{name}={next(iter(change.values()))}" for name, _, change, _ in TRACES]


def test_every_option_that_changes_the_artifact_has_a_trace():
    seen = {row[0].split("`")[1] for row in table() if row[5] != "-"}
    assert {name for name, *_ in TRACES} == seen - {"--checkpoint", "--params"}


@pytest.mark.parametrize("exporter", ["coreml", pytest.param("executorch", marks=pytest.mark.long)])
@pytest.mark.parametrize(("name", "without", "change", "holds"), TRACES, ids=NAMES)
def test_an_option_leaves_its_trace_and_its_check_sees_it(name, without, change, holds, exporter):
    options = [without, replace(without, **change)]
    paths = [exported("tiny", one, exporter=exporter) for one in options]
    assert holds(*(artifact_facts(open_artifact(path)) for path in paths))
    (check,) = {row[5].strip("`") for row in table() if f"`{name}`" in row[0]}
    default, other = (judged(check, path, without) for path in paths)
    assert default.outcome == "pass"
    assert seen(default) != seen(other)


def judged(name, path, options):
    check, source = artifact_checks()[name], fixture("tiny")
    subject = Subject(path, source.checkpoint, source.params, options)
    runtime = REFERENCE if check.takes_runtime else None
    return run_check(check, subject, runtime, suite="documents", fixture="tiny", mode=options.mode)


def seen(case):
    return case.outcome, case.comparisons, case.facts, case.reason

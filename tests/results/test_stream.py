"""A result stream is read back as it was written, or refused with a sentence."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

import harness.results
from harness.cli import main
from harness.errors import HarnessError
from harness.results import (
    Case,
    Figure,
    Histogram,
    InvalidStream,
    MissingFooter,
    OperationError,
    Profile,
    RecordedFinding,
    Stream,
    Writer,
    read_run,
)
from tests.results.runs import HEADER, PARITY, SKIPPED, lines_of, write_lines, write_run


@pytest.fixture
def stream(tmp_path):
    return write_run(tmp_path / "run.jsonl", PARITY, SKIPPED)


def test_a_run_comes_back_as_it_was_written(stream):
    run = read_run(stream)
    assert (run.header, run.cases) == (HEADER, (PARITY, SKIPPED))
    assert run.footer.passed and run.footer.comparisons == 1000
    assert run.footer.counts["pass"] == run.footer.counts["skip"] == 1


def test_every_line_is_valid_by_the_published_schema(stream):
    schema = json.loads((Path(harness.results.__file__).parent / "schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for record in lines_of(stream):
        validator.validate(record)
    assert not validator.is_valid({"type": "case", "outcome": "fine"})


def test_an_interrupted_run_leaves_a_partial_stream_and_no_result(tmp_path):
    path = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt), Writer(path, HEADER) as writer:
        writer.add(PARITY)
        raise KeyboardInterrupt
    (partial,) = tmp_path.iterdir()
    assert partial.name.endswith(".partial")
    with pytest.raises(MissingFooter, match="no footer after 1 cases"):
        read_run(partial)


def test_an_echo_receives_every_line_of_the_file(tmp_path):
    printed = []
    with Writer(tmp_path / "run.jsonl", HEADER, printed.append) as writer:
        writer.add(PARITY)
    assert printed == (tmp_path / "run.jsonl").read_text().splitlines()


def test_a_stream_without_a_file_is_the_same(tmp_path):
    lines = []
    stream = Stream(HEADER, lines.append)
    stream.add(PARITY)
    footer = stream.finish()
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(lines))
    run = read_run(path)
    assert (run.header, run.cases, run.footer) == (HEADER, (PARITY,), footer)


def test_a_header_may_name_the_artifact_of_the_run(tmp_path):
    artifact = {"name": "model.pte", "sha256": "a" * 64, "bytes": 578076}
    header = replace(HEADER, artifact=artifact)
    assert read_run(write_run(tmp_path / "run.jsonl", PARITY, header=header)).header == header
    with pytest.raises(HarnessError, match="header cannot be recorded: artifact"):
        write_run(tmp_path / "run.jsonl", header=replace(HEADER, artifact={"name": "model.pte"}))
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


def test_findings_and_warnings_come_back(tmp_path):
    warning = RecordedFinding("H01", "function 'main'", "may overflow", True)
    wrong = RecordedFinding("A50", "a", "has no type", count=30, others=tuple("b" * 29))
    cases = (
        replace(PARITY, findings=(warning,)),
        replace(PARITY, mode="m", outcome="fail", reason="r", findings=(wrong, warning)),
    )
    run = read_run(write_run(tmp_path / "run.jsonl", *cases))
    kept = replace(wrong, others=tuple("b" * 19))
    assert run.cases == (cases[0], replace(cases[1], findings=(kept, warning)))
    assert run.footer.warnings == 2
    with pytest.raises(HarnessError, match=r"passed although it found this: A50 a: has no type"):
        replace(PARITY, findings=(wrong,))


OPERATIONS = (
    OperationError("method 'a'", "linear", "x", "layer 0", 0.25, 1e-3),
    OperationError("method 'a'", "mul", "y", "layer 1", math.inf, math.nan),
    OperationError("method 'b', delegate 0", "add", "z"),
)


def test_histograms_and_profiles_come_back(tmp_path):
    sizes = {"logits": Histogram(-3, (5, 0, 2), exact=1, lost=4)}
    case = replace(PARITY, histograms=sizes, profile=Profile("the distance", OPERATIONS, 7))
    (back,) = read_run(write_run(tmp_path / "run.jsonl", case)).cases
    assert back.histograms == sizes and back.profile.left_out == 7
    assert repr(back.profile) == repr(case.profile)  # NaN equals nothing
    assert back.profile.first.result == "y"


def test_a_stream_of_schema_1_is_read(stream):
    records = lines_of(stream)
    assert records[0]["schema"] == 2
    records[0]["schema"] = 1
    (case, _) = read_run(write_lines(stream, records)).cases
    assert case == PARITY and not case.histograms and case.profile is None


def test_a_profile_too_large_for_a_line_keeps_the_first_and_the_largest_errors(tmp_path):
    """The first error beyond its bound, 2, is smaller than those that inherit it."""
    operations = tuple(
        OperationError(f"method {n % 3} " + "\u20ac" * 300, "add", f"{n} " + "\u20ac" * 90, "", n)
        for n in range(3000)
    )
    case = replace(PARITY, profile=Profile("the distance", operations))
    (back,) = read_run(write_run(tmp_path / "run.jsonl", case)).cases
    kept = [one.error for one in back.profile.operations]
    assert 500 < len(kept) == 3000 - back.profile.left_out < 3000
    assert kept == [2, *range(3001 - len(kept), 3000)]
    assert back.profile.first.error == 2


@pytest.mark.parametrize(("error", "kept"), [(1.00001, 1.00001), (0.99999, 1), (1.23456, 1.235)])
def test_four_digits_hide_no_error_beyond_its_bound(tmp_path, error, kept):
    operation = OperationError("method 'm'", "add", "x", error=error, total=1.00001)
    case = replace(PARITY, profile=Profile("the distance", (operation,)))
    (back,) = read_run(write_run(tmp_path / "run.jsonl", case)).cases
    (read,) = back.profile.operations
    assert (read.error, read.total, read.is_beyond) == (kept, 1, error > 1)


def test_a_stream_of_a_time_before_findings_is_read(stream):
    assert all("findings" not in record for record in lines_of(stream))
    assert "warnings" not in lines_of(stream)[-1]


def forget_the_warnings(records):
    finding = {"code": "H01", "place": "", "evidence": "may overflow", "warning": True}
    records[1]["findings"] = [finding]


def break_footer(records):
    records[-1]["counts"]["pass"] += 1


def drop_a_case(records):
    del records[1]


def repeat_a_case(records):
    records.insert(2, records[1])


def second_header(records):
    records.insert(1, records[0])


def unknown_outcome(records):
    records[1]["outcome"] = "fine"


def pass_of_nothing(records):
    records[1]["comparisons"] = 0


def pass_beyond_a_bound(records):
    records[1]["figures"]["decode error"]["value"] = 1.0


def other_id(records):
    records[1]["id"] = "conformance/parity[big,single,mil:widen]"


def unknown_place(records):
    row = [1, "add", "x", "", 0.5, None]
    records[1]["profile"] = {"measure": "m", "places": ["a"], "operations": [row], "left_out": 0}


def negative_count(records):
    records[1]["histograms"] = {"x": {"first": 0, "counts": [-1], "exact": 0, "lost": 0}}


def after_the_footer(records):
    records.append(records[1])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (break_footer, "the footer says counts"),
        (forget_the_warnings, "the footer says warnings 0, its cases say 1"),
        (drop_a_case, "the footer says"),
        (repeat_a_case, "line 3: .* is there twice"),
        (second_header, "line 2: a stream starts with its header"),
        (unknown_outcome, "line 2"),
        (pass_of_nothing, "line 2: comparisons: 0 is less than the minimum of 1"),
        (pass_beyond_a_bound, "line 2: .*passed although its figure decode error"),
        (other_id, "line 2: The id .* does not belong"),
        (unknown_place, "line 2: operation x is at place 1 of 1"),
        (negative_count, "line 2: .*-1 is less than the minimum"),
        (after_the_footer, "line 5: the footer must be the last line"),
        (lambda records: records.pop(), "no footer"),
        (lambda records: records.clear(), "is empty"),
    ],
)
def test_a_stream_that_lies_is_refused(stream, change, problem):
    records = lines_of(stream)
    change(records)
    with pytest.raises(InvalidStream, match=problem):
        read_run(write_lines(stream, records))


def test_bad_json_is_named_with_its_line(stream):
    lines = stream.read_text().splitlines()
    stream.write_text("\n".join([lines[0], lines[1][:-5], *lines[2:]]))
    with pytest.raises(InvalidStream, match=r"run\.jsonl, line 2"):
        read_run(stream)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InvalidStream, match="cannot be read"):
        read_run(tmp_path / "missing.jsonl")
    with pytest.raises(InvalidStream, match="holds 0 result files"):
        read_run(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidStream, match="not a regular file"):
        read_run(tmp_path / "pipe")


def test_a_folder_stands_for_its_only_stream(stream, tmp_path, capsys):
    folder = stream.parent
    assert read_run(folder) == read_run(stream)
    assert main(["gate", str(folder), str(stream)]) == 0
    assert main(["report", str(folder)]) == main(["report", str(stream)])
    (folder / "other.jsonl").write_bytes(stream.read_bytes())
    with pytest.raises(InvalidStream, match=r"holds 2 result files .*: other\.jsonl, run\.jsonl"):
        read_run(folder)
    assert main(["check", str(folder)]) == 2
    assert f"`harness report {folder}` shows them" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_kept_and_never_passes(tmp_path, value):
    figure = Figure(value, "", bound=1.0)
    assert not figure.within_bound
    with pytest.raises(HarnessError, match="passed although"):
        replace(PARITY, figures={"error": figure})
    case = replace(PARITY, figures={"error": figure}, outcome="fail", reason="not finite")
    (back,) = read_run(write_run(tmp_path / "run.jsonl", case)).cases
    have = back.figures["error"].value
    assert have == value or (math.isnan(have) and math.isnan(value))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"outcome": "skip"}, "needs a reason"),
        ({"outcome": "error", "reason": "x"}, "needs a stage"),
        ({"outcome": "crash", "reason": "x"}, "needs a signal"),
        ({"outcome": "known", "reason": "x"}, "needs a issue"),
        ({"check": "a,b"}, "its check is"),
        ({"facts": {"x": [1]}}, "a fact is"),
    ],
)
def test_a_case_that_does_not_say_what_it_must_is_refused(fields, problem):
    with pytest.raises(HarnessError, match=problem):
        Case(**{"suite": "s", "check": "c", "comparisons": 1, **fields})


def test_a_known_defect_that_stops_showing_is_a_failure():
    failed = replace(PARITY, outcome="fail", reason="off", figures={})
    assert failed.judged_against_known("issue 1").outcome == "known"
    assert PARITY.judged_against_known("issue 1").outcome == "fail"
    assert SKIPPED.judged_against_known("issue 1") == SKIPPED


def test_a_run_in_which_nothing_passed_has_not_passed(tmp_path):
    assert not read_run(write_run(tmp_path / "run.jsonl", SKIPPED)).footer.passed

"""Streams of shards become one run; overlaps, gaps and other circumstances are refused."""

from dataclasses import replace

import pytest

from harness.cli import main
from harness.errors import HarnessError
from harness.results import InvalidStream, read_run
from harness.results.merge import merge
from harness.suites.conformance.conftest import parse_shard
from tests.results.runs import HEADER, PARITY, SKIPPED, write_run

GREEDY = replace(PARITY, check="greedy", comparisons=7)
THIRD = replace(PARITY, check="residues")


def shard(index, count=3, **changes):
    return replace(HEADER, shard={"index": index, "count": count}, **changes)


@pytest.fixture
def write(tmp_path):
    """Write a stream into a folder of its own, as each job of a CI does."""

    def write(folder, header, *cases):
        return str(write_run(tmp_path / folder / "conformance.jsonl", *cases, header=header))

    return write


@pytest.fixture
def three(write):
    return [
        write("a", shard(1), PARITY, SKIPPED),
        write("b", shard(2), GREEDY),
        write("c", shard(3), THIRD),
    ]


def test_shards_become_one_run_whatever_their_order(three, tmp_path, capsys):
    out = tmp_path / "all"
    assert main(["report", three[2], three[0], three[1], "-o", str(out)]) == 0
    run = read_run(out / "conformance.jsonl")
    assert [case.id for case in run.cases] == [c.id for c in (PARITY, SKIPPED, GREEDY, THIRD)]
    assert run.footer.comparisons == 2007 and run.header.merged == 3 and not run.header.shard
    assert {file.name for file in out.iterdir()} > {"index.html", "junit.xml", "table.txt"}
    assert "3 pass, 1 skip" in capsys.readouterr().out


def test_a_shard_alone_is_drawn_and_told(three, capsys):
    assert main(["report", three[1]]) == 0
    assert "This is shard 2 of 3, not the whole run" in capsys.readouterr().out


def test_a_failure_in_one_shard_fails_the_whole(three, write):
    failed = write("c", shard(3), replace(THIRD, outcome="fail", reason="off"))
    assert main(["report", *three[:2], failed]) == 1


def refusal(*paths):
    with pytest.raises(InvalidStream) as caught:
        merge(paths)
    return str(caught.value)


def test_a_gap_is_named(three):
    assert "Shard 2/3 is missing" in refusal(three[0], three[2])


def test_an_overlap_is_named_with_both_streams(three, write):
    again = write("d", shard(3), GREEDY)
    assert refusal(*three[:2], again) == f"{three[1]} and {again} both hold case {GREEDY.id}"
    twice = write("e", shard(2), THIRD)
    assert "are both shard 2/3" in refusal(*three, twice)
    assert "named twice" in refusal(*three, three[0])


def test_shards_of_different_runs_are_refused(three, write):
    assert "is 2/4" in refusal(*three, write("d", shard(2, 4), THIRD))
    assert "is not a shard" in refusal(*three, write("d", HEADER, SKIPPED))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"versions": {"torch": "2.14.0"}}, "differ in versions: torch 2.13.0 and 2.14.0"),
        ({"options": {"runtime": ["mil:widen"]}}, "differ in options: runtime default and"),
        ({"project": {"commit": "a" * 40}}, "differ in project: commit None and aaaa"),
        (
            {"exporters": {"executorch": {"executorch": "1.5.1"}}},
            "differ in exporter packages: executorch/executorch None and 1.5.1",
        ),
    ],
)
def test_headers_that_differ_are_refused_with_what_differs(three, write, change, sentence):
    assert sentence in refusal(*three[:2], write("c", shard(3, **change), THIRD))


def test_machines_may_differ_and_are_all_named(three, write):
    other = {**HEADER.machine, "cpu": "another", "cpus": 1}
    run = merge([*three[:2], write("c", shard(3, machine=other), THIRD)])
    assert (run.header.machine["cpu"], run.header.machine["cpus"]) == ("a | another", 1)


def test_macs_may_differ_and_their_conditions_before_are_left_out(three, write):
    first = write("a", shard(1, mac={"model": "A", "cores": 8}, conditions={"heat": 1}), PARITY)
    last = write("c", shard(3, mac={"model": "B", "cores": 4}), THIRD)
    header = merge([first, three[1], last]).header
    assert header.mac == {"model": "A | B", "cores": 4} and not header.conditions


def test_streams_that_are_no_shards_are_merged(write):
    run = merge([write("a", HEADER, PARITY), write("b", HEADER, GREEDY)])
    assert len(run.cases) == 2 and run.header.merged == 2


def test_no_input_is_overwritten(three, tmp_path, capsys):
    before = read_run(three[0])
    assert main(["report", *three, "-o", str(tmp_path / "a")]) == 2
    assert "give -o another folder" in capsys.readouterr().err
    assert read_run(three[0]) == before and len(list((tmp_path / "a").iterdir())) == 1


@pytest.mark.parametrize("text", ["", "0/5", "6/5", "2", "2/0", "a/b", "-1/5", "1/10000"])
def test_a_text_that_is_no_shard_is_refused(text):
    with pytest.raises(HarnessError, match="give K/N"):
        parse_shard(text)

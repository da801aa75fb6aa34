"""Faults of result files: a stream that lies is refused, and a run that became worse is told.

The run is a real one, of the checks of bytes and of parity on the fixture `tiny`.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.measure import compare_runs
from harness.results import Footer, Header, Run, Writer, read_run
from harness.results.cases import Case
from harness.results.merge import merge
from harness.suites.mutants.faults import ANY, Complaints, Mutant, fault
from harness.suites.mutants.judge import OF_BYTES, judged, sound

Records = list[dict[str, Any]]  # the lines of a stream: header, cases, footer
PARITY = r"mutants/parity\[.*\]: "


@functools.cache
def sound_stream() -> str:
    """Return the text of the sound run, which is made once."""
    with tempfile.TemporaryDirectory() as folder:
        with Writer(path := Path(folder, "sound.jsonl"), Header.here({}, {})) as writer:
            for name in (*OF_BYTES, "parity"):
                writer.add(judged(sound("single"), name))
        return path.read_text(encoding="utf-8")


def judge_stream(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Read the changed stream, compare it with the sound one, and merge it with its other half.

    `read`, `gate` and `merge` name what refused it.
    """
    records: Records = [json.loads(line) for line in sound_stream().splitlines()]
    changed = (mutant.mutate or (lambda records: None))(records)
    text = changed if isinstance(changed, str) else "".join(map(_line, records))
    base, head = mutant.folder / "base.jsonl", mutant.folder / "head.jsonl"
    base.write_text(sound_stream(), encoding="utf-8")
    head.write_text(text, encoding="utf-8")
    try:
        run = read_run(head)
    except HarnessError as error:
        return {"read": (str(error),)}
    try:
        if shard := run.header.shard:
            (copy := mutant.folder / "copy.jsonl").write_text(text, encoding="utf-8")
            merge([head, copy if shard["count"] > 1 else base])
    except HarnessError as error:
        return {"merge": (str(error),)}
    result = compare_runs(read_run(base), run)
    worse = [m for m in result.metrics if m.verdict in ("regression", "changed", "inconclusive")]
    lines = tuple(f"{m.case}: {m.name}: {m.base} -> {m.head} {m.reason}" for m in worse)
    return {"gate": lines} if lines else {}


def _line(record: dict[str, Any]) -> str:
    return f"{json.dumps(record)}\n"


def parity(records: Records) -> dict[str, Any]:
    """Return the record of the case that has figures."""
    return next(record for record in records if record.get("check") == "parity")


def close(records: Records) -> None:
    """Write the footer that the changed cases would have."""
    run = Run(*_parsed(records))
    records[-1] |= {k: v for k, v in run.footer.to_json().items() if k != "conditions"}


def _parsed(records: Records) -> tuple[Header, tuple[Case, ...], Footer]:
    cases = tuple(Case.from_json(record) for record in records[1:-1])
    return Header.from_json(records[0]), cases, Footer.of(cases, records[-1]["seconds"])


row = partial(
    fault, room="results", judge=judge_stream, modes=ANY, kinds=("stream",), tested=("stream",)
)


@row("a stream without its footer", {"read": "has no footer after 12 cases"})
def drop_the_footer(records: Records) -> None:
    """End the stream after its last case, as a killed run does."""
    del records[-1]


@row("a stream that was cut", {"read": r"line \d+: not JSON"})
def cut(records: Records) -> str:
    """Cut the stream within a line, as a full disk does."""
    return "".join(map(_line, records))[:-40]


@row("a lost case", {"read": r"the footer says counts \{.*its cases say"})
def lose_a_case(records: Records) -> None:
    """Take a line out of the stream."""
    records.remove(parity(records))


@row("a footer that counts one more", {"read": "the footer says counts"})
def count_one_more(records: Records) -> None:
    """Let the footer count a pass that is not there."""
    records[-1]["counts"]["pass"] += 1


@row("a footer that says passed", {"read": "the footer says passed True, its cases say False"})
def call_it_passed(records: Records) -> None:
    """Let a case fail, and the footer call the run passed."""
    parity(records).update(outcome="fail", reason="the logits are wrong")
    close(records)
    records[-1]["passed"] = True


@row("a footer of more comparisons", {"read": r"the footer says comparisons \d+, its cases say"})
def compare_more(records: Records) -> None:
    """Let the footer sum up comparisons that no case made."""
    records[-1]["comparisons"] += 1000


@row(
    "a figure above its bound called pass",
    {"read": r"line \d+: Case mutants/parity.*: it passed although its figure decode error is"},
)
def exceed_a_bound(records: Records) -> None:
    """Raise a figure above its bound without changing the outcome."""
    figure = parity(records)["figures"]["decode error"]
    figure["value"] = 10 * figure["bound"]


@row("a pass without comparisons", {"read": r"line \d+: comparisons: 0 is less than"})
def compare_nothing(records: Records) -> None:
    """Let a case pass that compared nothing."""
    parity(records)["comparisons"] = 0
    records[-1]["comparisons"] = sum(record["comparisons"] for record in records[1:-1])


@row("a case under another name", {"read": r"The id .*parity.* does not belong to case"})
def rename_a_case(records: Records) -> None:
    """Let the id name another check than the case."""
    parity(records)["check"] = "greedy"


@row("a case twice", {"read": r"line \d+: case mutants/parity\S+ is there twice"})
def repeat_a_case(records: Records) -> None:
    """Write a case twice."""
    records.insert(1, dict(parity(records)))


@row("a case after the footer", {"read": r"line \d+: the footer must be the last line"})
def continue_after_the_footer(records: Records) -> None:
    """Append a case to a finished stream."""
    records.append(records.pop(1))


@row("no header", {"read": "line 1: a stream starts with its header"})
def drop_the_header(records: Records) -> None:
    """Begin a stream with a case."""
    del records[0]


@row("two runs in one file", {"read": r"line \d+: a stream starts with its header and has only"})
def append_a_run(records: Records) -> str:
    """Write two streams into one file."""
    return 2 * "".join(map(_line, records))


@row("an unknown outcome", {"read": r"line \d+: outcome: 'okay' is not one of"})
def unknown_outcome(records: Records) -> None:
    """Give a case an outcome that does not exist."""
    parity(records).update(outcome="okay", reason="fine")


@row("a failure without a reason", {"read": r"line \d+: .*reason|the outcome fail needs a reason"})
def fail_without_a_reason(records: Records) -> None:
    """Let a case fail without a reason."""
    parity(records).update(outcome="fail", reason="")


@row("a figure that is not a number", {"read": r"line \d+: NaN is not JSON"})
def not_a_number(records: Records) -> None:
    """Write NaN as a figure's value, as Python's json does."""
    parity(records)["figures"]["decode error"]["value"] = float("nan")


@row("a key twice in a case", {"read": r"line \d+: an object names the same key twice"})
def key_twice(records: Records) -> str:
    """Give a case two outcomes."""
    text = "".join(map(_line, records))
    return text.replace('"outcome": "pass"', '"outcome": "fail", "outcome": "pass"', 1)


@row("a check that no longer runs", {"gate": rf"{PARITY}.*pass"})
def no_longer_run(records: Records) -> None:
    """Leave a check out of a run that is whole otherwise."""
    records.remove(parity(records))
    close(records)


@row("a check that is skipped", {"gate": rf"{PARITY}outcome: pass -> skip"})
def skip(records: Records) -> None:
    """Skip a check that passed before."""
    case = parity(records)
    case.update(outcome="skip", reason="not here", comparisons=0, figures={}, facts={})
    close(records)


@row("an error that grew within its bound", {"gate": rf"{PARITY}decode error: "})
def grow_an_error(records: Records) -> None:
    """Let an error eat most of its headroom."""
    figure = parity(records)["figures"]["decode error"]
    figure["value"] = 0.9 * figure["bound"]
    close(records)


@row("a fact that changed", {"gate": r"mutants/references\[.*\]: pte bytes: "})
def grow_the_file(records: Records) -> None:
    """Let the artifact be a tenth larger."""
    case = next(record for record in records if record.get("check") == "references")
    case["facts"]["pte bytes"] = int(1.1 * case["facts"]["pte bytes"])
    close(records)


@row("a bound that was loosened", {"gate": rf"{PARITY}decode error: "})
def loosen_a_bound(records: Records) -> None:
    """Raise an error and its bound together, so that the case still passes."""
    figure = parity(records)["figures"]["decode error"]
    figure["value"] *= 20
    figure["bound"] *= 20
    close(records)


@row("a shard twice", {"merge": "are both shard 1/2"})
def one_of_two_shards(records: Records) -> None:
    """Say that a run is the first of two shards, and merge it with its copy."""
    records[0]["shard"] = {"index": 1, "count": 2}


@row("a shard of another run", {"merge": "is not a shard, others are"})
def whole_beside_a_shard(records: Records) -> None:
    """Say that a run is the only shard, and merge it with a whole run."""
    records[0]["shard"] = {"index": 1, "count": 1}

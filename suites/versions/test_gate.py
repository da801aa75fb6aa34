"""The gate by name: a checkout with one changed line fails in the tier of that line.

One that is unchanged does not. `harness gate` exports, compares and times as a user has it do.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.suites.versions.checkouts import (
    BROKEN,
    SCALE,
    SHARING,
    SLEEP,
    Change,
    write_checkout,
)
from harness.suites.versions.test_versions import harness

Gate = Callable[[Change | None], tuple[int, dict[str, Any]]]
OWN_RUNTIME = "tiny/multifunction: ExecuTorch's own runtime, our executor as its delegate"


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Compare a checkout with its release; return the exit status and gate.json."""

    def compare(change: Change | None) -> tuple[int, dict[str, Any]]:
        checkout = write_checkout(tmp_path / "checkout", change)
        sides = ("--base", "executorch", "--head", f"executorch@{checkout}")
        words = (*sides, "--mode", "multifunction", "--seconds", "300")
        done = harness("gate", *words, "--results", tmp_path / "results")
        written = tmp_path / "results" / "gate.json"
        if not written.exists():
            raise HarnessError(done.stdout + done.stderr)
        return done.returncode, json.loads(written.read_text(encoding="utf-8"))

    return compare


def bad(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics that fail the gate."""
    return [one for one in result["metrics"] if one["verdict"] in ("regression", "changed")]


def test_an_unchanged_checkout_is_no_regression(gate: Gate) -> None:
    status, result = gate(None)
    assert status in (0, 4) and bad(result) == []
    sources = [result[side]["sources"]["exporter"] for side in ("base", "head")]
    assert sources[0] == sources[1]
    assert len(result["metrics"]) > 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(SCALE, ["logits of decode", "0.2524"], id="one scale"),
        pytest.param(SHARING, ["sharing of the blocks' weights is lost"], id="sharing"),
        pytest.param(BROKEN, ["export", "this branch cannot export"], id="export"),
    ],
)
def test_a_changed_exporter_fails_where_the_change_shows(
    gate: Gate, change: Change, said: list[str]
) -> None:
    status, result = gate(change)
    assert status == 1
    found = json.dumps(bad(result)) + json.dumps(result["notes"])
    assert all(words in found for words in said), found
    assert not any("own runtime" in one["case"] for one in result["metrics"])


def test_a_sleep_in_the_runtime_fails_in_the_time_of_that_runtime_alone(gate: Gate) -> None:
    status, result = gate(SLEEP)
    assert status == 1
    assert {one["case"] for one in bad(result)} == {OWN_RUNTIME}
    (decode,) = (one for one in bad(result) if one["name"] == "decode")
    assert decode["numbers"]["ratio"] > 1.1

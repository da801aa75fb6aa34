"""The matrix of small models covers every pair, fits its options, and is reproducible."""

import itertools
import json
import os
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from harness.errors import HarnessError
from harness.export.options import check_fit
from harness.fixtures import MODELS, all_models, cache, model
from harness.fixtures.matrix import build, matrix
from harness.fixtures.varied import VARIED
from harness.models.checkpoint import is_tied, load_checkpoint
from harness.models.config import load_params, parse_params

ROOT = Path(__file__).resolve().parents[2]
WANTED = {  # from the issue that asked for the matrix
    "layers": {1, 2, 12},
    "heads": {"multi", "grouped", "single"},
    "channels": {72, 96, 128},
    "tied": {False, True},
    "dtype": {"fp16", "fp32"},
    "linear": {"none", "c4w", "b4w"},
    "embedding": {None, "8,0", "8,32", "4,0", "4,32"},
    "split": {False, True},
    "breaks": {False, True},
    "input": {1, 8, 13},
    "context": {40, 72},
    "wide index": {False, True},
    "mode": {"single", "multifunction"},
    "sharing": {"positional", "none"},
    "scaled rope": {False, True},
}


def circumstances(row):
    """Return the properties of a row, read from its sources of files and export."""
    params, options = row.settings["params"], row.options
    return {
        "layers": params["n_layers"],
        "heads": {params["n_heads"]: "multi", 1: "single"}.get(params["n_kv_heads"], "grouped"),
        "channels": params["dim"],
        "tied": row.settings["tied"],
        "dtype": options.dtype,
        "linear": options.linear_quantize,
        "embedding": options.embedding_quantize,
        "split": options.target_split_size is not None,
        "breaks": options.graph_breaks,
        "input": options.input_len,
        "context": options.max_context_len,
        "wide index": params["vocab_size"] > 65535,
        "mode": options.mode,
        "sharing": options.weight_sharing,
        "scaled rope": params.get("use_scaled_rope", False),
    }


def possible(pair):
    """Return whether two circumstances can occur together at all."""
    both = dict(pair)
    columns, embedding = both.get("channels", 32), both.get("embedding") or ""
    grouped = both.get("linear") == "b4w" or embedding.endswith(",32")
    no_sharing = both.get("sharing") == "none" and both.get("mode") == "single"
    return not (grouped and columns % 32) and not no_sharing


def uncovered(rows):
    """Return the pairs of circumstances that no row has."""
    covered = set()
    for row in rows:
        covered |= set(itertools.combinations(sorted(circumstances(row).items()), 2))
    wanted = itertools.combinations(sorted(WANTED.items()), 2)
    pairs = [
        ((first, a), (second, b))
        for (first, of_first), (second, of_second) in wanted
        for a, b in itertools.product(of_first, of_second)
    ]
    assert len(pairs) > 400
    return [pair for pair in pairs if possible(pair) and pair not in covered]


def test_every_possible_pair_of_circumstances_is_in_a_row():
    assert uncovered(matrix().values()) == []
    assert len(matrix()) <= 25  # a full product would be a million


def test_a_row_that_is_left_out_would_be_missed():
    rows = list(matrix().values())
    assert uncovered(rows[1:]) and uncovered(rows[: len(rows) // 2])


@pytest.mark.parametrize("row", matrix().values(), ids=list(matrix()))
def test_a_rows_export_options_fit_its_sizes(row):
    check_fit(row.options, parse_params(row.settings["params"]))
    assert row.modes == (row.options.mode,)
    assert row.options.input_len < row.options.cache_len + row.options.input_len


def test_some_split_really_cuts_a_layer():
    row = next(row for row in matrix().values() if row.options.target_split_size)
    assert row.settings["params"]["hidden_dim"] > row.options.target_split_size


def test_the_rows_are_the_same_in_every_process():
    code = (
        "import hashlib, json\n"
        "from harness.fixtures.matrix import matrix\n"
        "rows = [[m.name, m.description, m.settings, m.options.as_dict()]\n"
        "        for m in matrix().values()]\n"
        "print(hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {"71355b4f317662b03494f3414db46399cf740e32fed4526be582d058663419a9"}


def test_the_weights_of_a_row_are_seeded_and_of_its_sizes(tmp_path):
    tied = next(row for row in matrix().values() if row.settings["tied"])
    untied = next(row for row in matrix().values() if not row.settings["tied"])
    for row in (tied, untied):
        build(tmp_path, **row.settings)
        config = load_params(tmp_path / "params.json")
        weights = load_checkpoint(tmp_path / "checkpoint.pth", config)
        assert is_tied(weights) == row.settings["tied"]
    assert json.loads((tmp_path / "params.json").read_text()) == untied.settings["params"]


def test_another_seed_gives_other_weights_and_the_same_one_the_same(tmp_path):
    settings = next(iter(matrix().values())).settings

    def weights(seed):
        build(tmp_path, **{**settings, "seed": seed})
        return torch.load(tmp_path / "checkpoint.pth", weights_only=True)

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_other_settings_are_another_fixture(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    rows = [row for row in matrix().values() if row.settings["params"]["vocab_size"] < 1000][:2]
    first, second = (cache.fixture(row.name) for row in rows)
    assert first.digest != second.digest
    assert cache.fixture(rows[0].name) == first
    with pytest.raises(HarnessError, match=f"{first.name} has no tokenizer"):
        _ = first.tokenizer


def test_rows_are_found_by_name_beside_the_other_models():
    assert all_models().keys() == MODELS.keys() | VARIED.keys() | matrix().keys()
    assert model("matrix-02") is matrix()["matrix-02"]
    with pytest.raises(
        HarnessError, match=r"no model 'matrix-99'; .*there are tiny, .*, and matrix"
    ):
        model("matrix-99")


def test_the_rows_of_twelve_layers_are_those_whose_cache_rows_are_known_to_be_sorted_as_text():
    known = tomllib.loads((ROOT / "suites" / "known.toml").read_text())["known"]
    patterns = [row["fixture"] for row in known if row.get("check") == "cache-rows"]
    named = {name for name in matrix() if any(fnmatch(name, pattern) for pattern in patterns)}
    assert named == {n for n, row in matrix().items() if row.settings["params"]["n_layers"] > 10}

"""An export without sharing, extracted and combined, equals an export with sharing.

The judges are ExecuTorch's own export with positional sharing, and the executed parts themselves.
"""

import dataclasses

import numpy as np
import pytest
import torch

from harness.artifact import Package, open_artifact
from harness.artifact.facts import duplicate_bytes, sharing
from harness.diff import diff_artifacts
from harness.fixtures.cache import exported, fixture
from harness.mil import get_policy, load_function
from harness.packages import combine_packages, extract_packages

METHODS = ("forward", "prefill")


@pytest.fixture(scope="module")
def exports():
    """Return the fixture model's exports in two methods, without sharing and with ExecuTorch's."""
    options = dataclasses.replace(fixture("tiny").options, mode="multifunction")
    return {
        kind: open_artifact(exported("tiny", dataclasses.replace(options, weight_sharing=kind)))
        for kind in ("none", "positional")
    }


@pytest.fixture(scope="module")
def parts(exports, tmp_path_factory):
    """Return the extracted packages by method and partition."""
    output = tmp_path_factory.mktemp("parts") / "out"
    extraction = extract_packages(exports["none"], output)
    return {
        (use.method, use.delegate): output / found.package
        for found in extraction.packages
        for use in found.used_by
    }


@pytest.fixture(scope="module")
def combined(parts, tmp_path_factory):
    """One package for each partition, with the functions of both methods."""
    folder = tmp_path_factory.mktemp("combined")
    partitions = sorted({partition for _, partition in parts})
    assert len(partitions) == 3
    for partition in partitions:
        chosen = [(parts[method, partition], "main", method) for method in METHODS]
        combine_packages(chosen, folder / f"{partition}.mlpackage", "forward")
    return [Package.from_folder(folder / f"{partition}.mlpackage") for partition in partitions]


def execute(package, function):
    """Execute a function in widen on seeded inputs; indices are small enough for any table."""
    loaded = load_function(package, function, get_policy("widen"))
    random = np.random.default_rng(11)
    inputs = {}
    for name, spec in loaded.inputs.items():
        if "int" in spec.dtype.numpy:
            values = random.integers(0, min(4, spec.count), spec.shape).astype(spec.dtype.numpy)
        else:
            values = random.standard_normal(spec.shape).astype(spec.dtype.numpy)
        inputs[name] = torch.from_numpy(values)
    return loaded(inputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("partition", range(3))
def test_a_combined_function_computes_what_its_part_does(parts, combined, method, partition):
    alone = execute(Package.from_folder(parts[method, partition]), "main")
    together = execute(combined[partition], method)
    assert alone.keys() == together.keys() and alone
    for name, values in alone.items():
        assert values.numel() and torch.isfinite(values).all()
        assert torch.equal(together[name], values), name


def test_it_shares_as_much_as_executorch_does(exports, combined):
    theirs = [sharing(bundle.package) for bundle in exports["positional"].bundles]
    ours = [sharing(package) for package in combined]
    assert [s.used for s in ours] == [s.used for s in theirs]
    assert [s.stored for s in ours] <= [s.stored for s in theirs]
    assert all(duplicate_bytes(package) == 0 for package in combined)


def test_coremltools_opens_them(combined):
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    for package in combined:
        model = ct.models.MLModel(package.what, skip_model_load=True)
        program = load(model.get_spec(), 9, model.weights_dir)
        assert sorted(program.functions) == list(METHODS)


def test_diff_finds_the_same_functions_under_other_names(exports):
    """Sharing changes the places of weights and the names of functions, not their results."""
    found = diff_artifacts(exports["none"], exports["positional"])
    kinds = {difference.kind for difference in found}
    assert not kinds & {
        "operation",
        "operations",
        "weight",
        "wiring",
        "input",
        "output",
        "constant",
    }
    assert "delegate" in kinds and "option" in kinds


@pytest.mark.parametrize("kind", ["none", "positional"])
def test_executorchs_own_tool_extracts_the_same_files(exports, tmp_path, kind):
    from executorch.examples.apple.coreml.scripts.extract_coreml_models import (
        extract_coreml_models,
    )

    folders = extract_coreml_models(exports[kind].path.read_bytes(), tmp_path / "theirs")
    extraction = extract_packages(exports[kind], tmp_path / "ours")
    theirs = [files(next(folder.iterdir())) for folder in folders]
    ours = [files((tmp_path / "ours" / p.package).parent) for p in extraction.packages]
    assert ours == theirs and len(ours) == (6 if kind == "none" else 3)


def files(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

"""Sharing by construction, by combining the bytes and by coremltools gives one result.

The parts are both exporters' exports in two methods without sharing.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.artifact import Package, open_artifact
from harness.diff import diff_artifacts
from harness.fixtures.cache import exported, fixture
from harness.packages import combine_packages, extract_packages
from tests.packages.test_exports import execute

METHODS = ("forward", "prefill")
PARTITIONS = ("embedding", "blocks", "head")
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def export(exporter, sharing):
    options = dataclasses.replace(
        fixture("tiny").options, mode="multifunction", weight_sharing=sharing
    )
    return exported("tiny", options, exporter=exporter)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return the packages of a partition by exporter, in the order of METHODS."""
    theirs = tmp_path_factory.mktemp("parts") / "out"
    extraction = extract_packages(open_artifact(export("executorch", "none")), theirs)
    ours = export("coreml", "none")
    extracted = {
        (use.method, use.delegate): theirs / found.package
        for found in extraction.packages
        for use in found.used_by
    }

    def get(exporter, partition):
        if exporter == "coreml":
            return [ours / f"{method}_{partition}" / "model.mlpackage" for method in METHODS]
        return [extracted[method, PARTITIONS.index(partition)] for method in METHODS]

    return get


def directly(paths, output):
    named = [(path, "main", method) for path, method in zip(paths, METHODS, strict=True)]
    combine_packages(named, output, METHODS[0])
    return Package.from_folder(output)


def by_coremltools(paths, output):
    import coremltools as ct

    descriptor = ct.utils.MultiFunctionDescriptor()
    for path, method in zip(paths, METHODS, strict=True):
        descriptor.add_function(str(path), "main", method)
    descriptor.default_function_name = METHODS[0]
    ct.utils.save_multifunction(descriptor, str(output))
    return Package.from_folder(output)


def contents(package):
    """The weights of a package: dtype and bytes."""
    references = {key for function in package.functions for key in package.weights(function)}
    blobs = [package.blob(*reference) for reference in references]
    return {(blob.dtype, bytes(blob.data)) for blob in blobs}


def kinds_of_difference(one, other):
    found = diff_artifacts(open_artifact(Path(one.what)), open_artifact(Path(other.what)))
    return {difference.kind for difference in found}


def assert_described_alike(one, other):
    assert one.model.specificationVersion == other.model.specificationVersion
    for field in ("functions", "defaultFunctionName", "input", "output", "state"):
        assert getattr(one.model.description, field) == getattr(other.model.description, field)
    assert [f.name for f in one.model.description.functions] == list(METHODS)


def assert_functions_compute_alike(one, other):
    for method in METHODS:
        expected, found = execute(one, method), execute(other, method)
        assert expected.keys() == found.keys() and expected
        for name, values in expected.items():
            assert values.numel() and torch.isfinite(values).all()
            assert torch.equal(values, found[name]), f"{method}: {name}"


@pytest.mark.parametrize("partition", PARTITIONS)
def test_our_exporter_shares_the_weights_that_combining_shares(parts, tmp_path, partition):
    combined = directly(parts("coreml", partition), tmp_path / "c.mlpackage")
    built = Package.from_folder(export("coreml", "positional") / partition / "model.mlpackage")
    # the weights have another order, so offsets differ, and the bytes that these take
    assert kinds_of_difference(combined, built) <= {"file", "package", "size"}
    assert_described_alike(combined, built)
    assert contents(combined) == contents(built) and contents(built)
    assert len(combined.files[WEIGHTS]) == len(built.files[WEIGHTS])
    assert_functions_compute_alike(combined, built)


@pytest.mark.parametrize(
    ("exporter", "partition"),
    [("coreml", "embedding"), ("coreml", "head"), ("executorch", "blocks"), ("executorch", "head")],
)
def test_both_ways_of_combining_give_one_result(parts, tmp_path, exporter, partition):
    paths = parts(exporter, partition)
    ours = directly(paths, tmp_path / "ours.mlpackage")
    theirs = by_coremltools(paths, tmp_path / "theirs.mlpackage")
    assert_described_alike(ours, theirs)
    # coremltools adds a bias of zeros to a linear layer; all other weights are the same
    added = contents(theirs) - contents(ours)
    assert contents(ours) <= contents(theirs)
    assert all(not np.frombuffer(data, np.uint8).any() for _, data in added)
    assert bool(added) == ((exporter, partition) == ("coreml", "head"))
    if not added:
        assert kinds_of_difference(ours, theirs) <= {"file", "package", "size", "metadata"}
        assert len(ours.files[WEIGHTS]) == len(theirs.files[WEIGHTS])
    assert_functions_compute_alike(ours, theirs)

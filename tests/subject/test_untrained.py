"""A sound untrained model passes, although its norms, all ones, are missing in the program."""

import shutil

import pytest
import torch

from harness.artifact import open_artifact
from harness.checks import artifact_checks, run_check
from harness.fixtures.cache import exported, fixture
from harness.fixtures.small_llama import export_small, subject, write_model
from harness.mil.function import load_function
from harness.mil.types import get_policy
from harness.models.recognise import _collect, _Parts, read_model
from harness.subject import Subject


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Return a folder with a model whose norms are ones, and its export without them."""
    folder = tmp_path_factory.mktemp("untrained")
    checkpoint, _ = write_model(folder)
    weights = torch.load(checkpoint)
    torch.save(
        {n: torch.ones_like(w) if "norm" in n else w for n, w in weights.items()}, checkpoint
    )
    export_small(folder, folder / "kept")
    shutil.copytree(folder / "kept", folder / "out")
    for bundle in open_artifact(folder / "out").bundles:
        package = bundle.package
        for name in package.functions:
            drop_norm_weights(package.operations(name))
        spec = next((folder / "out").rglob(f"{bundle.what.split(chr(39))[1]}/**/model.mlmodel"))
        spec.write_bytes(package.model.SerializeToString())
    return folder


def drop_norm_weights(block):
    """Remove each product with a norm's weight, as coremltools' passes do when it is all ones."""
    roots = {op.outputs[0].name for op in block.operations if op.type == "rsqrt"}
    normed, replaced, dropped = set(), {}, []
    for op in block.operations:
        names = {key: value.arguments[0].name for key, value in op.inputs.items()}
        if op.type == "mul" and roots & set(names.values()):
            normed.add(op.outputs[0].name)
        elif op.type == "mul" and names["x"] in normed:
            replaced[op.outputs[0].name] = names["x"]
            dropped.append(op)
        for value in op.inputs.values():
            for argument in value.arguments:
                if argument.name in replaced:
                    argument.name = replaced[argument.name]
    for op in dropped:
        block.operations.remove(op)


def test_norms_of_ones_are_read_although_the_program_lacks_them(untrained):
    kept, (_, weights) = (
        read_model(open_artifact(untrained / n), "forward") for n in ("kept", "out")
    )
    norms = {name: weight for name, weight in weights.items() if "norm" in name}
    assert len(norms) == 5 and all(torch.equal(w, torch.ones(64)) for w in norms.values())
    assert weights.keys() == kept[1].keys()


def test_an_untrained_model_passes(untrained):
    judged = subject(untrained, untrained / "out")
    for name in ("weights", "parity", "residues", "fp16-range"):
        check = artifact_checks()[name]
        case = run_check(check, judged, "mil:strict" if check.takes_runtime else None, suite="test")
        assert case.outcome == "pass", case.reason


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_a_norm_of_pytorch_is_read_with_and_without_its_weight(tmp_path, weight):
    """coremltools divides by `sqrt`: queries and keys of Qwen3, as ExecuTorch exports them."""
    import coremltools as ct

    norm = torch.nn.RMSNorm(8, eps=1e-6)
    torch.nn.init.constant_(norm.weight, weight)
    model = torch.nn.Sequential(norm, torch.nn.ReLU())
    program = torch.export.export(model, (torch.ones(2, 8),)).run_decompositions({})
    fp32 = ct.precision.FLOAT32
    made = ct.convert(program, minimum_deployment_target=ct.target.iOS18, compute_precision=fp32)
    made.save(str(tmp_path / "norm.mlpackage"))
    (package,) = open_artifact(tmp_path / "norm.mlpackage").packages
    function = load_function(package, "main", get_policy("widen"))
    _collect(function, package.operations("main"), parts := _Parts())
    assert parts.epsilons == pytest.approx([1e-6])
    (found,) = parts.norms
    assert found is None if weight == 1 else found.tolist() == [weight] * 8


def test_an_export_that_was_to_share_nothing_has_not_failed_to_share(tmp_path):
    write_model(tmp_path)
    export_small(tmp_path, tmp_path / "out", mode="multifunction", weight_sharing="none")
    case = run_check(artifact_checks()["weight-sharing"], Subject(tmp_path / "out"), suite="test")
    assert case.outcome == "skip" and "without weight sharing" in case.reason


def test_executorchs_compile_specs_say_that_nothing_was_to_be_shared():
    from dataclasses import replace

    options = replace(fixture("tiny").options, mode="multifunction", weight_sharing="none")
    judged = Subject(exported("tiny", options))
    case = run_check(artifact_checks()["weight-sharing"], judged, suite="test")
    assert case.outcome == "skip" and "as it was asked for" in case.reason

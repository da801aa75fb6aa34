"""A defect of coremltools that shows in a user's artifact, and the row that marks it as known.

coremltools 9.0 and its pre-release 9.1 convert `GELU("tanh")` of an exported program, as
ExecuTorch's partitioner hands it over, to the exact GELU: the converter reads `approximate` as a
positional argument only. https://github.com/apple/coremltools/pull/2863 repairs it. No row of
`suites/known.toml` can match: which models have the operation is not in a case's name.
"""

import torch
from torch import nn

from harness.cli import main
from harness.fixtures.project import _project_above
from harness.results import read_run

KNOWN = """
[[known]]
issue = "coremltools 2863: the approximation of an exported GELU is lost"
check = "outputs"
fixture = "gelu"
runtime = "mil:widen"
"""
EXAMPLE = (torch.linspace(-4, 4, 64).reshape(4, 16),)


def tanh() -> nn.Module:
    return nn.Sequential(nn.GELU("tanh")).eval()


def exact() -> nn.Module:
    return nn.Sequential(nn.GELU()).eval()


def converted(model, folder):
    import coremltools as ct

    program = torch.export.export(model, EXAMPLE).run_decompositions({})
    package = ct.convert(
        program, minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT32
    )
    package.save(str(folder / "gelu.mlpackage"))
    return folder / "gelu.mlpackage"


def test_a_lost_approximation_is_found_and_can_be_marked_as_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def outcome(function, package):
        words = ["--reference", f"{__name__}:{function}", "--check", "outputs", "--name", "gelu"]
        main(["check", str(package), *words, "--runtime", "mil:widen", "--results", "out"])
        (case,) = read_run("out/check.jsonl").cases
        return case

    package = converted(tanh(), tmp_path)
    wrong = outcome("tanh", package)
    assert wrong.outcome == "fail" and "is off by" in wrong.reason
    assert outcome("exact", package).outcome == "pass"  # what the converter made of it
    (tmp_path / "harness.toml").write_text('known = ["known.toml"]\n')
    (tmp_path / "known.toml").write_text(KNOWN)
    _project_above.cache_clear()
    assert outcome("tanh", package).outcome == "known"

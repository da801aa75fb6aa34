"""ExecuTorch's real runtime on a program without delegates; Core ML needs a Mac."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.artifact import open_artifact
from harness.artifact.pte import PteMethod
from harness.artifact.pte_reader import read_pte
from harness.checks import artifact_checks, run_check
from harness.errors import HarnessError, NotInstalledError
from harness.fixtures.cache import exported, fixture
from harness.runtimes import base, get_runtime, isolated, runtime_row
from harness.runtimes import executorch as module
from harness.runtimes.executorch import ExecuTorchMethod, ExecuTorchRuntime
from harness.subject import Subject


class Scale(torch.nn.Module):
    def forward(self, x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2 + n, x - n


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export portable kernels only: fp16 [2, 3] and int64 [1] in, two fp16 tensors out."""
    from executorch.exir import to_edge

    example = (torch.ones(2, 3, dtype=torch.float16), torch.tensor([1]))
    path = tmp_path_factory.mktemp("portable") / "scale.pte"
    path.write_bytes(to_edge(torch.export.export(Scale(), example)).to_executorch().buffer)
    return path


@pytest.fixture
def plan(program: Path) -> PteMethod:
    return read_pte(program).methods["forward"]


def test_a_method_is_executed_in_its_declared_dtypes(program: Path, plan: PteMethod) -> None:
    method = ExecuTorchMethod(program, plan)
    assert [(spec.shape, spec.dtype) for spec in method.inputs] == [
        ((2, 3), "float16"),
        ((1,), "int64"),
    ]
    x = torch.arange(6, dtype=torch.float64).view(3, 2).t()
    doubled, less = method(x, torch.tensor([5], dtype=torch.int32))
    assert doubled.dtype == torch.float16
    assert doubled.tolist() == (x * 2 + 5).tolist()
    assert less.tolist() == (x - 5).tolist()


def test_results_outlive_the_next_call(program: Path, plan: PteMethod) -> None:
    method = ExecuTorchMethod(program, plan)
    first, _ = method(torch.zeros(2, 3), torch.tensor([1]))
    method(torch.zeros(2, 3), torch.tensor([9]))
    assert first.tolist() == torch.ones(2, 3).tolist()


def test_wrong_shapes_are_refused_before_executorch_sees_them(
    program: Path, plan: PteMethod
) -> None:
    method = ExecuTorchMethod(program, plan)
    with pytest.raises(HarnessError, match=r"called with shapes \[\[2, 2\], \[1\]\], declared"):
        method(torch.zeros(2, 2), torch.tensor([1]))


def test_executorchs_refusal_to_load_is_one_sentence(program: Path, plan: PteMethod) -> None:
    broken = program.with_name("broken.pte")
    broken.write_bytes(program.read_bytes()[:-40])
    with pytest.raises(HarnessError, match=r"broken.pte, method 'forward': ExecuTorch cannot load"):
        ExecuTorchMethod(broken, plan)


class Row(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(12.0).view(4, 3))

    def forward(self, x: torch.Tensor, scale: int) -> torch.Tensor:
        return self.table.index_select(0, x) * scale


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a look-up of one row of four, and a number that is an input of the program."""
    from executorch.exir import to_edge

    path = tmp_path_factory.mktemp("row") / "row.pte"
    exported_program = torch.export.export(Row(), (torch.tensor([1]), 2))
    path.write_bytes(to_edge(exported_program).to_executorch().buffer)
    return path


def test_an_input_that_is_no_tensor_is_refused_by_its_position(row: Path) -> None:
    with pytest.raises(HarnessError, match="method 'forward': input 1 is not a tensor"):
        ExecuTorchMethod(row, read_pte(row).methods["forward"])


def test_executorchs_failure_is_one_sentence(program: Path, plan: PteMethod) -> None:
    method = ExecuTorchMethod(program, plan)
    method._dtypes = [torch.float32, torch.int64]  # ExecuTorch itself refuses the first
    with pytest.raises(HarnessError, match="method 'forward': ExecuTorch cannot execute it: "):
        method(torch.zeros(2, 3), torch.tensor([1]))


def test_an_unknown_method_is_named_with_those_there_are(mixed_program) -> None:
    program = mixed_program[0]
    with pytest.raises(HarnessError, match="no method 'prefill'; its methods: forward"):
        ExecuTorchRuntime().load(open_artifact(program), "prefill")


def test_without_its_core_ml_backend_it_is_unavailable_with_its_reason() -> None:
    from executorch.runtime import Runtime

    reason = ExecuTorchRuntime().unavailable()
    if Runtime.get().backend_registry.is_available("CoreMLBackend"):
        assert reason is None
    else:
        assert reason is not None and "no CoreMLBackend (it has: " in reason


def test_a_backend_that_is_not_registered_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKEND", "SomeBackend")
    reason = module._why_no_core_ml.__wrapped__() or ""
    assert "has no SomeBackend (it has: " in reason and "XnnpackBackend" in reason


def test_a_runtime_that_does_not_import_is_unavailable_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "executorch.runtime", None)
    assert "cannot be imported" in (module._why_no_core_ml.__wrapped__() or "")


@pytest.mark.parametrize("place", ["1.5.1", "/a/folder:with@odd signs", "installed"])
def test_a_place_names_the_executorch_that_executes(place):
    row = runtime_row(f"executorch@{place}")
    assert (row.name, row.kind, row.place) == (f"executorch@{place}", "executorch", place)
    assert row.arguments == (place,) and row.rounds
    assert row.import_class()(*row.arguments).name == row.name


@pytest.mark.parametrize("name", ["mil@1.5.1", "executorch@", "eager:fp16@1.5.1"])
def test_other_runtimes_have_no_place(name):
    with pytest.raises(HarnessError, match="no runtime"):
        runtime_row(name)


def test_a_place_without_an_executorch_is_named():
    with pytest.raises(HarnessError, match="executorch@nowhere: give a version"):
        get_runtime("executorch@nowhere").unavailable()


def test_another_artifact_is_skipped_without_a_process(monkeypatch):
    monkeypatch.setattr("harness.runtimes.isolated._Process", None)  # none can start
    folder = exported("tiny", fixture("tiny").options, exporter="coreml")
    (package, *_) = sorted(folder.rglob("*.mlpackage"))
    for path, what in ((folder, "an exported folder"), (package, "an .mlpackage")):
        with pytest.raises(NotInstalledError, match=f"is {what}; executorch executes .pte files"):
            get_runtime("executorch").load(open_artifact(path), "forward")


def test_the_executorch_of_a_place_executes_everywhere():
    """On Linux, our executor is its Core ML backend."""
    subject = Subject(exported("tiny"))
    case = run_check(artifact_checks()["parity"], subject, "executorch@installed", suite="t")
    assert case.outcome == "pass" and case.comparisons, case.reason


def test_a_system_that_cannot_have_core_ml_is_told_without_a_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base.platform, "system", lambda: "Linux")
    monkeypatch.setattr(isolated, "_Process", None)  # a child would be a call of None
    assert get_runtime("executorch").unavailable() == "Core ML is part of macOS, and this is Linux"

"""`harness bisect --ranges` names what overflows or vanishes in fp16 for its inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.cli import main
from tests.hazards.programs import exported, given

LOGITS = torch.tensor([[12.0, 20.0, -3.0, 30.0]])


@pytest.mark.parametrize(
    ("function", "operation", "lost"),
    [
        (lambda x: torch.log_softmax(x, -1), "log", 2),
        (lambda x: torch.logcumsumexp(x, -1), "exp", 0),
    ],
)
def test_the_operation_is_named_and_only_strict_is_wrong(
    function: Callable[[torch.Tensor], torch.Tensor],
    operation: str,
    lost: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, right = exported(function, {"x": LOGITS}, tmp_path, precision="fp16"), function(LOGITS)
    for policy, is_right in (("strict", False), ("widen", True)):
        (have,) = given(path, LOGITS, policy=policy)
        assert torch.allclose(have.float(), right, atol=0.02) == is_right
    for scale, status in ((1.0, 1), (0.1, 0)):
        save_file({"x": LOGITS * scale}, tmp_path / "x.safetensors")
        call = ["bisect", str(path), "--ranges", "--inputs", str(tmp_path / "x.safetensors")]
        capsys.readouterr()
        assert main([*call, "--json"]) == status
        rows = json.loads(capsys.readouterr().out)
        bad = [one for one in rows if one["vanished"] or (one["overflow_margin"] or 1) < 1]
        assert any(one["operation"] == operation for one in bad) == bool(status)
        assert sum(one["vanished"] for one in rows) == (lost if status else 0)
        assert main(call) == status
        said = re.findall(
            r"^'main', log '\w+': (\d) of 4 values are logarithms of what fp16 rounds to 0$",
            capsys.readouterr().out,
            re.MULTILINE,
        )
        assert said == ([str(lost)] if lost and status else [])

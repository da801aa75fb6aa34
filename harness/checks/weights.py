"""The artifact's weights and tables against the checkpoint's: tensor by tensor, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from harness.models.config import load_params
from harness.models.model import rope_tables
from harness.models.recognise import read_model
from harness.results import Figure, Finding
from harness.subject import Subject


def check_weights(subject: Subject) -> Iterator[Finding]:
    """Every method's dequantized weights equal the checkpoint's after quantization, at 0 ULP.

    Each has the same tensors: a layer that only one of the two has is a difference.
    """
    expected = subject.expected_weights
    assert expected is not None
    for method in subject.artifact.methods:
        _, held = read_model(subject.artifact, method)
        different = [f"{name} is in one of the two only" for name in sorted(held.keys() ^ expected)]
        common = {name: want for name, want in expected.items() if name in held}
        different += [d for name, want in common.items() if (d := _difference(name, held, want))]
        yield Finding(
            "weights",
            f"method '{method}'",
            ok=not different,
            message=f"differ from the checkpoint's: {'; '.join(different[:5])}",
            comparisons=sum(want.numel() for want in common.values()),
            facts={"tensors": len(expected)},
        )


def _difference(name: str, held: dict[str, torch.Tensor], want: torch.Tensor) -> str:
    """Say how a tensor differs from the one that is wanted, "" when it does not."""
    have = held[name]
    if have.shape != want.shape:
        return f"{name} (shape {list(have.shape)}, not {list(want.shape)})"
    error = (have - want.to(torch.float32)).abs()
    wrong = int((error != 0).sum())  # NaN differs from everything
    return f"{name} ({wrong} of {want.numel()} values, by up to {error.max():.3g})" if wrong else ""


def check_tables(subject: Subject) -> Iterator[Finding]:
    """The RoPE tables equal exact ones to one ULP of their dtype, and to fp32's angle error.

    The norms' epsilon equals the checkpoint's, rounded.
    """
    assert subject.params is not None
    params = load_params(subject.params)
    cos, sin = subject.tables
    exact = rope_tables(params, cos.shape[0])
    allowed = table_error(cos)
    for name, table, want in (("cos", cos, exact[0]), ("sin", sin, exact[1])):
        over = ((table.double() - want).abs() / allowed).max()
        yield Finding(
            "tables",
            f"freqs_{name}",
            comparisons=table.numel(),
            figures={f"{name} error over allowed": Figure(float(over), "", bound=1.0)},
        )
    held, rounded = subject.held.norm_eps, float(torch.tensor(params.norm_eps, dtype=cos.dtype))
    yield Finding("tables", "norm_eps", held == rounded, f"is {held}, not {rounded}", 1)


def table_error(table: torch.Tensor) -> torch.Tensor:
    """How far a RoPE table may be from the exact one at each position, fp64 [positions, 1].

    One ULP of its dtype at 1; and ExecuTorch's exporter computes angles in fp32, where position p
    is off by up to p * 2**-23.
    """
    position = torch.arange(table.shape[0], dtype=torch.float64)[:, None]
    return torch.finfo(table.dtype).eps + position * 2.0**-23

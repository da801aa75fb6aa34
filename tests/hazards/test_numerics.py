"""Hazards of numbers: what coremltools 9.0 emits, what it gives, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb

from tests.hazards.programs import Rows, assembled, built, exported, found, given, hazards

INF = float("inf")
LOGITS = torch.tensor([[12.0, 20.0, -3.0, 30.0]])
SMALL = torch.full((2, 3), 1e-4)
SQUARE = torch.zeros(3, 3)
TABLE = torch.tensor([1.0, 1e5, 2.0])
FREQUENCIES = torch.tensor([0.137, 0.731])
IDS = torch.tensor([1, 3001, 9001], dtype=torch.int32)


def causal(x: torch.Tensor) -> torch.Tensor:
    return torch.triu(torch.full((x.shape[0], x.shape[1]), -INF), 1) + x


def masked(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x + (1 - keep) * torch.finfo(torch.float32).min, -1)


def filled(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x.masked_fill(x < 0, -1e9), -1)


def normalized(x: torch.Tensor) -> torch.Tensor:
    return x * torch.reciprocal(x.norm(dim=-1, keepdim=True))


def angles(ids: torch.Tensor) -> torch.Tensor:
    return torch.cos(ids.float()[:, None] * FREQUENCIES)


FREE = {"x": ((2, 8), (2, 8))}
# What is traced, its inputs, the precision, the hazard, and the place of it.
HAZARDS: dict[str, tuple[Any, dict[str, torch.Tensor], str, tuple[str, str], dict[str, Any]]] = {
    "a causal mask of a flexible size": (
        causal,
        {"x": SQUARE},
        "fp16",
        ("H02", "sub 'sub_0_cast_fp16'"),
        {"shapes": FREE},
    ),
    "a triangle of an input": (
        lambda x: torch.triu(x, 1),
        {"x": torch.full((3, 3), -INF)},
        "fp32",
        ("H02", "sub 'sub_0'"),
        {},
    ),
    "a product of a mask and the least float": (
        masked,
        {"x": torch.zeros(2, 3), "keep": torch.ones(2, 3)},
        "fp16",
        ("H02", "mul 'var_7_cast_fp16'"),
        {},
    ),
    "log_softmax": (
        lambda x: torch.log_softmax(x, -1),
        {"x": LOGITS},
        "fp16",
        ("H03", "log 'var_4'"),
        {},
    ),
    "log of a sigmoid": (
        lambda x: torch.log(torch.sigmoid(x) * 0.5),
        {"x": -LOGITS},
        "fp16",
        ("H03", "log 'var_5'"),
        {},
    ),
    "logcumsumexp": (
        lambda x: torch.logcumsumexp(x, -1),
        {"x": LOGITS},
        "fp16",
        ("H04", "exp 'exp_0_cast_fp16'"),
        {},
    ),
    "a softmax without its maximum": (
        lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
        {"x": LOGITS},
        "fp16",
        ("H04", "exp 'var_2_cast_fp16'"),
        {},
    ),
    "a reciprocal of a norm": (normalized, {"x": SMALL}, "fp32", ("H06", "inverse 'var_8'"), {}),
    "a reciprocal": (lambda x: 1.0 / x, {"x": SMALL}, "fp32", ("H06", "inverse 'var_2'"), {}),
    "an RMSNorm": (
        torch.nn.RMSNorm(3, eps=1e-5),
        {"x": torch.tensor([[300.0, 0.1, 0.1], [0.0, 0.0, 0.0]])},
        "fp32",
        ("H07", "sqrt 'var_6_rms'"),
        {},
    ),
    "a mask of -1e9": (
        filled,
        {"x": -torch.ones(2, 3)},
        "fp16",
        ("H08", "cast 'var_5_to_fp16'"),
        {},
    ),
    "a table beyond FLOAT16": (
        lambda x: x * TABLE,
        {"x": torch.ones(2, 3)},
        "fp16",
        ("H08", "cast 'var_3'"),
        {},
    ),
    "a power of a constant": (
        lambda x: 3.0**x,
        {"x": LOGITS},
        "fp16",
        ("H04", "pow 'var_3'"),
        {},
    ),
    "angles of positions": (angles, {"ids": IDS}, "fp16", ("H16", "cos 'var_16'"), {}),
}


@pytest.mark.parametrize("what", HAZARDS)
def test_a_hazard_gives_another_value_and_is_named_at_its_place(what: str, tmp_path: Path) -> None:
    module, inputs, precision, (code, place), options = HAZARDS[what]
    path = exported(module, inputs, tmp_path, precision=precision, **options)
    found = hazards(path)
    assert code in {one for one, _ in found}, found
    assert (code, place) in found
    (have,), want = given(path, *inputs.values()), module(*inputs.values())
    if what not in ("log_softmax", "log of a sigmoid"):
        assert not torch.allclose(have.float(), want, rtol=0.01, atol=0.01, equal_nan=False)
    else:
        assert float((have.float() - want).abs().max()) > 10


SOUND: dict[str, tuple[Any, Mapping[str, torch.Tensor]]] = {
    "a triangle of a product": (lambda x: torch.triu(x @ x, 1), {"x": torch.ones(3, 3)}),
    "a finite mask": (
        lambda x, keep: torch.softmax(x + (1 - keep) * -1e4, -1),
        {"x": torch.zeros(2, 3), "keep": torch.ones(2, 3)},
    ),
    "a stable log_softmax": (
        lambda x: (
            x - x.max(-1, keepdim=True)[0] - x.sub(x.amax(-1, True)).exp().sum(-1, True).log()
        ),
        {"x": LOGITS},
    ),
    "logsumexp": (lambda x: torch.logsumexp(x, -1), {"x": LOGITS}),
    "log1p of an exponential of what is not positive": (
        lambda x: torch.log(1 + torch.exp(-torch.abs(x))),
        {"x": LOGITS},
    ),
    "a logistic function by hand": (lambda x: x / (1 + torch.exp(-x)), {"x": LOGITS}),
    "a clamped exponential": (lambda x: torch.exp(torch.clamp(x, -5.0, 10.0)), {"x": SMALL}),
    "a division": (lambda x: x / (x.abs().sum(-1, keepdim=True) + 1.0), {"x": SMALL}),
    "an RMSNorm by hand": (
        lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5),
        {"x": torch.ones(2, 3)},
    ),
    "LayerNorm": (torch.nn.LayerNorm(3), {"x": LOGITS[:, :3]}),
    "a masked fill that leaves the diagonal": (
        lambda x: torch.softmax(x.masked_fill(torch.ones(3, 3).triu(1).bool(), -INF), -1),
        {"x": SQUARE},
    ),
    "attention": (
        lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x),
        {"x": torch.ones(1, 2, 4, 8)},
    ),
    "a bell curve": (lambda x: torch.exp(-x * x), {"x": LOGITS}),
    "a bell curve of a power": (lambda x: torch.exp(-0.5 * (x / 3) ** 2), {"x": LOGITS}),
    "an entropy": (
        lambda x: (torch.softmax(x, -1) * torch.log(torch.softmax(x, -1))).sum(-1),
        {"x": LOGITS},
    ),
    "sines of activations": (lambda x: torch.sin(torch.tanh(x)), {"x": LOGITS}),
}


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("what", SOUND)
def test_a_sound_model_has_no_hazard(what: str, precision: str, tmp_path: Path) -> None:
    module, inputs = SOUND[what]
    path = exported(module, inputs, tmp_path, precision=precision)
    assert hazards(path) == []
    (have,), want = given(path, *inputs.values()), module(*inputs.values())
    assert torch.allclose(have.float(), want, rtol=0.01, atol=0.01)


def log_sum_exp(*, maximum: list[int], total: list[int], turned: bool = False) -> Any:
    """Return a logarithm of a sum of `exp(x - max(x))`, each along its own axes."""

    def build(x: Any) -> Any:
        largest = mb.reduce_max(x=x, axes=maximum, keep_dims=True)
        powers = mb.exp(x=mb.sub(x=x, y=largest))
        powers = mb.transpose(x=powers, perm=[1, 0]) if turned else powers
        return mb.log(x=mb.reduce_sum(x=powers, axes=total, keep_dims=True))

    return build


def less_extreme(reduce: Any, infinity: float) -> Any:
    """Return the difference of what has infinities and a reduction of it."""

    def build(x: Any) -> Any:
        chosen = mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=np.float32(infinity))
        return mb.sub(x=chosen, y=reduce(x=chosen, axes=[-1], keep_dims=True))

    return build


BORDERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an epsilon below FLOAT16's rounding": (
        lambda x: mb.inverse(x=mb.add(x=mb.square(x=x), y=2.0), epsilon=1e-4),
        "",
    ),
    "an epsilon above it": (
        lambda x: mb.inverse(x=mb.add(x=mb.square(x=x), y=0.01), epsilon=1e-4),
        "H06",
    ),
    "no epsilon": (lambda x: mb.inverse(x=x, epsilon=0.0), ""),
    "an exponential that may just overflow": (
        lambda x: mb.exp(x=mb.clip(x=x, alpha=0.0, beta=11.2)),
        "H04",
    ),
    "one that just does not": (lambda x: mb.exp(x=mb.clip(x=x, alpha=0.0, beta=11.0)), ""),
    "log of a floor that FLOAT16 holds": (
        lambda x: mb.log(x=mb.maximum(x=mb.softmax(x=x, axis=-1), y=np.float32(1e-3))),
        "",
    ),
    "log of a floor that it does not": (
        lambda x: mb.log(x=mb.maximum(x=mb.softmax(x=x, axis=-1), y=np.float32(1e-7))),
        "H03",
    ),
    "a sum along the axis of its maximum": (log_sum_exp(maximum=[1], total=[1]), ""),
    "a sum along more axes": (log_sum_exp(maximum=[-1], total=[0, 1]), ""),
    "a sum along fewer axes": (log_sum_exp(maximum=[0, 1], total=[1]), "H03"),
    "a sum along another axis": (log_sum_exp(maximum=[0], total=[1]), "H03"),
    "a sum along an axis with another place": (
        log_sum_exp(maximum=[1], total=[1], turned=True),
        "H03",
    ),
    "-inf without the largest": (less_extreme(mb.reduce_max, -INF), ""),
    "-inf without the least": (less_extreme(mb.reduce_min, -INF), "H02"),
    "inf without the largest": (less_extreme(mb.reduce_max, INF), "H02 H08"),
}


@pytest.mark.parametrize("what", BORDERS)
def test_bounds_decide_at_the_border(what: str, tmp_path: Path) -> None:
    function, codes = BORDERS[what]
    path = built(function, [("fp32", (2, 3))], tmp_path, precision="fp16")
    assert [found for found, _ in hazards(path)] == codes.split()


def test_a_triangle_of_infinities_is_folded_to_nan(tmp_path: Path) -> None:
    full = np.full((3, 3), -INF, np.float32)

    def masked(x: Any) -> Any:
        return mb.add(x=x, y=mb.sub(x=full, y=mb.band_part(x=full, lower=-1, upper=0)))

    path = built(masked, [("fp32", (3, 3))], tmp_path)
    assert hazards(path) == [("H08", "add 'add_0'")]
    assert given(path, SQUARE)[0].isnan().all()


def exp_of_random(**limits: Any) -> Rows:
    return [
        ("random_uniform", {"shape": np.array([4], np.int32), **limits}, [("r", "FLOAT16", (4,))]),
        ("exp", {"x": "r"}, [("e", "FLOAT16", (4,))]),
    ]


def masked_by(**values: Any) -> Rows:
    return [
        ("one_hot", {"indices": "ids", **values}, [("mask", "FLOAT16", (4, 4))]),
        ("mul", {"x": "x", "y": "mask"}, [("out", "FLOAT16", (4, 4))]),
    ]


def clipped_ratio(divisor: float) -> Rows:
    """Return `(1 + exp(x)) / divisor`, where an infinity is divided instead of dividing."""
    return [
        ("exp", {"x": "x"}, [("e", "FLOAT16", (4, 4))]),
        ("add", {"x": "e", "y": np.float16(1)}, [("sum", "FLOAT16", (4, 4))]),
        ("real_div", {"x": "sum", "y": np.float16(divisor)}, [("out", "FLOAT16", (4, 4))]),
    ]


def divided_by_bool(x: float) -> Rows:
    """Return an infinity times a number that was cast to BOOL and back."""
    return [
        ("clip", {"x": "x", "alpha": np.float16(x), "beta": np.float16(5)}, [("c", "FLOAT16", ())]),
        ("cast", {"x": "c"}, [("flag", "BOOL", ())]),
        ("cast", {"x": "flag"}, [("one", "FLOAT16", ())]),
        ("mul", {"x": "one", "y": np.float16(INF)}, [("out", "FLOAT16", ())]),
    ]


@pytest.mark.parametrize(
    ("rows", "code", "is_named"),
    [
        (exp_of_random(), "H04", False),
        (exp_of_random(high=np.float16(100)), "H04", True),
        (exp_of_random(low=np.float16(-100), high=np.float16(2)), "H04", False),
        (masked_by(), "H02", False),
        (masked_by(on_value=np.float16(0), off_value=np.float16(-INF)), "H02", True),
        (clipped_ratio(3), "H04", True),
        (divided_by_bool(2), "H02", False),
        (divided_by_bool(-2), "H02", True),
    ],
)
def test_bounds_come_from_the_parameters(rows: Rows, code: str, is_named: bool) -> None:
    package = assembled({"x": ("FLOAT16", (4, 4)), "ids": ("INT32", (4,))}, rows)
    assert (code in found(package)) == is_named

"""Hazards of passes, folding and indices: what 9.0 emits, what it gives, and what is right.

Where the bytes no longer show what was lost, a reference must: these cases have no code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb

from harness.checks import run_check, value_checks
from harness.subject import Subject
from tests.hazards.programs import built, exported, given, hazards

EYE = np.eye(3, dtype=np.float32)
BIAS = np.array([100, 200, 300], np.float32)
LAST = np.array([0, -1], np.int32)
QUERIES = np.random.RandomState(0).randn(1, 2, 4, 8).astype(np.float32)
ROWS = np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2)
X = torch.tensor([[1.0, 2, 3], [4, 5, 6]])


def last_of_two(a: Any, b: Any) -> Any:
    begin = mb.const(val=LAST.copy(), name="begin")
    first = mb.slice_by_index(x=a, begin=begin, end=[1, 10])
    return first, mb.slice_by_index(x=b, begin=begin, end=[1, 20])


def negated(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(BIAS) - x


def along_columns(x: torch.Tensor) -> torch.Tensor:
    return x + torch.from_numpy(BIAS)


def interleaved(x: torch.Tensor) -> torch.Tensor:
    return x + torch.from_numpy(ROWS).transpose(0, 1).reshape(6, 2)


def floored(x: torch.Tensor) -> torch.Tensor:
    return torch.floor(x) + 1


def added(x: torch.Tensor) -> torch.Tensor:
    return x + torch.tensor([21.0, 32, 3])


def last_tokens(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return a[:, -1:], b[:, -1:]


def attended(mask: torch.Tensor) -> torch.Tensor:
    q = torch.from_numpy(QUERIES)
    return torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)


def picked(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    rows = indices[..., 0].long() % x.shape[1]
    return torch.stack([row[index] for row, index in zip(x, rows, strict=True)])


# What is built, its inputs, the hazards with their places, and the reference.
BUILT: dict[str, tuple[Callable[..., Any], list[Any], list[tuple[str, str]], Any]] = {
    "a product subtracted from a constant": (
        lambda x: mb.sub(x=BIAS, y=mb.matmul(x=x, y=EYE)),
        [("fp32", (2, 3))],
        [("H01", "linear 'sub_0'")],
        negated,
    ),
    "a bias of a product with its weight at the left": (
        lambda x: mb.add(x=mb.matmul(x=EYE, y=x), y=BIAS),
        [("fp32", (3, 3))],
        [("H01", "linear 'linear_0'")],
        along_columns,
    ),
    "two slices with one begin": (
        last_of_two,
        [("fp32", (1, 10)), ("fp32", (1, 20))],
        [("H13", "slice_by_index 'slice_by_index_1'")],
        last_tokens,
    ),
    "attention of constants": (
        lambda mask: mb.scaled_dot_product_attention(
            query=QUERIES, key=QUERIES, value=QUERIES, attn_mask=mask
        ),
        [("fp32", (1, 2, 4, 4))],
        [
            ("H10", "input 'mask'"),
            ("H11", "output 'scaled_dot_product_attention_0'"),
            ("H15", "constant 'scaled_dot_product_attention_0'"),
        ],
        attended,
    ),
    "negative indices with batch dimensions": (
        lambda x, indices: mb.gather_nd(x=x, indices=indices, batch_dims=1),
        [("fp32", (2, 5, 3)), ("int32", (2, 2, 1))],
        [("H09", "gather_nd 'gather_nd_0'")],
        picked,
    ),
    "an interleaved concat of constants": (
        lambda x: mb.add(x=x, y=mb.concat(values=list(ROWS), axis=0, interleave=True)),
        [("fp32", (6, 2))],
        [],
        interleaved,
    ),
    "floor_div by 1": (
        lambda x: mb.add(x=mb.floor_div(x=x, y=1.0), y=1.0),
        [("fp32", (4,))],
        [],
        floored,
    ),
    "a scatter of constants": (
        lambda x: mb.add(
            x=x,
            y=mb.scatter_along_axis(
                data=np.array([1, 2, 3], np.float32),
                indices=np.array([0, 1], np.int32),
                updates=np.array([20, 30], np.float32),
                axis=0,
            ),
        ),
        [("fp32", (3,))],
        [("H15", "constant 'scatter_along_axis_0'")],
        added,
    ),
}
NEGATIVE = torch.tensor([[[0], [-1]], [[1], [-1]]], dtype=torch.int32)
INPUTS = {"negative indices with batch dimensions": (torch.arange(30.0).reshape(2, 5, 3), NEGATIVE)}


def make(what: str, folder: Path) -> Path:
    function, inputs, _, _ = BUILT[what]
    return built(function, inputs, folder, target="iOS18")


def values(what: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [shape for _, shape in BUILT[what][1]]
    return list(INPUTS.get(what, [3 * torch.randn(s, generator=generator) for s in shapes]))


@pytest.mark.parametrize("what", BUILT)
def test_what_a_pass_makes_wrong_is_named_or_differs_from_the_reference(
    what: str, tmp_path: Path
) -> None:
    _, _, wanted, reference = BUILT[what]
    path, inputs = make(what, tmp_path), values(what)
    assert hazards(path) == wanted
    want = reference(*inputs)
    pairs = zip(given(path, *inputs), want if isinstance(want, tuple) else (want,), strict=True)
    assert any(a.shape != b.shape or not torch.allclose(a, b, atol=1e-3) for a, b in pairs)


@pytest.mark.parametrize("what", [name for name in BUILT if name not in INPUTS])
def test_the_reference_names_the_output(what: str, tmp_path: Path) -> None:
    name = BUILT[what][3].__name__
    subject = Subject(make(what, tmp_path), reference=f"{__name__}:{name}")
    case = run_check(value_checks()["outputs"], subject, "mil:strict", suite="check")
    assert case.outcome in ("fail", "error"), case
    assert ("output 1 has shape [1, 1]" if "two slices" in what else "output '") in case.reason


SOUND: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "a product and a bias": (
        lambda x: mb.add(x=mb.matmul(x=x, y=EYE), y=BIAS),
        [("fp32", (2, 3))],
    ),
    "a linear of its own": (
        lambda x: mb.linear(x=x, weight=EYE * 2, bias=BIAS),
        [("fp32", (2, 3))],
    ),
    "two slices, each with its own begin": (
        lambda a, b: (
            mb.slice_by_index(x=a, begin=LAST.copy(), end=[1, 10]),
            mb.slice_by_index(x=b, begin=LAST.copy(), end=[1, 20]),
        ),
        [("fp32", (1, 10)), ("fp32", (1, 20))],
    ),
    "two slices from one place": (
        lambda a, b: (
            mb.slice_by_index(x=a, begin=[0, 4], end=[1, 10]),
            mb.slice_by_index(x=b, begin=[0, 4], end=[1, 20]),
        ),
        [("fp32", (1, 10)), ("fp32", (1, 20))],
    ),
    "negative indices without batch dimensions": (
        lambda x, indices: mb.gather_nd(x=x, indices=indices, batch_dims=0),
        [("fp32", (5, 3)), ("int32", (2, 1))],
    ),
    "batch dimensions of equal sizes": (
        lambda x, indices: mb.gather_nd(x=x, indices=indices, batch_dims=1),
        [("fp32", (2, 2, 3)), ("int32", (2, 2, 1))],
    ),
    "an embedding along the second axis": (
        lambda x, indices: mb.gather(x=x, indices=indices, axis=1),
        [("fp32", (2, 5, 3)), ("int32", (2,))],
    ),
    "attention over a mask": (
        lambda q, mask: mb.scaled_dot_product_attention(query=q, key=q, value=q, attn_mask=mask),
        [("fp32", (1, 2, 4, 8)), ("fp32", (1, 2, 4, 4))],
    ),
}


@pytest.mark.parametrize("what", SOUND)
def test_a_sound_program_has_no_hazard(what: str, tmp_path: Path) -> None:
    function, inputs = SOUND[what]
    assert hazards(built(function, inputs, tmp_path, target="iOS18")) == []


NUMBERS = torch.tensor([7, -7, 33554435], dtype=torch.int32)
# What is traced, the operation that is named, and the right integers.
INTEGERS: dict[str, tuple[Callable[..., Any], str, list[int]]] = {
    "truncated": (
        lambda a: torch.div(a, 2, rounding_mode="trunc"),
        "mul",
        [3, -3, 16777217],
    ),
    "floored": (
        lambda a: torch.div(a, 2, rounding_mode="floor"),
        "floor_div",
        [3, -4, 16777217],
    ),
    "floor_divide": (lambda a: torch.floor_divide(a, 2), "floor_div", [3, -4, 16777217]),
    "a share": (lambda a: (a * 0.3).int(), "mul", [2, -2, 10066330]),
    "the floor of a quotient": (
        lambda a: torch.floor(a.float() / 2).long(),
        "mul",
        [3, -4, 16777217],
    ),
}


@pytest.mark.parametrize("what", INTEGERS)
def test_an_integer_that_passes_through_floats_is_named(what: str, tmp_path: Path) -> None:
    function, operation, right = INTEGERS[what]
    path = exported(function, {"a": NUMBERS}, tmp_path)
    ((code, place),) = hazards(path)
    assert code == "H05" and place.startswith(f"{operation} '")
    (have,) = given(path, NUMBERS)
    assert have.dtype != torch.int32 or have.tolist() != right


EXACT: dict[str, tuple[Callable[..., Any], torch.Tensor]] = {
    "a mask": (lambda a: (1 - a.float()) * -1e4, NUMBERS),
    "indices of a maximum": (lambda x: (torch.argmax(x, -1) / 2).int(), torch.ones(4, 6)),
    "integers that stay integers": (lambda a: a * 3 - 1, NUMBERS),
}


@pytest.mark.parametrize("what", EXACT)
def test_an_integer_that_floats_hold_is_no_hazard(what: str, tmp_path: Path) -> None:
    function, value = EXACT[what]
    assert hazards(exported(function, {"a": value}, tmp_path)) == []


def test_a_constant_of_one_size_meets_a_flexible_dimension(tmp_path: Path) -> None:
    table = torch.arange(15.0).reshape(5, 3)
    sizes = {"x": ((1, 8), 3)}
    path = exported(lambda x: x * table, {"x": torch.ones(5, 3)}, tmp_path, shapes=sizes)
    assert [code for code, _ in hazards(path)] == ["H12"]


def test_a_narrow_from_the_end_is_empty(tmp_path: Path) -> None:
    path = exported(lambda x: torch.narrow(x, -1, -1, 1) + 1, {"x": X}, tmp_path)
    assert "H18" in {code for code, _ in hazards(path)}
    assert given(path, X)[0].numel() == 0

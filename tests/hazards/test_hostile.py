"""Programs that no converter makes: the lints end, in linear time, or in one error."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from harness.artifact.hazards import hazards_of
from harness.errors import ArtifactError
from tests.hazards.programs import Rows, assembled, found

N = 8000
TWO = np.array(2.0, np.float32)
HALF = np.float16(2)


def chain(kind: str, dtype: str = "FLOAT32", count: int = N, **constants: np.ndarray) -> Rows:
    """Return operations that each read the result of the one before; the first reads input 'a'."""
    return [
        (kind, {"x": f"v{n - 1}" if n else "a", **constants}, [(f"v{n}", dtype, (4,))])
        for n in range(count)
    ]


def each(rows: Rows, kind: str, dtype: str = "FLOAT32", **constants: np.ndarray) -> Rows:
    """Return the operations, and one that reads each of their results."""
    readers = [
        (kind, {"x": results[0][0], **constants}, [(f"{kind}_{results[0][0]}", dtype, (4,))])
        for _, _, results in rows
    ]
    return [*rows, *readers]


def const(name: str, value: np.ndarray) -> tuple[str, dict[str, np.ndarray], list[tuple]]:
    kinds = {"f2": "FLOAT16", "f4": "FLOAT32", "i4": "INT32"}
    return "const", {"val": value}, [(name, kinds[value.dtype.str[1:]], value.shape)]


def doubled(count: int) -> Rows:
    """Return levels of two reshapes that each read both results of the level before."""
    rows = [const("a0", np.full(4, np.inf, np.float16)), const("b0", np.ones(4, np.float16))]
    for n in range(count):
        for one, other in ("ab", "ba"):
            given = {"x": f"{one}{n}", "shape": f"{other}{n}"}
            rows.append(("reshape", given, [(f"{one}{n + 1}", "FLOAT16", (4,))]))
    return [*rows, ("relu", {"x": f"a{count}"}, [("out", "FLOAT16", (4,))])]


def reshaped_constant() -> Rows:
    rows = chain("reshape", "FLOAT16", shape=np.array([4], np.int32))
    return [const("a", np.full(4, np.inf, np.float16)), *rows, ("relu", {"x": f"v{N - 1}"}, [])]


def wide(kind: str, parameter: str) -> Rows:
    """Return an operation with many operands and as many results."""
    parts = [(f"p{n}", "INT32", (4,)) for n in range(20_000)]
    split = ("split", {"x": "a"}, parts)
    names = [name for name, _, _ in parts]
    joined = (kind, {parameter: names}, [(f"q{n}", "INT32", (4,)) for n in range(20_000)])
    return [split, joined, ("cast", {"x": "q7"}, [("out", "INT16", (4,))])]


def shared(kind: str, name: str, parameters: Callable[[int], dict]) -> Rows:
    """Return operations that all read one long constant."""
    rows = [const(name, np.full(1_000_000, 2, np.int32))]
    return rows + [(kind, parameters(n), [(f"v{n}", "INT32", (4,))]) for n in range(5000)]


def of_high_rank() -> Rows:
    """Return sums of a value and a constant that declare 100,000 dimensions."""
    high = (2,) * 100_000
    constant = ("const", {"val": np.ones(4, np.float32)}, [("c", "FLOAT32", high)])
    rows = [constant, ("relu", {"x": "a"}, [("b", "FLOAT32", high)])]
    return rows + [("add", {"x": "b", "y": "c"}, [(f"v{n}", "FLOAT32", (4,))]) for n in range(5000)]


HOSTILE: dict[str, tuple[str, Callable[[], Rows]]] = {
    "reshapes of a constant": ("INT32", reshaped_constant),
    "doubled reshapes": ("INT32", lambda: doubled(60)),
    "multiples": ("FLOAT32", lambda: each(chain("mul", y=TWO), "sqrt")),
    "sums": ("FLOAT16", lambda: each(chain("add", "FLOAT16", y=HALF), "log", "FLOAT16")),
    "angles": ("FLOAT16", lambda: each(chain("tanh", "FLOAT16"), "sin", "FLOAT16")),
    "exponentials": ("FLOAT16", lambda: each(chain("exp", "FLOAT16"), "log", "FLOAT16")),
    "casts": ("INT32", lambda: each(chain("cast", "INT32"), "cast", "INT16")),
    "casts to floats": ("INT32", lambda: each(chain("cast", "INT32"), "cast", "FLOAT16")),
    "infinities": ("FLOAT16", lambda: chain("add", "FLOAT16", y=np.float16(-np.inf))),
    "squares": (
        "INT32",
        lambda: [
            const("v0", np.array(2_000_000_000, np.int32)),
            *(
                ("mul", {"x": f"v{n}", "y": f"v{n}"}, [(f"v{n + 1}", "INT32", ())])
                for n in range(9)
            ),
            ("cast", {"x": "v9"}, [("out", "INT16", ())]),
        ],
    ),
    "a wide concat": ("INT32", lambda: wide("concat", "values")),
    "sums with a long constant": (
        "INT32",
        lambda: shared("add", "c", lambda n: {"x": "a", "y": "c"}),
    ),
    "slices at a long constant": (
        "INT32",
        lambda: shared("slice_by_index", "c", lambda n: {"x": "a", "begin": "c"}),
    ),
    "powers of a long constant": (
        "FLOAT32",
        lambda: shared("pow", "c", lambda n: {"x": "c", "y": "a"}),
    ),
    "sums of a high rank": ("FLOAT32", of_high_rank),
    "a cast without outputs": (
        "INT32",
        lambda: [("cast", {"x": "a"}, []), ("cast", {"x": "a"}, [("out", "INT16", (4,))])],
    ),
    "an axis that is NaN": (
        "INT32",
        lambda: [
            ("less", {"x": "a", "y": np.int32(0)}, [("is", "BOOL", (4,))]),
            ("add", {"x": "a", "y": np.int32(4)}, [("sum", "INT32", (4,))]),
            ("select", {"cond": "is", "a": "sum", "b": "a"}, [("at", "INT32", (4,))]),
            (
                "gather",
                {"x": np.ones((4, 4), np.float32), "indices": "at", "axis": np.float32(np.nan)},
                [("out", "FLOAT32", (4, 4))],
            ),
        ],
    ),
    "a log of 0 without outputs": (
        "FLOAT16",
        lambda: [("log", {"x": np.float32(0)}, []), ("exp", {"x": "a"}, [("e", "FLOAT16", (4,))])],
    ),
}


@pytest.mark.parametrize(("dtype", "rows"), HOSTILE.values(), ids=HOSTILE)
def test_the_lints_end_in_linear_time(dtype: str, rows: Callable[[], Rows]) -> None:
    package = assembled({"a": (dtype, (4,))}, rows())
    start = time.process_time()
    found(package)
    assert time.process_time() - start < 20  # measured: 2 s at most; minutes before


def test_an_operation_with_more_operands_than_its_type_takes_is_one_error() -> None:
    package = assembled({"a": ("INT32", (4,))}, wide("add", "x"))
    with pytest.raises(ArtifactError, match="main', add 'q0': it has 20000 operands"):
        found(package)


def test_whatever_else_a_lint_cannot_read_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.artifact.hazards import LINTS

    def breaks(function: object) -> object:
        raise IndexError("tuple index out of range")
        yield

    monkeypatch.setitem(LINTS, "H99", breaks)
    with pytest.raises(ArtifactError, match="assembled, function 'main': .*convert the model"):
        list(hazards_of(assembled({"a": ("INT32", (4,))}, []), "main"))

"""Times base and head in one session, in ABBA order, and base against itself between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.errors import HarnessError

# A timed call: does the work, checks its own answer, returns seconds.
Timed = Callable[[], float]


@dataclass(frozen=True)
class Samples:
    """Pairs of times in seconds: `pairs` of (base, head), `control` of (base, base)."""

    pairs: tuple[tuple[float, float], ...]
    control: tuple[tuple[float, float], ...]


def sample_in_abba_order(base: Timed, head: Timed, pairs: int, warmup: int = 1) -> Samples:
    """Time `pairs` pairs of each, in blocks of base head head base, base base base base.

    Whatever drifts slowly (heat, another process) then weighs on both sides alike; the control's
    blocks lie between the others, so that they see the same machine. Warm-up calls are not kept.

    Raises HarnessError unless `pairs` is even and at least 2.
    """
    if pairs < 2 or pairs % 2:
        raise HarnessError(f"{pairs} pairs were asked for: ABBA order needs an even number.")
    for _ in range(warmup):
        base(), head()
    compared: list[tuple[float, float]] = []
    control: list[tuple[float, float]] = []
    for _ in range(pairs // 2):
        compared += _block(base, head)
        control += _block(base, base)
    return Samples(tuple(compared), tuple(control))


def _block(a: Timed, b: Timed) -> list[tuple[float, float]]:
    """Two (a, b) pairs, called in the order a b b a."""
    first_a, first_b = a(), b()
    second_b, second_a = b(), a()
    return [(first_a, first_b), (second_a, second_b)]

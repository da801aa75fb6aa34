"""What a passage allows whose results the model itself amplifies; the figures are SmolLM2's."""

import math
from types import SimpleNamespace

import pytest

from harness.checks.parity import allowed_where_it_cancels


def allowed(runtime, sensitivity, found, dtype="fp16", part="logits"):
    def ask(passage):
        assert sensitivity is not None, "this costs two passes"
        return {"logits": sensitivity, "caches": 1e-9}

    subject = SimpleNamespace(dtype=dtype, model=SimpleNamespace(sensitivity=ask))
    bound = 0.022 if (runtime, dtype) == ("mil:strict", "fp16") else 1e-5
    off = SimpleNamespace(relative=found)
    return allowed_where_it_cancels(subject, runtime, None, part, off, bound)


@pytest.mark.parametrize(
    ("runtime", "sensitivity", "found", "wanted"),
    [
        ("mil:strict", None, 0.02, 0.022),
        ("mil:strict", 9.26e-7, 0.0222, 8 * 9.26e-7 * 2**13),
        ("mil:strict", 1e-7, 0.0222, 0.022),
        ("mil:strict", 1.1e-5, 0.161, math.inf),  # it may be off by 36 %: nobody can judge it
        ("mil:strict", None, 0.85, 0.022),  # another token's logits
        ("mil:widen", None, 9e-6, 1e-5),
        ("mil:widen", 1.1e-5, 1.53e-5, 8.8e-5),
        ("mil:widen", 7e-7, 1.53e-5, 1e-5),
        ("mil:widen", 1.1e-5, 9e-5, 8.8e-5),
        ("mil:widen", 1e-4, 2e-4, math.inf),
        ("mil:widen", 1e-4, 9e-4, 1e-4),
        ("mil:widen", None, 0.161, 1e-5),
        ("mil:widen", None, math.nan, 1e-5),
        ("mil:widen", None, math.inf, 1e-5),
    ],
)
def test_a_bound_grows_where_roundings_do(runtime, sensitivity, found, wanted):
    assert allowed(runtime, sensitivity, found) == pytest.approx(wanted)


def test_what_logits_lose_excuses_no_cache():
    assert allowed("mil:strict", 1.1e-5, 0.161, part="caches") == 0.022


def test_a_runtime_that_rounds_to_fp32_is_judged_as_one_in_fp32():
    assert allowed("mil:strict", None, 0.03, dtype="fp32") == 1e-5
    assert allowed("mil:strict", 1.1e-5, 1.53e-5, dtype="fp32") == pytest.approx(8.8e-5)

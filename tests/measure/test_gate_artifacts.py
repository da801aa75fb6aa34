"""What the gate says of two artifacts' differences: constants are metrics, the rest is noted."""

from harness.diff import Difference
from harness.measure.artifacts import constant_metrics, difference_notes

FUNCTION = "method 'forward', delegate 1, function 'forward'"
ROWS = Difference("", "constant", "kv_cache_specs", "int64[4, 3] #1", "int64[4, 3] #2")
TABLE = Difference("", "constant", "freqs_cos", "float16[128, 8] #1", "float16[128, 8] #2")
NEW = Difference("", "constant", "vocab_size", None, "512")
SCALE = Difference(FUNCTION, "operation", "first without a counterpart", "mul(#1)", "mul(#2)")
COUNT = Difference(FUNCTION, "operation", "number without a counterpart", 4, 4)
KEY = Difference("method 'forward', delegate 1", "delegate", "key", "a", "b")


def test_a_constant_that_differs_is_a_regression_by_its_name():
    (rows, new) = constant_metrics([ROWS, TABLE, NEW, SCALE])
    assert (rows.name, rows.verdict) == ("constant kv_cache_specs", "regression")
    assert (rows.base, rows.head) == ("int64[4, 3] #1", "int64[4, 3] #2")
    assert (new.base, new.head) == ("", "512")


def test_an_operation_that_differs_is_noted_and_a_random_key_is_not():
    (note,) = difference_notes([KEY, ROWS, SCALE, COUNT])
    assert note == f"Changed: {FUNCTION}: operation first without a counterpart: " + (
        "BASE has mul(#1); HEAD has mul(#2)"
    )


def test_many_differences_are_counted():
    notes = list(difference_notes([SCALE] * 7))
    assert len(notes) == 5 and notes[-1] == "Changed: 3 more; `harness diff` shows all"

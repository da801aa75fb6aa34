"""`harness bisect --reference` names the operation that a pass made wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.divergence import bisect
from harness.subject import Subject
from tests.hazards.test_passes import BUILT, make, values

# The first operation that leaves the model; "" where none does, but an output.
CULPRITS = {
    "a product subtracted from a constant": "linear",
    "a bias of a product with its weight at the left": "linear",
    "two slices with one begin": "slice_by_index",
    "an interleaved concat of constants": "add",
    "floor_div by 1": "add",
    "a scatter of constants": "add",
    "negative indices with batch dimensions": "greater_equal",  # the first of those that wrap them
    "attention of constants": "",
}


@pytest.mark.parametrize("what", CULPRITS)
def test_the_first_wrong_operation_is_named(what: str, tmp_path: Path) -> None:
    _, _, _, reference = BUILT[what]
    path = make(what, tmp_path)
    given = dict(zip(reference.__code__.co_varnames, values(what), strict=False))
    subject = Subject(path, reference=f"{reference.__module__}:{reference.__name__}")
    model = bisect(subject, given=given if what.startswith("negative") else None).model
    assert model is not None
    if not CULPRITS[what]:
        assert model.first is None and "it is a constant" in model.output
    else:
        assert model.first is not None and model.first.operation == CULPRITS[what]

"""What `fp16-range` says of NaN, of shapes that fail, and of inputs that nobody gave."""

import numpy as np

from harness.checks import artifact_checks, run_check
from harness.divergence import bisect
from harness.subject import Subject
from tests.mil.programs import save


def saved(folder, build, shapes=((6, 6),), dtypes=("fp16",)):
    """Write a program as an .mlpackage, by default of one fp16 input [6, 6]."""
    for name, data in save(build, shapes, dtypes=dtypes).files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def judged(path):
    return run_check(artifact_checks()["fp16-range"], Subject(path), suite="test")


def test_an_output_that_is_nan_fails_and_names_the_first_operation(tmp_path):
    def build(mb, a):
        x = mb.log(x=mb.relu(x=mb.sub(x=a, y=a)), epsilon=0.0)
        return mb.softmax(x=mb.sub(x=x, y=mb.band_part(x=x, lower=-1, upper=0)), axis=-1)

    path = saved(tmp_path / "nan.mlpackage", build)
    case = judged(path)
    assert [one.code for one in case.findings] == ["N18"]
    assert "36 of 36 numbers are NaN, first at function 'main', sub '" in case.reason
    found = bisect(path)
    assert not found.passes and "36 of 36 numbers of output" in found.precision.nan


def test_infinities_that_no_output_holds_and_domains_of_made_up_inputs_pass(tmp_path):
    def masked(mb, a):
        open_ = np.triu(np.full((6, 6), -np.inf, np.float16), 1)
        return mb.softmax(x=mb.add(x=a, y=open_), axis=-1)

    assert judged(saved(tmp_path / "masked.mlpackage", masked)).outcome == "pass"
    roots = saved(tmp_path / "roots.mlpackage", lambda mb, a: mb.sqrt(x=a))
    case = judged(roots)
    assert case.outcome == "pass" and case.facts["operations with NaN"] == 1


def masked_by(mb, a, b):
    """Mask rows of `a` [6, 6] where `b` [6] is 0: its softmax is NaN there."""
    shown = mb.expand_dims(x=mb.cast(x=b, dtype="bool"), axes=[1])
    mask = mb.select(cond=shown, a=np.zeros((6, 1), np.float16), b=np.float16([[-np.inf]] * 6))
    return mb.softmax(x=mb.add(x=a, y=mask), axis=-1)


def row_of_sum(mb, a, b):
    """Add the row whose number is the sum of `b`: there is none when all six are 1."""
    total = mb.reduce_sum(x=mb.cast(x=b, dtype="fp16"), axes=[0], keep_dims=False)
    row = mb.gather(x=a, indices=mb.cast(x=total, dtype="int32"), axis=0)
    return mb.add(x=masked_by(mb, a, b), y=row)


def test_made_up_integers_that_mask_all_are_replaced_where_others_run(tmp_path):
    given = {"shapes": ((6, 6), (6,)), "dtypes": ("fp16", "int32")}
    case = judged(saved(tmp_path / "masked.mlpackage", masked_by, **given))
    assert case.outcome == "pass" and "operations with NaN" not in case.facts
    case = judged(saved(tmp_path / "row.mlpackage", row_of_sum, **given))
    assert {one.code for one in case.findings} == {"N18"}, case
    assert "18 of 36 numbers are NaN" in case.reason and case.facts["operations with NaN"] == 2

"""Inputs of flexible shape: ranges, lists, lists that belong together; errors list the allowed."""

import math

import numpy as np
import pytest
import torch

from harness.errors import HarnessError
from harness.mil import get_policy, load_function
from tests.mil.programs import run, save_flexible, to_package


def flexible(*shapes):
    """Load a program that sums each input, whose shapes are [rows, 3]."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import get_new_symbol

    specs = [mb.TensorSpec((get_new_symbol(), 3)) for _ in shapes]
    sums = lambda *inputs: tuple(mb.reduce_sum(x=x, axes=[0]) for x in inputs)  # noqa: E731
    if len(shapes) == 1:
        program = mb.program(input_specs=specs)(lambda a: sums(a))
    else:
        program = mb.program(input_specs=specs)(lambda a, b: sums(a, b))
    inputs = [ct.TensorType(name=n, shape=s) for n, s in zip("ab", shapes, strict=False)]
    return load_function(to_package(program, inputs=inputs), "main", get_policy("widen"))


def listed(*rows):
    import coremltools as ct

    return ct.EnumeratedShapes([(n, 3) for n in rows])


def call(function, *rows):
    inputs = {n: torch.ones(r, 3) for n, r in zip(function.inputs, rows, strict=True)}
    return [result.numpy() for result in function(inputs).values()]


def test_a_range_allows_what_is_within_it():
    import coremltools as ct

    function = flexible((ct.RangeDim(2, 5), 3))
    for rows in (2, 5):
        np.testing.assert_array_equal(call(function, rows)[0], np.full(3, rows))
    for n in (1, 6):
        with pytest.raises(HarnessError, match=rf"'a' has shape \[{n}, 3\]; allowed is \[2 to 5"):
            call(function, n)


def test_a_list_allows_what_is_in_it():
    function = flexible(listed(2, 7))
    for rows in (2, 7):
        np.testing.assert_array_equal(call(function, rows)[0], np.full(3, rows))
    with pytest.raises(HarnessError, match=r"allowed is \[2, 3\], \[7, 3\]"):
        call(function, 3)


def test_lists_of_several_inputs_go_together():
    function = flexible(listed(2, 7), listed(1, 4))
    for rows in ((2, 1), (7, 4)):
        sums = call(function, *rows)
        np.testing.assert_array_equal(sums, [np.full(3, n) for n in rows])
    with pytest.raises(
        HarnessError,
        match=r"\[2, 3\] with \[4, 3\] of inputs 'a', 'b' do not belong together; "
        r"allowed are \[2, 3\] with \[1, 3\], or \[7, 3\] with \[4, 3\]",
    ):
        call(function, 2, 4)


def test_a_fixed_dimension_of_a_flexible_input_is_still_checked():
    function = flexible(listed(2, 7))
    with pytest.raises(HarnessError, match=r"'a' has shape \[2, 4\]; allowed is"):
        function({"a": torch.ones(2, 4)})


@pytest.mark.executes("select")
@pytest.mark.parametrize("shape", [(2, None), (None, 3)])
def test_a_choice_between_scalars_has_the_shape_of_its_condition(shape):
    """coremltools declares rank 0; the manual page of `select` broadcasts all three operands."""
    package = save_flexible(
        lambda mb, a: mb.select(cond=mb.greater(x=a, y=0.0), a=0.0, b=-np.inf), [(shape, "fp32")]
    )
    for n in (1, 5):
        sizes = [size or n for size in shape]
        x = np.linspace(-1, 1, math.prod(sizes), dtype=np.float32).reshape(sizes)
        (got,) = run(package, x)
        np.testing.assert_array_equal(got, np.where(x > 0, np.float32(0), np.float32(-np.inf)))


def test_a_choice_that_does_not_broadcast_is_refused():
    package = save_flexible(
        lambda mb, a, b: mb.select(cond=mb.greater(x=a, y=0.0), a=b, b=0.0),
        [((2, None), "fp32"), ((None,), "fp32")],
    )
    with pytest.raises(HarnessError, match="select"):
        run(package, np.ones((2, 3), np.float32), np.ones(4, np.float32))

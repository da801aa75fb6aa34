"""Control flow, lists, states, classification, random values and quantization."""

import numpy as np
import pytest
import torch

from harness.errors import ArtifactError, HarnessError
from harness.mil import get_policy, load_function, observed
from tests.mil.programs import execute, run, save, to_package
from tests.mil.rows import Row, each

RNG = np.random.default_rng(19)
X = RNG.standard_normal((2, 3)).astype(np.float32)


def choose(mb, a, b):
    return mb.cond(
        pred=mb.squeeze(x=mb.cast(x=b, dtype="bool")),
        _true_fn=lambda: mb.add(x=a, y=np.float32(1)),
        _false_fn=lambda: mb.mul(x=a, y=np.float32(2)),
    )


def count_down(mb, a, b):
    """Add a to itself, b times."""
    rounds, total = mb.while_loop(
        _cond=lambda n, _: mb.greater(x=n, y=np.int32(0)),
        _body=lambda n, t: (mb.sub(x=n, y=np.int32(1)), mb.add(x=t, y=a)),
        loop_vars=(mb.squeeze(x=b), a),
    )
    return total, rounds


@pytest.mark.executes("cond", "add", "mul")
def test_a_choice_runs_one_of_its_blocks():
    package = save(choose, [X.shape, (1,)], dtypes=["fp32", "int32"])
    seen = []
    with observed(lambda step, _: seen.append(step.where.split()[-2])):
        np.testing.assert_array_equal(run(package, X, np.int32([1]))[0], X + 1)
        np.testing.assert_array_equal(run(package, X, np.int32([0]))[0], X * 2)
    assert (seen.count("add"), seen.count("mul"), seen.count("cond")) == (1, 1, 2)


@pytest.mark.executes("while_loop")
@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_a_loop_runs_while_its_condition_holds(rounds):
    total, left = execute(count_down, X, np.int32([rounds]))
    np.testing.assert_allclose(total, X * (rounds + 1), rtol=1e-6)
    assert left.tolist() == 0


@pytest.mark.executes("while_loop", "cond")
def test_blocks_in_blocks_see_the_values_around_them():
    def build(mb, a, b):
        def inner(n, t):
            chosen = mb.cond(
                pred=mb.greater(x=n, y=np.int32(2)),
                _true_fn=lambda: mb.add(x=t, y=a),
                _false_fn=lambda: mb.sub(x=t, y=scale),
            )
            return mb.sub(x=n, y=np.int32(1)), chosen

        scale = mb.mul(x=a, y=np.float32(10))
        return mb.while_loop(
            _cond=lambda n, _: mb.greater(x=n, y=np.int32(0)),
            _body=inner,
            loop_vars=(mb.squeeze(x=b), a),
        )[1]

    (result,) = execute(build, X, np.int32([5]))
    np.testing.assert_allclose(result, X + 3 * X - 2 * 10 * X, rtol=1e-5)


def test_a_loop_without_end_is_an_error():
    def build(mb, a, b):
        return mb.while_loop(
            _cond=lambda n: mb.greater(x=n, y=np.int32(0)),
            _body=lambda n: (mb.identity(x=n),),
            loop_vars=(mb.squeeze(x=b),),
        )

    from harness.mil.ops import control_flow

    limit, control_flow._MAX_ROUNDS = control_flow._MAX_ROUNDS, 100
    try:
        with pytest.raises(HarnessError, match="while_loop '.*did not end after 100 rounds"):
            execute(build, X, np.int32([1]))
    finally:
        control_flow._MAX_ROUNDS = limit


def test_an_error_inside_a_block_names_the_operation():
    def build(mb, a, b):
        return mb.cond(
            pred=mb.squeeze(x=mb.cast(x=b, dtype="bool")),
            _true_fn=lambda: mb.gather(x=a, indices=b, axis=0),
            _false_fn=lambda: mb.gather(x=a, indices=np.int32([0]), axis=0),
        )

    with pytest.raises(HarnessError, match=r"function 'main', gather '.*out of range: 7 to 7"):
        execute(build, X, np.int32([7]))


def listed(mb, a, b):
    """Write rows of a loop's count, then read them by every operation."""

    def body(n, ls):
        row = mb.mul(x=a, y=mb.cast(x=n, dtype="fp32"))
        return mb.add(x=n, y=np.int32(1)), mb.list_write(ls=ls, index=n, value=row)

    ls = mb.make_list(init_length=1, elem_shape=(2, 3), dynamic_length=True)
    _, ls = mb.while_loop(
        _cond=lambda n, _: mb.less(x=n, y=mb.squeeze(x=b)),
        _body=body,
        loop_vars=(mb.const(val=np.int32(0)), ls),
    )
    ls = mb.list_scatter(ls=ls, indices=[1, 5], value=mb.stack(values=[a, a], axis=0))
    return (
        mb.list_length(ls=ls),
        mb.list_read(ls=ls, index=2),
        mb.list_gather(ls=ls, indices=[0, 1, 3, 4, 5]),
    )


@pytest.mark.executes(
    "make_list", "list_write", "list_scatter", "list_length", "list_read", "list_gather"
)
def test_lists_are_written_read_and_grow():
    length, third, some = execute(listed, X, np.int32([4]))
    assert length.tolist() == 6
    np.testing.assert_array_equal(third, X * 2)
    np.testing.assert_array_equal(some, np.stack([X * 0, X, X * 3, X * 0, X]))


@pytest.mark.executes("list_write", "list_read")
def test_writing_to_a_list_leaves_the_list_that_was():
    def build(mb, a):
        before = mb.list_write(ls=mb.make_list(elem_shape=(2, 3)), index=0, value=a)
        after = mb.list_write(ls=before, index=0, value=mb.add(x=a, y=np.float32(1)))
        return mb.list_read(ls=before, index=0), mb.list_read(ls=after, index=0)

    before, after = execute(build, X)
    np.testing.assert_array_equal(before, X)
    np.testing.assert_array_equal(after, X + 1)


def test_a_list_read_beyond_its_end_is_an_error():
    def build(mb, a, b):
        ls = mb.make_list(init_length=2, elem_shape=(2, 3))
        return mb.add(x=a, y=mb.list_read(ls=ls, index=mb.squeeze(x=b)))

    with pytest.raises(HarnessError, match="list_read '.*': index 2 of a list of 2 elements"):
        execute(build, X, np.int32([2]))


@pytest.fixture(scope="module")
def counter():
    """Make two functions on one state: "main" adds its input, "double" doubles the value."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(
        input_specs=[
            mb.TensorSpec((2,), dtype=types.fp16),
            mb.StateTensorSpec((2,), dtype=types.fp16),
        ],
        opset_version=ct.target.iOS18,
    )
    def main(a, total):
        before = mb.read_state(input=total)
        after = mb.coreml_update_state(state=total, value=mb.add(x=before, y=a))
        return after, mb.add(x=before, y=np.float16(0))

    package = to_package(main)
    model = package.model.mlProgram.functions
    model["again"].CopyFrom(model["main"])
    return package


def call(function, state, *values):
    results = function({"a": torch.tensor(values)}, state)
    return [result.tolist() for result in results.values()]


@pytest.mark.executes("read_state", "write_state")
def test_a_state_lives_from_call_to_call_and_each_has_its_own(counter):
    function = load_function(counter, "main", get_policy("strict"), stateful=True)
    assert list(function.states) == ["total"] and list(function.inputs) == ["a"]
    first, second = function.new_state(), function.new_state()
    assert call(function, first, 1.0, 2.0) == [[1, 2], [0, 0]]
    assert call(function, first, 1.0, 2.0) == [[2, 4], [1, 2]]
    assert call(function, second, 5.0, 5.0) == [[5, 5], [0, 0]]
    assert first.read("total").tolist() == [2, 4]


def with_a_state(build):
    """Return a package of a function on `a` and a state of one fp16 number."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(
        input_specs=[
            mb.TensorSpec((1,), dtype=types.fp16),
            mb.StateTensorSpec((1,), dtype=types.fp16),
        ],
        opset_version=ct.target.iOS18,
    )
    def main(a, total):
        return build(mb, a, total)

    return to_package(main)


def add_beside_a_random_number(mb, a, total):
    value = mb.add(x=mb.read_state(input=total), y=a)
    number = mb.random_uniform(shape=[2], seed=7)
    return mb.coreml_update_state(state=total, value=value), number


def add_if_positive(mb, a, total):
    def written():
        value = mb.add(x=mb.read_state(input=total), y=a)
        return mb.coreml_update_state(state=total, value=value)

    return mb.cond(
        pred=mb.squeeze(x=mb.greater(x=a, y=np.float16(0))),
        _true_fn=written,
        _false_fn=lambda: mb.mul(x=a, y=np.float16(1)),
    )


@pytest.mark.parametrize("policy", ["strict", "widen"])
@pytest.mark.parametrize("build", [add_beside_a_random_number, add_if_positive])
def test_each_call_writes_a_state_once(build, policy):
    """The block of a branch may run for the first time when its function no longer does."""
    package = with_a_state(build)
    for first in (2.0, -2.0):
        function = load_function(package, "main", get_policy(policy), stateful=True)
        state, expected = function.new_state(), 0.0
        for value in (first, 2.0, 2.0):
            function({"a": torch.tensor([value])}, state)
            expected += value if build is add_beside_a_random_number else max(value, 0)
            assert state.read("total").tolist() == [expected]


def test_a_state_is_shared_between_functions_when_the_caller_shares_it(counter):
    one, other = (
        load_function(counter, n, get_policy("strict"), stateful=True) for n in ("main", "again")
    )
    state = one.new_state()
    call(one, state, 1.0, 1.0)
    assert call(other, state, 1.0, 1.0) == [[2, 2], [1, 1]]


def test_a_state_is_written_and_read_from_outside_as_a_copy(counter):
    function = load_function(counter, "main", get_policy("strict"), stateful=True)
    state = function.new_state()
    mine = torch.tensor([1 / 3, 7.0])
    state.write("total", mine)
    mine.zero_()
    assert state.read("total").tolist() == [np.float16(1 / 3), 7]
    state.read("total").zero_()
    assert call(function, state, 0.0, 1.0)[0] == [np.float16(1 / 3), 8]


def test_what_a_call_returned_stays_when_the_state_moves_on(counter):
    function = load_function(counter, "main", get_policy("strict"), stateful=True)
    state = function.new_state()
    first = next(iter(function({"a": torch.tensor([1.0, 2.0])}, state).values()))
    call(function, state, 9.0, 9.0)
    assert first.tolist() == [1, 2]


def test_a_state_that_is_missing_or_not_what_is_declared_is_named(counter):
    function = load_function(counter, "main", get_policy("strict"), stateful=True)
    with pytest.raises(HarnessError, match=r"has states \(total\); call it with a state"):
        function({"a": torch.zeros(2)})
    with pytest.raises(HarnessError, match="the function declares .* runs under strict"):
        other = load_function(counter, "main", get_policy("widen"), stateful=True).new_state()
        function({"a": torch.zeros(2)}, other)
    with pytest.raises(HarnessError, match=r"state 'total' has shape \[2\]"):
        function.new_state().write("total", torch.zeros(3))
    with pytest.raises(HarnessError, match="no state 'sum'; the states: total"):
        function.new_state().read("sum")


def test_a_program_with_states_is_refused_to_callers_that_keep_none(counter):
    with pytest.raises(ArtifactError, match=r"function .*of kind stateType.*total"):
        load_function(counter, "main", get_policy("widen"))


def test_a_state_where_a_tensor_is_expected_is_refused_at_load(counter):
    from tests.mil.test_loading import edited, find

    def change(block):
        find(block, "add").inputs["y"].arguments[0].name = "total"

    with pytest.raises(ArtifactError, match="add '.*': parameter 'y' cannot be a StateType"):
        load_function(edited(counter, change), "main", get_policy("widen"), stateful=True)


@pytest.mark.executes("classify")
@pytest.mark.parametrize("labels", [["cat", "dog", "cow"], [7, 8, 9]])
def test_a_classifier_gives_a_label_and_all_probabilities(labels):
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec((1, 3))])
    def main(a):
        return mb.softmax(x=a, axis=-1)

    package = to_package(main, "iOS15", classifier_config=ct.ClassifierConfig(labels))
    function = load_function(package, "main", get_policy("widen"))
    scores = torch.tensor([[0.5, 2.0, 1.0]])
    label, chances = function({"a": scores}).values()
    assert label == labels[1] and list(chances) == labels
    np.testing.assert_allclose(list(chances.values()), scores.softmax(-1)[0], rtol=1e-6)


DISTRIBUTIONS = {
    "random_normal": ({"mean": np.float32(2), "stddev": np.float32(3)}, 2, 3),
    "random_uniform": ({"low": np.float32(-1), "high": np.float32(3)}, 1, 4 / np.sqrt(12)),
    "random_bernoulli": ({"prob": np.float32(0.25)}, 0.25, np.sqrt(3) / 4),
}


def draw(name, seed, **given):
    def build(mb, a, b):
        return getattr(mb, name)(shape=b, seed=seed, **given), mb.identity(x=a)

    return save(build, [X.shape, (2,)], dtypes=["fp32", "int32"])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.executes(n)) for n in DISTRIBUTIONS]
)
def test_random_values_have_their_distribution_and_repeat_with_a_seed(name):
    given, mean, deviation = DISTRIBUTIONS[name]
    package = draw(name, 5, **given)
    values = run(package, X, np.int32([200, 500]))[0]
    assert values.shape == (200, 500)
    assert abs(values.mean() - mean) < 0.02 * max(1, deviation)
    assert abs(values.std() - deviation) < 0.02 * deviation
    np.testing.assert_array_equal(run(package, X, np.int32([200, 500]))[0], values)
    without = draw(name, -1, **given)
    torch.manual_seed(1)
    first, second = (run(without, X, np.int32([200, 500]))[0] for _ in range(2))
    assert (first != second).any()
    torch.manual_seed(1)
    np.testing.assert_array_equal(run(without, X, np.int32([200, 500]))[0], first)


@pytest.mark.executes("random_categorical")
@pytest.mark.parametrize("mode", ["logits", "probs"])
def test_categories_are_drawn_as_often_as_they_are_likely(mode):
    chances = np.float32([[0.1, 0.2, 0.7], [0.5, 0, 0.5]])
    given = np.log(chances + 1e-30) if mode == "logits" else chances
    (drawn,) = execute(
        lambda mb, a: mb.random_categorical(x=a, mode=mode, size=20_000, seed=3), given
    )
    for row, expected in zip(drawn, chances, strict=True):
        have = np.bincount(row.astype(int), minlength=3) / row.size
        np.testing.assert_allclose(have, expected, atol=0.015)


SCALE, ZERO = np.float32([0.1, 0.25]), np.int8([3, -7])
ROWS = [
    Row(
        "quantize",
        {"a": X * 20},
        np.clip(np.round(X * 20 / SCALE[:, None]) + ZERO[:, None], -128, 127),
        build=lambda mb, a: mb.cast(
            x=mb.quantize(input=a, scale=SCALE, zero_point=ZERO, axis=0, output_dtype="int8"),
            dtype="fp32",
        ),
    ),
    Row(
        "quantize",
        {"a": np.float32([-3, 0.25, 0.75, 1.25, 400])},
        np.array([0, 0, 2, 2, 255]),
        note="without a zero point",
        build=lambda mb, a: mb.cast(
            x=mb.quantize(input=a, scale=np.float32(0.5), output_dtype="uint8"), dtype="fp32"
        ),
    ),
    Row(
        "dequantize",
        {"a": np.int32([[1, -100, 5], [127, 0, -7]])},
        (np.array([[1, -100, 5], [127, 0, -7]]) - ZERO[:, None]) * SCALE[:, None],
        build=lambda mb, a: mb.dequantize(
            input=mb.cast(x=a, dtype="int8"), scale=SCALE, zero_point=ZERO, axis=-2
        ),
    ),
]


@each(ROWS)
def test_quantization_of_activations(row):
    row.check(1e-6)


def test_rounds_of_inner_loops_count_as_the_outer_ones(monkeypatch):
    from harness.mil.ops import control_flow

    def build(mb, a, n):
        def inner():
            return mb.while_loop(
                _cond=lambda j, x: mb.less(x=j, y=np.int32(20)),
                _body=lambda j, x: (mb.add(x=j, y=np.int32(1)), mb.add(x=x, y=x)),
                loop_vars=(mb.const(val=np.int32(0)), a),
            )[1]

        return mb.while_loop(
            _cond=lambda i, x: mb.less(x=i, y=n),
            _body=lambda i, x: (mb.add(x=i, y=np.int32(1)), mb.mul(x=inner(), y=x)),
            loop_vars=(mb.const(val=np.int32(0)), a),
        )

    monkeypatch.setattr(control_flow, "_MAX_ROUNDS", 100)
    execute(build, X, np.int32([2]))
    with pytest.raises(HarnessError, match="while_loop '.*did not end after 100 rounds"):
        execute(build, X, np.int32([20]))
    execute(build, X, np.int32([2]))  # each call has its own

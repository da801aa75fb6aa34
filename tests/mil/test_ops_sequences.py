"""Recurrent layers and attention, against PyTorch's own, and einsum against numpy's."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from harness.errors import ArtifactError
from tests.mil.programs import execute
from tests.mil.rows import Row, compare, each

RNG = np.random.default_rng(17)
STEPS, BATCH, WIDTH, HIDDEN = 5, 2, 3, 4
X = RNG.standard_normal((STEPS, BATCH, WIDTH)).astype(np.float32)
H = RNG.standard_normal((BATCH, HIDDEN)).astype(np.float32)
C = RNG.standard_normal((BATCH, HIDDEN)).astype(np.float32)
T = torch.from_numpy


def weights(layer, order, suffix=""):
    """Return a layer's weights with its gates in another order: (input, hidden, both biases)."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    values = [getattr(layer, f"{name}_l0{suffix}").detach().chunk(len(order)) for name in names]
    return [torch.cat([chunks[gate] for gate in order]).numpy() for chunks in values]


def by_torch(layer, *state, reverse=False):
    """Run a layer; return its results in the operation's order."""
    with torch.no_grad():
        out, last = layer(T(X).flip(0) if reverse else T(X), *state)
    last = last if isinstance(last, tuple) else (last,)
    return (out.numpy(), *(s.permute(1, 0, 2).flatten(1).numpy() for s in last))


@pytest.fixture(scope="module", autouse=True)
def _seed():
    torch.manual_seed(23)


@pytest.mark.executes("rnn")
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_rnn(direction, kind):
    layer = torch.nn.RNN(WIDTH, HIDDEN, nonlinearity=kind)
    w, r, b, b_r = weights(layer, [0])

    def build(mb, a, b_):
        return mb.rnn(
            x=a,
            initial_h=b_,
            weight_ih=w,
            weight_hh=r,
            bias=b + b_r,
            activation=kind,
            direction=direction,
            output_sequence=True,
        )

    expected = by_torch(layer, T(H)[None], reverse=direction == "reverse")
    compare(execute(build, X, H), expected, 1e-5)


@pytest.mark.executes("gru")
def test_gru_whose_reset_gate_comes_after_the_product_is_torchs():
    layer = torch.nn.GRU(WIDTH, HIDDEN)
    w, r, b, b_r = weights(layer, [0, 2, 1])  # torch: reset, update, new

    def build(mb, a, b_):
        return mb.gru(
            x=a,
            initial_h=b_,
            weight_ih=w,
            weight_hh=r,
            bias=b_r,
            input_bias=b,
            reset_after=True,
            output_sequence=True,
        )

    compare(execute(build, X, H), by_torch(layer, T(H)[None]), 1e-5)


@pytest.mark.executes("gru")
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru_whose_reset_gate_comes_before_the_product(direction):
    w, r = (RNG.standard_normal((3 * HIDDEN, n)).astype(np.float32) for n in (WIDTH, HIDDEN))
    bias = RNG.standard_normal(3 * HIDDEN).astype(np.float32)

    def build(mb, a, b):
        return mb.gru(
            x=a,
            initial_h=b,
            weight_ih=w,
            weight_hh=r,
            bias=bias,
            direction=direction,
            recurrent_activation="hard_sigmoid",
            activation="scaled_tanh",
        )

    gate = lambda x: np.clip(0.2 * x + 0.5, 0, 1)  # noqa: E731
    h = H.astype(np.float64)
    for x in X[::-1] if direction == "reverse" else X:
        given = np.split(x @ w.T + bias, 3, 1)
        reset, fresh, update = np.split(r, 3)
        z = gate(given[2] + h @ update.T)
        o = np.tanh(given[1] + (gate(given[0] + h @ reset.T) * h) @ fresh.T)
        h = (1 - z) * o + z * h
    compare(execute(build, X, H, target="iOS17"), (h[None], h), 1e-5)


@pytest.mark.executes("lstm")
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("every", [True, False])
def test_lstm_in_one_direction(direction, every):
    layer = torch.nn.LSTM(WIDTH, HIDDEN)
    w, r, b, b_r = weights(layer, [0, 1, 3, 2])  # torch: input, forget, cell, output

    def build(mb, a, b_, c):
        return mb.lstm(
            x=a,
            initial_h=b_,
            initial_c=c,
            weight_ih=w,
            weight_hh=r,
            bias=b + b_r,
            direction=direction,
            output_sequence=every,
        )

    out, *last = by_torch(layer, (T(H)[None], T(C)[None]), reverse=direction == "reverse")
    compare(execute(build, X, H, C), (out if every else out[-1:], *last), 1e-5)


@pytest.mark.executes("lstm")
@pytest.mark.parametrize("every", [True, False])
def test_lstm_in_two_directions(every):
    layer = torch.nn.LSTM(WIDTH, HIDDEN, bidirectional=True)
    w, r, b, b_r = weights(layer, [0, 1, 3, 2])
    back_w, back_r, back_b, back_b_r = weights(layer, [0, 1, 3, 2], "_reverse")
    h, c = np.concatenate([H, -H], 1), np.concatenate([C, 2 * C], 1)

    def build(mb, a, b_, c_):
        return mb.lstm(
            x=a,
            initial_h=b_,
            initial_c=c_,
            weight_ih=w,
            weight_hh=r,
            bias=b + b_r,
            weight_ih_back=back_w,
            weight_hh_back=back_r,
            bias_back=back_b + back_b_r,
            direction="bidirectional",
            output_sequence=every,
        )

    state = torch.stack([T(H), -T(H)]), torch.stack([T(C), 2 * T(C)])
    out, *last = by_torch(layer, state)
    final = np.concatenate([out[-1:, :, :HIDDEN], out[:1, :, HIDDEN:]], -1)
    compare(execute(build, X, h, c), (out if every else final, *last), 1e-5)


@pytest.mark.executes("lstm")
def test_lstm_with_peepholes_and_a_limit():
    w, r = (RNG.standard_normal((4 * HIDDEN, n)).astype(np.float32) for n in (WIDTH, HIDDEN))
    peephole = RNG.standard_normal(3 * HIDDEN).astype(np.float32)

    def build(mb, a, b, c):
        return mb.lstm(
            x=a,
            initial_h=b,
            initial_c=c,
            weight_ih=w,
            weight_hh=r,
            peephole=peephole,
            clip=np.float32(0.4),
        )

    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    h, c, look = H.astype(np.float64), C.astype(np.float64), np.split(peephole, 3)
    for x in X:
        i, f, o, z = np.split(x @ w.T + h @ r.T, 4, 1)
        c = sigmoid(f + look[1] * c) * c + sigmoid(i + look[0] * c) * np.tanh(z)
        c = np.clip(c, -0.4, 0.4)
        h = sigmoid(o + look[2] * c) * np.tanh(c)
    compare(execute(build, X, H, C), (h[None], h, c), 1e-5)


@pytest.mark.executes("rnn")
def test_a_recurrent_result_is_rounded_once():
    """The steps before are not rounded: rounding each of them gives another result."""
    w, r = (RNG.standard_normal((HIDDEN, n)).astype(np.float16) for n in (WIDTH, HIDDEN))
    x, h = X.astype(np.float16), H.astype(np.float16)

    def build(mb, a, b):
        return mb.rnn(x=a, initial_h=b, weight_ih=w, weight_hh=r)

    strict = execute(build, x, h, policy="strict")[1]
    wide = execute(build, x, h, policy="widen")[1]
    np.testing.assert_array_equal(strict, wide.astype(np.float16).astype(np.float32))
    assert (strict != wide).any()


def test_a_direction_that_there_is_not_is_named():
    def build(mb, a, b):
        return mb.rnn(
            x=a,
            initial_h=b,
            weight_ih=np.ones((HIDDEN, WIDTH), np.float32),
            weight_hh=np.ones((HIDDEN, HIDDEN), np.float32),
        )

    from harness.mil import get_policy, load_function
    from tests.mil.programs import save

    package = save(build, [X.shape, H.shape])
    function = package.functions["main"]
    for op in function.block_specializations[function.opset].operations:
        value = op.attributes["val"].immediateValue.tensor if op.type == "const" else None
        if value is not None and list(value.strings.values) == ["forward"]:
            value.strings.values[:] = ["bidirectional"]
    with pytest.raises(ArtifactError, match="rnn '.*': unknown direction 'bidirectional'"):
        load_function(package, "main", get_policy("widen"))


QUERY = RNG.standard_normal((2, 3, 4, 8)).astype(np.float32)
KEY = RNG.standard_normal((2, 3, 6, 8)).astype(np.float32)
VALUE = RNG.standard_normal((2, 3, 6, 5)).astype(np.float32)
MASK = np.tril(np.ones((4, 6), bool), 2)


@pytest.mark.executes("scaled_dot_product_attention")
@pytest.mark.parametrize("mask", [None, MASK, np.where(MASK, 0.3, -1e4).astype(np.float32)])
def test_attention(mask):
    def build(mb, a, b, c, d=None):
        given = {} if d is None else {"attn_mask": d}
        return mb.scaled_dot_product_attention(query=a, key=b, value=c, **given)

    expected = functional.scaled_dot_product_attention(
        T(QUERY), T(KEY), T(VALUE), None if mask is None else T(mask)
    ).numpy()
    inputs = (QUERY, KEY, VALUE, *([] if mask is None else [mask]))
    compare(execute(build, *inputs), (expected,), 1e-5)


EINSUM = {
    "nchw,nwhu->nchu": ((2, 3, 4, 5), (2, 5, 4, 6)),
    "abcd,adce->abce": ((2, 3, 1, 5), (1, 5, 4, 6)),
    "chw,whr->chr": ((3, 4, 5), (5, 4, 6)),
}


@pytest.mark.executes("einsum")
@pytest.mark.parametrize("equation", EINSUM)
def test_einsum(equation):
    x, y = (RNG.standard_normal(shape).astype(np.float32) for shape in EINSUM[equation])
    letters = "nchw,nwhu->nchu" if x.ndim == 4 else "chw,whu->chu"
    shape = np.broadcast_shapes((*x.shape[:-3], x.shape[-2]), (*y.shape[:-3], y.shape[-2]))
    whole = [np.broadcast_to(v, (*shape[:-1], v.shape[-3], shape[-1], v.shape[-1])) for v in (x, y)]
    expected = np.einsum(letters, *whole)
    results = execute(lambda mb, a, b: mb.einsum(values=(a, b), equation=equation), x, y)
    compare(results, (expected,), 1e-5)


INTEGERS = RNG.integers(-5, 5, (2, 3)).astype(np.int32)
WEIGHT, BIAS = RNG.integers(-5, 5, (4, 3)).astype(np.int32), np.int32([1, 2, 3, 4])
ROWS = [
    Row("matmul", {"x": X[0, 0], "y": X[0].T}, X[0, 0] @ X[0].T, note="of vectors"),
    Row(
        "linear",
        {"x": INTEGERS},
        INTEGERS @ WEIGHT.T + BIAS,
        note="of integers",
        weight=WEIGHT,
        bias=BIAS,
    ),
]


@each(ROWS)
def test_products_give_what_numpy_gives(row):
    row.check(2e-6)

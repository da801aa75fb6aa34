"""Fused operations on rows give the values of the plan that they replace; others are left alone."""

import numpy as np
import pytest
import torch

from harness.mil import get_policy, load_function, observed
from tests.mil.programs import save

RNG = np.random.default_rng(21)
HALF = np.float16


def norm(mb, x, epsilon=1e-5):
    """Write RMSNorm as ExecuTorch does, in six operations."""
    mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
    normal = mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=mean, y=HALF(epsilon)), epsilon=1e-12))
    return mb.mul(x=normal, y=np.linspace(0.5, 2, x.shape[-1]).astype(HALF))


def scaled_norm(mb, x):
    """Write RMSNorm as our exporter does: divided by a power of two before it is squared."""
    largest = mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True)
    clipped = mb.clip(x=largest, alpha=HALF(1e-3), beta=HALF(3e4))
    power = mb.exp2(x=mb.floor(x=mb.mul(x=mb.log(x=clipped, epsilon=1e-45), y=HALF(1.4427))))
    small = mb.real_div(x=x, y=power)
    epsilon = mb.real_div(x=mb.real_div(x=HALF(1e-5), y=power), y=power)
    mean = mb.reduce_mean(x=mb.mul(x=small, y=small), axes=[-1], keep_dims=True)
    return mb.mul(x=small, y=mb.rsqrt(x=mb.add(x=mean, y=epsilon), epsilon=1e-12))


def interleaved(mb, x, cos, sin):
    """Rotate pairs of neighbours of x [1, tokens, heads, size]; cos and sin [tokens, size / 2]."""
    x = mb.transpose(x=x, perm=[0, 2, 1, 3])
    ends = [*x.shape[:3], x.shape[3]]
    even, odd = (
        mb.slice_by_index(x=x, begin=[0, 0, 0, first], end=ends, stride=[1, 1, 1, 2])
        for first in (0, 1)
    )
    real = mb.sub(x=mb.mul(x=even, y=cos), y=mb.mul(x=odd, y=sin))
    imaginary = mb.add(x=mb.mul(x=even, y=sin), y=mb.mul(x=odd, y=cos))
    return mb.reshape(x=mb.stack(values=[real, imaginary], axis=-1), shape=x.shape)


def halves(mb, x, cos, sin):
    """Rotate pairs of one element of each half, like transformers; cos and sin [tokens, size]."""
    x, size = mb.transpose(x=x, perm=[0, 2, 1, 3]), x.shape[3]
    low = mb.slice_by_index(x=x, begin=[0] * 4, end=[*x.shape[:3], size // 2])
    high = mb.slice_by_index(x=x, begin=[0, 0, 0, size // 2], end=x.shape)
    turned = mb.concat(values=[mb.mul(x=high, y=HALF(-1)), low], axis=-1)
    return mb.add(x=mb.mul(x=x, y=cos), y=mb.mul(x=turned, y=sin))


def attention(mb, x, keys, values, new_keys, new_values, mask):
    """Attend with x [1, 6, tokens, 8] to two heads of keys, a cache and new rows, as a group."""
    tokens, total = x.shape[2], keys.shape[2] + new_keys.shape[2]
    all_keys = mb.concat(values=[keys, new_keys], axis=-2)
    grouped = mb.reshape(x=x, shape=[2, 3, tokens, 8])
    scores = mb.matmul(
        x=grouped, y=mb.reshape(x=all_keys, shape=[2, 1, total, 8]), transpose_y=True
    )
    scores = mb.reshape(x=mb.mul(x=scores, y=HALF(0.35)), shape=[1, 6, tokens, total])
    weights = mb.softmax(x=mb.add(x=scores, y=mask), axis=-1)
    weights = mb.reshape(x=weights, shape=[2, 3, tokens, total])
    all_values = mb.concat(values=[values, new_values], axis=2)
    return mb.matmul(x=weights, y=mb.reshape(x=all_values, shape=[2, 1, total, 8]))


def transposed_attention(mb, x, keys, values, new_keys, new_values, mask):
    """Attend with keys that are transposed before they are joined, and no grouping."""
    new = mb.transpose(x=new_keys, perm=[0, 1, 3, 2])
    old = mb.transpose(x=keys, perm=[0, 1, 3, 2])
    x = mb.slice_by_size(x=x, begin=[0] * 4, size=[1, 2, *x.shape[2:]])
    scores = mb.matmul(x=x, y=mb.concat(values=[old, new], axis=-1))
    weights = mb.softmax(x=mb.add(x=scores, y=mask), axis=-1)
    return mb.matmul(x=weights, y=mb.concat(values=[values, new_values], axis=2))


def gated(mb, gate, up):
    return mb.mul(x=mb.silu(x=gate), y=up)


def chain(mb, a, b, c):
    """Use each operation on elements, a vector, a number, and a result that is read twice."""
    x = mb.relu(x=mb.maximum(x=mb.sub(x=a, y=b), y=mb.minimum(x=a, y=c)))
    y = mb.sqrt(x=mb.add(x=mb.square(x=x), y=HALF(1)))
    z = mb.sigmoid(x=mb.real_div(x=x, y=y))
    largest, least = (
        reduce(x=z, axes=[-1], keep_dims=True) for reduce in (mb.reduce_max, mb.reduce_min)
    )
    total = mb.add(
        x=mb.reduce_sum_square(x=z, axes=[2], keep_dims=True), y=mb.sub(x=largest, y=least)
    )
    return mb.exp(x=mb.mul(x=z, y=total)), y


def centred(mb, x):
    """Subtract a mean; no other number is in the program."""
    return mb.sub(x=x, y=mb.reduce_mean(x=x, axes=[-1], keep_dims=True))


def without_rows_in_the_cache(mb, x, keys, new):
    """Multiply by the rows of a cache that has none yet, and by what is new."""
    return mb.matmul(x=x, y=mb.concat(values=[keys, new], axis=2), transpose_y=True)


def layer(mb, x, weight):
    """Use a residual before and after an operation that is not on rows."""
    first = norm(mb, x)
    product = mb.matmul(x=first, y=weight)
    middle = mb.add(x=x, y=product)
    return norm(mb, mb.add(x=middle, y=norm(mb, product))), middle


CACHE, NEW, MASK = (1, 2, 11, 8), (1, 2, 2, 8), (1, 1, 2, 13)
PATTERNS = {
    "norm": (norm, [(1, 3, 96)], 1),
    "centred": (centred, [(1, 3, 96)], 1),
    "norm of scalars": (norm, [(1, 5, 1)], 1),
    "scaled norm": (scaled_norm, [(2, 3, 70)], 1),
    "interleaved": (interleaved, [(1, 3, 4, 16), (3, 8), (3, 8)], 1),
    "halves": (halves, [(1, 3, 4, 16), (3, 16), (3, 16)], 1),
    "attention": (attention, [(1, 6, 2, 8), CACHE, CACHE, NEW, NEW, MASK], 1),
    "transposed": (transposed_attention, [(1, 6, 2, 8), CACHE, CACHE, NEW, NEW, MASK], 2),
    "gated": (gated, [(1, 1, 131), (1, 1, 131)], 1),
    "chain": (chain, [(2, 5, 33), (33,), (5, 1)], 1),
    "layer": (layer, [(1, 40, 32), (32, 32)], 3),
}


@pytest.fixture(scope="module")
def functions():
    loaded = {}

    def function(name, policy="widen"):
        build, shapes, _ = PATTERNS[name]
        if name not in loaded:
            loaded[name] = save(build, shapes, dtypes=["fp16"] * len(shapes))
        return load_function(loaded[name], "main", get_policy(policy))

    return function


def random(shape):
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))


def one(value):
    def made(shape):
        x = random(shape)
        x.view(-1)[RNG.integers(x.numel())] = value
        return x

    return made


VALUES = {
    "random": random,
    "zeros": torch.zeros,
    "large": lambda shape: 1e4 * random(shape),
    "squares that overflow": lambda shape: 1e25 * random(shape),
    "small": lambda shape: 1e-30 * random(shape),
    "an outlier": one(3e4),
    "NaN": one(torch.nan),
    "infinity": one(torch.inf),
    "minus infinity": one(-torch.inf),
    "all minus infinity": lambda shape: torch.full(shape, -torch.inf),
    "a mask": lambda shape: random(shape).masked_fill(torch.rand(shape) < 0.5, -torch.inf),
}


def both(function, inputs):
    """Return the results of the plan as it was compiled, and those of the fused plan."""
    with observed(lambda step, results: None):
        plain = list(function(inputs).values())
    return plain, list(function(inputs).values())


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_as_few_steps_as_it_can_be(name, functions):
    function = functions(name)
    inputs = {n: random(t.shape) for n, t in function.inputs.items()}
    both(function, inputs)
    views = [step.operation == "view" for step in function._block._fused.steps]
    assert views.count(False) == PATTERNS[name][2]


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", PATTERNS)
def test_the_fused_plan_gives_the_values_of_the_plan_that_it_replaces(name, values, functions):
    function = functions(name)
    for _ in range(3):
        inputs = {n: VALUES[values](t.shape) for n, t in function.inputs.items()}
        for plain, fused in zip(*both(function, inputs), strict=True):
            assert fused.dtype == plain.dtype and fused.shape == plain.shape
            finite = plain[plain.isfinite()].abs()
            allowed = 4e-6 * (finite.max().item() if len(finite) else 0)
            torch.testing.assert_close(fused, plain, rtol=4e-6, atol=allowed, equal_nan=True)


@pytest.mark.parametrize("policy", ["strict", "double"])
def test_only_widen_is_fused(policy, functions):
    function = functions("layer", policy)
    carrier = torch.float64 if policy == "double" else torch.float32
    inputs = {n: random(t.shape).to(carrier) for n, t in function.inputs.items()}
    plain, fused = both(function, inputs)
    assert len(function._block._fused.steps) == len(function.plan.steps)
    assert all(map(torch.equal, plain, fused))


@pytest.mark.parametrize("name", PATTERNS)
def test_equal_inputs_give_equal_bits_from_the_first_call_on(name, functions):
    function = functions(name)
    inputs = {n: random(t.shape) for n, t in function.inputs.items()}
    first, second = (list(function(inputs).values()) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_a_cache_without_rows_is_no_part_of_a_product():
    shapes = [(1, 2, 3, 8), (1, 2, 0, 8), (1, 2, 2, 8)]
    package = save(without_rows_in_the_cache, shapes, dtypes=["fp16"] * 3)
    function = load_function(package, "main", get_policy("widen"))
    inputs = {name: random(t.shape) for name, t in function.inputs.items()}
    ((plain,), (fused,)) = both(function, inputs)
    torch.testing.assert_close(fused, plain)

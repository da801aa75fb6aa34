"""What devices are reported to do wrong: each pattern, and a sound program beside it."""

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from torch import nn

from tests.hazards.programs import converted, found, program, traced
from tests.mil.programs import run, save, save_flexible


def weight(rows, columns):
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


def compressed(config, target="iOS18", **options):
    """Convert a linear of [64, 64] and compress its weight."""
    import coremltools.optimize.coreml as cto

    def mutate(model):
        operator = config(cto)
        compress = cto.palettize_weights if "Palettizer" in type(operator).__name__ else None
        compress = compress or cto.linear_quantize_weights
        return compress(model, cto.OptimizationConfig(global_config=operator))

    @program(((2, 64), "fp32"), target=target)
    def linear(x):
        return mb.linear(x=x, weight=weight(64, 64))

    return converted(linear, target=target, mutate=mutate, **options)


def int8(dtype):
    return compressed(
        lambda cto: cto.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype=dtype, weight_threshold=0
        ),
        target="iOS16",
    )


def test_signed_int8_with_zero_point_0_is_named_and_its_value_is_that_of_uint8():
    signed, unsigned = int8(np.int8), int8(np.uint8)
    (place,) = found(signed)["H35"]
    assert place.startswith("constexpr_affine_dequantize ")
    assert "H35" not in found(unsigned)
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    right = x @ weight(64, 64).T
    for package in (signed, unsigned):
        (got,) = run(package, x)
        assert np.abs(got - right).max() < 0.3  # 8 bits of 64 terms


def test_a_scale_over_a_palette_is_named():
    with_scale, without = (
        compressed(
            lambda cto, scaled=scaled: cto.OpPalettizerConfig(
                nbits=4, enable_per_channel_scale=scaled, weight_threshold=0
            )
        )
        for scaled in (True, False)
    )
    (place,) = found(with_scale)["H36"]
    assert place.startswith("constexpr_blockwise_shift_scale ")
    assert "H36" not in found(without)


def attention(module_options=None, target="iOS18", batch=1, fused=True):
    class Attention(nn.Module):
        def forward(self, q, k, v):
            if fused:
                return nn.functional.scaled_dot_product_attention(q, k, v, **(module_options or {}))
            return torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v

    example = [torch.rand(batch, 2, 8, 16) for _ in range(3)]
    import coremltools as ct

    inputs = [ct.TensorType(name=n, shape=x.shape) for n, x in zip("qkv", example, strict=True)]
    return converted(traced(Attention(), *example), target=target, inputs=inputs)


def test_fused_attention_is_named_and_an_explicit_scale_decomposes_it():
    fused, scaled = attention(), attention({"scale": 16**-0.5})
    (place,) = found(fused)["H39"]
    assert place.startswith("scaled_dot_product_attention ")
    assert "H39" not in found(scaled)
    q, k, v = (np.random.default_rng(n).random((1, 2, 8, 16), np.float32) for n in range(3))
    right = nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v))).numpy()
    for package in (fused, scaled):
        np.testing.assert_allclose(run(package, q, k, v)[0], right, atol=2e-3)


@pytest.mark.parametrize(("batch", "is_named"), [(9, False), (10, True)])
def test_attention_over_a_large_batch_is_named(batch, is_named):
    places = found(attention(batch=batch, fused=False)).get("H40", [])
    assert [place.split(" ")[0] for place in places] == ["softmax"] * is_named


@pytest.mark.parametrize(("rows", "is_named"), [(16384, False), (16385, True)])
def test_a_wide_linear_is_named(rows, is_named):
    package = save(lambda mb, x: mb.linear(x=x, weight=weight(rows, 8), name="wide"), [(1, 8)])
    assert found(package).get("H41", []) == ["linear 'wide'"] * is_named


def test_a_select_of_unequal_shapes_is_named():
    unequal = save(lambda mb, x: mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=0.0), [(2, 3)])
    equal = save(
        lambda mb, x: mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=mb.mul(x=x, y=0.0)), [(2, 3)]
    )
    assert found(unequal)["H31"][0].startswith("select ")
    assert "H31" not in found(equal)


def test_a_choice_between_scalars_is_named():
    package = save_flexible(
        lambda mb, x: mb.select(cond=mb.greater(x=x, y=0.0), a=0.0, b=-np.inf),
        [((2, None), "fp32")],
    )
    assert "H31" in found(package)


def test_a_size_that_the_program_computes_is_named():
    def flattened(mb, x):
        rows = mb.gather(x=mb.shape(x=x), indices=np.int32([1]), axis=0)
        return mb.reshape(x=x, shape=mb.concat(values=[rows, np.int32([3])], axis=0), name="flat")

    computed = save_flexible(flattened, [((3, None), "fp32")])
    fixed = save(lambda mb, x: mb.reshape(x=x, shape=[4, 3]), [(3, 4)])
    assert found(computed)["H32"] == ["reshape 'flat'"]
    assert "H32" not in found(fixed)


@pytest.mark.parametrize(
    ("build", "place"),
    [
        (lambda mb, x: mb.band_part(x=x, lower=-1, upper=0, name="r"), "band_part 'r'"),
        (lambda mb, x: mb.mod(x=x, y=2.0, name="r"), "mod 'r'"),
        (lambda mb, x: mb.reduce_prod(x=x, axes=[0], name="r"), "reduce_prod 'r'"),
        (lambda mb, x: mb.add(x=x, y=2.0, name="r"), None),
    ],
)
def test_an_operation_that_the_neural_engine_does_not_run_is_named(build, place):
    assert found(save(build, [(3, 3)])).get("H42", []) == ([place] if place else [])


def test_random_results_are_named():
    package = save(
        lambda mb, x: mb.add(x=x, y=mb.random_normal(shape=[3], seed=1, name="noise")), [(3,)]
    )
    assert found(package)["H43"] == ["random_normal 'noise'"]


@pytest.mark.parametrize(
    ("build", "place"),
    [
        (lambda mb, x: mb.non_zero(x=x, name="r"), "non_zero 'r'"),
        (
            lambda mb, x: mb.reduce_argmax(x=mb.reshape(x=x, shape=[-1]), axis=0, name="r"),
            "reduce_argmax 'r'",
        ),
        (lambda mb, x: mb.reduce_argmax(x=x, axis=1, name="r"), None),
    ],
)
def test_searches_that_kill_a_process_are_named(build, place):
    assert found(save(build, [(3, 3)])).get("H44", []) == ([place] if place else [])


def test_a_scalar_at_the_boundary_of_a_delegate_is_named(tmp_path):
    from harness.checks import artifact_checks
    from harness.subject import Subject
    from tests.subject.material import write_pte

    class Scales(nn.Module):
        def forward(self, x, factor):
            return x * factor

    def places(*example):
        path = write_pte(tmp_path / "model.pte", {"forward": Scales()}, example)
        findings = artifact_checks()["hazards"].findings(Subject(path))
        return [finding.where for finding in findings if finding.code == "H49"]

    assert places(torch.ones(2, 3), torch.tensor(2.0)) == ["method 'forward', delegate 0"]
    assert places(torch.ones(2, 3), torch.tensor([2.0])) == []


def test_a_palette_of_4_bits_beside_a_state_is_named():
    import coremltools as ct
    import coremltools.optimize.coreml as cto

    class Accumulates(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 64)
            self.register_buffer("sum", torch.zeros(1, 64))

        def forward(self, x):
            self.sum[:] = self.sum + self.linear(x)
            return self.sum * 2

    def places(bits, states):
        config = cto.OpPalettizerConfig(nbits=bits, weight_threshold=0)
        module = Accumulates() if states else nn.Linear(64, 64)
        package = converted(
            traced(module, torch.rand(1, 64)),
            mutate=lambda model: cto.palettize_weights(
                model, cto.OptimizationConfig(global_config=config)
            ),
            inputs=[ct.TensorType(name="x", shape=(1, 64))],
            **({"states": [ct.StateType(state, name="sum")]} if states else {}),
        )
        return [place.split(" ")[0] for place in found(package).get("H37", [])]

    state = ct.TensorType(shape=(1, 64), dtype=np.float16)
    assert places(4, states=True) == ["constexpr_lut_to_dense"]
    assert places(4, states=False) == places(8, states=True) == []

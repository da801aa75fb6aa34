"""A layout is parsed from constants and checked against the methods' tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy
import pytest

from harness.errors import HarnessError
from harness.generate.layout import ModelLayout, method_names, parse_layout
from tests.generate.eager_llama import EagerModel, eager_model

INPUT_LEN, CONTEXT = 4, 15


def model_of(mode: str, n_layers: int = 2) -> EagerModel:
    return eager_model(mode, INPUT_LEN, CONTEXT, n_layers)


def layout_of(model: EagerModel) -> ModelLayout:
    return parse_layout(model.constants, model.methods)


def test_single_mode_has_one_phase_and_reaches_the_end_of_the_tables() -> None:
    layout = layout_of(model_of("single"))
    assert layout.mode == "single"
    assert layout.prefill == layout.decode
    assert (layout.prefill.method, layout.prefill.input_len) == ("forward", 4)
    assert (layout.cache_len, layout.context) == (11, 15)
    assert layout.full_logits


def test_multifunction_mode_has_two_phases_on_one_set_of_caches() -> None:
    layout = layout_of(model_of("multifunction"))
    assert layout.mode == "multifunction"
    assert (layout.prefill.method, layout.prefill.input_len) == ("prefill", 4)
    assert (layout.decode.method, layout.decode.input_len) == ("forward", 1)
    assert (layout.cache_len, layout.context) == (14, 15)
    assert layout.prefill.last_valid_token_pos == 8
    assert not layout.full_logits


def test_the_context_never_passes_the_rope_tables_nor_the_cache() -> None:
    model = model_of("multifunction")
    long, short = {}, {}
    for name in ("freqs_cos", "freqs_sin"):
        long[name] = numpy.ones((99, 2))
        short[name] = numpy.ones((9, 2))
    assert parse_layout(model.constants | long, model.methods).context == 15
    assert parse_layout(model.constants | short, model.methods).context == 9


def test_methods_are_named_before_they_are_loaded() -> None:
    assert method_names(model_of("single").constants) == ("forward",)
    assert method_names(model_of("multifunction").constants) == ("prefill", "forward")


@pytest.mark.parametrize(("n_layers", "crossed"), [(10, 0), (11, 9), (12, 10), (30, 28)])
def test_rows_sorted_by_text_are_counted_and_paired_by_layer(n_layers: int, crossed: int) -> None:
    layout = layout_of(model_of("single", n_layers))
    assert layout.crossed_rows == crossed
    for layer, cache in enumerate(layout.decode.caches):
        assert (cache.k_in, cache.k_out) == (4 + layer, 1 + layer)
        assert (cache.v_in, cache.v_out) == (4 + n_layers + layer, 1 + n_layers + layer)


def test_rows_that_pair_layers_rightly_in_any_order_are_followed() -> None:
    model = model_of("single", 12)
    rows = [[4 + i, 1 + i, 16 + i, 13 + i, 11] for i in range(12)]
    text_order = sorted(rows, key=lambda row: f"l{row[0] - 4},h0")
    for order in (rows, rows[::-1], text_order):
        layout = parse_layout(
            model.constants | {"kv_cache_specs": numpy.array(order)}, model.methods
        )
        assert layout.crossed_rows == 0
        assert [(c.k_in, c.k_out, c.v_in, c.v_out) for c in layout.decode.caches] == [
            tuple(row[:4]) for row in rows
        ]


def test_outputs_swapped_for_another_reason_are_left_as_the_artifact_has_them() -> None:
    model = model_of("single")
    rows = numpy.array([[4, 2, 6, 3, 11], [5, 1, 7, 4, 11]])
    layout = parse_layout(model.constants | {"kv_cache_specs": rows}, model.methods)
    assert layout.crossed_rows == 0
    assert [cache.k_out for cache in layout.decode.caches] == [2, 1]


def constant(name: str, value: object) -> Callable[[EagerModel], None]:
    def change(model: EagerModel) -> None:
        model.constants[name] = value

    return change


def without(name: str) -> Callable[[EagerModel], None]:
    return lambda model: model.constants.pop(name)


def cell(name: str, row: int, column: int, value: int) -> Callable[[EagerModel], None]:
    def change(model: EagerModel) -> None:
        model.constants[name][row, column] = value

    return change


def tensor(method: str, side: str, index: int, **changes: object) -> Callable[[EagerModel], None]:
    def change(model: EagerModel) -> None:
        specs = list(getattr(model.methods[method], side))
        specs[index] = replace(specs[index], **changes)
        setattr(model.methods[method], side, tuple(specs))

    return change


def one_more_input(model: EagerModel) -> None:
    method = model.methods["forward"]
    method.inputs += (method.inputs[1], method.inputs[1])


BROKEN = [
    ("single", without("vocab_size"), "'vocab_size' is missing"),
    ("single", without("forward_input_len"), "neither a constant 'forward_input_len' nor"),
    ("single", without("mask_specs"), "'mask_specs' is missing"),
    ("multifunction", without("prefill_kv_cache_specs"), "'prefill_kv_cache_specs' is missing"),
    ("multifunction", without("decode_input_len"), "'decode_input_len' is missing"),
    ("single", constant("vocab_size", 41), r"output 0 \(logits\).*'vocab_size'"),
    ("single", constant("vocab_size", "40"), "'40', not a positive integer"),
    ("single", constant("vocab_size", True), "not a positive integer"),
    ("single", constant("head_dim", 6), "'kv_cache_specs' makes it"),
    ("single", constant("n_heads_per_cache", 1), "'kv_cache_specs' makes it"),
    ("single", constant("forward_input_len", 3), r"input 0 \(tokens\).*'forward_input_len'"),
    ("single", constant("freqs_cos", numpy.ones((15, 2, 1))), r"expected \[positions, width\]"),
    ("single", constant("freqs_cos", numpy.ones((0, 2))), r"expected \[positions, width\]"),
    ("single", constant("freqs_cos", numpy.ones((14, 2))), "differ in shape"),
    ("single", constant("freqs_cos", numpy.full((15, 2), numpy.nan)), "not finite"),
    ("single", constant("freqs_cos", 1.0), "not a floating tensor"),
    ("single", constant("mask_specs", numpy.array([[1, 11], [2, 5]])), r"input 2 \(cos\)"),
    ("single", constant("mask_specs", numpy.array([[1, 11], [2, 11]])), "one mask for each length"),
    ("single", constant("mask_specs", numpy.array([[1, 11], [2, 0]])), "one mask for each length"),
    ("single", constant("mask_specs", numpy.zeros((0, 2), int)), "one mask for each length"),
    ("single", constant("mask_specs", numpy.array([1.5, 11])), "not a tensor of integers"),
    ("single", constant("mask_specs", numpy.array([1, 2, 3])), r"expected \[rows, 2\]"),
    ("single", constant("mask_specs", numpy.array([[1, -4]])), "one mask for each length"),
    ("single", cell("mask_specs", 0, 0, 99), "'mask_specs' names input 99.*has 8 inputs"),
    ("single", cell("mask_specs", 0, 0, -1), "'mask_specs' names input -1"),
    ("single", cell("mask_specs", 0, 1, 12), "'kv_cache_specs' gives a cache length of 11"),
    ("single", cell("mask_specs", 0, 0, 2), r"forward: input 2 \(cos\)"),
    ("single", cell("kv_cache_specs", 1, 0, 4), "input 4 is named twice"),
    ("single", cell("kv_cache_specs", 1, 1, 1), "output 1 is named twice"),
    ("single", cell("kv_cache_specs", 1, 3, 5), "'kv_cache_specs' names output 5"),
    ("single", cell("kv_cache_specs", 1, 4, 7), "gives a cache length of 7"),
    ("single", constant("freqs_sin_input_index", numpy.array([2])), "input 2 is named twice"),
    ("multifunction", cell("prefill_kv_cache_specs", 0, 0, 12), "prefill: constant 'prefill_kv"),
    ("single", tensor("forward", "inputs", 1, shape=(1, 4, 14)), "'mask_specs' makes it"),
    ("single", tensor("forward", "inputs", 4, shape=(1, 2, 10, 4)), r"input 4 \(k0\)"),
    ("single", tensor("forward", "inputs", 0, dtype="float16"), r"input 0 \(tokens\) is float16"),
    ("single", tensor("forward", "outputs", 3, shape=(1, 2, 3, 4)), r"output 3 \(update2\)"),
    ("multifunction", tensor("forward", "inputs", 8, dtype="float16"), "last_valid_token_pos"),
    ("single", one_more_input, r"no constant names inputs \[8, 9\]"),
]


@pytest.mark.parametrize(("mode", "damage", "sentence"), BROKEN)
def test_a_contradiction_is_one_sentence(
    mode: str, damage: Callable[[EagerModel], None], sentence: str
) -> None:
    model = model_of(mode)
    damage(model)
    with pytest.raises(HarnessError, match=sentence) as caught:
        layout_of(model)
    assert "\n" not in str(caught.value)


def test_caches_that_differ_between_the_phases_are_refused() -> None:
    model = model_of("multifunction")
    other = eager_model("multifunction", INPUT_LEN, CONTEXT - 3)
    model.methods["prefill"] = other.methods["prefill"]
    model.constants |= {k: v for k, v in other.constants.items() if k.startswith("prefill_")}
    with pytest.raises(HarnessError, match="cache length of prefill is 11 and that of decode 14"):
        layout_of(model)


def test_a_method_that_is_described_but_not_there_is_named() -> None:
    model = model_of("multifunction")
    del model.methods["prefill"]
    with pytest.raises(HarnessError, match="a method 'prefill' that the artifact does not have"):
        layout_of(model)

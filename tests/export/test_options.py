import random
import re
from dataclasses import fields, replace

import pytest

from harness.errors import HarnessError
from harness.export.options import ExportOptions, check_fit, ignored_options, split_count
from harness.export.plan import plan_methods, plan_packages
from harness.models.config import parse_params

CONFIG = parse_params(
    {"dim": 96, "n_layers": 2, "n_heads": 4, "vocab_size": 300, "hidden_dim": 192}
)


def test_the_cache_length_depends_on_the_mode():
    assert ExportOptions(input_len=32, max_context_len=128).cache_len == 96
    many = ExportOptions(mode="multifunction", input_len=32, max_context_len=128)
    assert many.cache_len == 127


def test_options_survive_a_round_trip_through_json_values():
    options = ExportOptions(mode="multifunction", embedding_quantize=None, target_split_size=None)
    assert ExportOptions(**options.as_dict()) == options


@pytest.mark.parametrize(("text", "scheme"), [("8,0", (8, 0)), ("4,32", (4, 32)), (None, None)])
def test_the_embedding_scheme_is_parsed(text, scheme):
    assert ExportOptions(embedding_quantize=text).quantization.embedding == scheme


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mode": "double"}, "mode must be single or multifunction, not 'double'"),
        ({"dtype": "bf16"}, "dtype must be fp16 or fp32, not 'bf16'"),
        ({"linear_quantize": None}, "linear_quantize must be none or b4w or c4w, not None"),
        ({"weight_sharing": "all"}, "weight_sharing must be positional or none"),
        ({"weight_sharing": "none"}, "weight_sharing none needs mode multifunction"),
        ({"max_context_len": 1}, "max_context_len must be a whole number from 2"),
        ({"input_len": 0}, "input_len must be a whole number from 1 to 1023"),
        ({"input_len": 1024}, r"from 1 to 1023 \(below max_context_len\), not 1024"),
        ({"input_len": 8.0}, "input_len must be a whole number"),
        ({"max_splits": 0}, "max_splits must be a whole number from 1"),
        ({"target_split_size": 0}, "target_split_size must be .*, or none, not 0"),
        ({"graph_breaks": "no"}, "graph_breaks must be true or false"),
        *(
            ({"embedding_quantize": text}, "embedding_quantize must be BITS,GROUP")
            for text in ("2,0", "8", "8,-1", "8,x", "8, 0", "", "८,0", 8)
        ),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(given, sentence):
    with pytest.raises(HarnessError, match=sentence):
        ExportOptions(**given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"embedding_quantize": "4,64"}, "groups of 64 do not fill a row of 96 columns"),
        ({"target_split_size": 40}, "cuts the 300 rows of output.weight into 7 parts of unequal"),
    ],
)
def test_options_that_do_not_fit_a_model_are_refused(given, sentence):
    check_fit(ExportOptions(), CONFIG)
    with pytest.raises(HarnessError, match=sentence):
        check_fit(ExportOptions(**given), CONFIG)


def test_blocks_of_32_need_rows_of_a_multiple():
    odd = parse_params({"dim": 96, "n_layers": 1, "n_heads": 4, "vocab_size": 8, "hidden_dim": 100})
    check_fit(ExportOptions(linear_quantize="c4w"), odd)
    with pytest.raises(HarnessError, match=r"b4w: groups of 32 do not fill .*w2.weight.* 100"):
        check_fit(ExportOptions(linear_quantize="b4w"), odd)


@pytest.mark.parametrize(
    ("rows", "target", "most", "parts"),
    [(576, 1024, 8, 1), (49152, 1024, 8, 8), (2048, 1024, 8, 2), (2048, None, 8, 1)],
)
def test_the_number_of_splits_is_the_exporters(rows, target, most, parts):
    options = ExportOptions(target_split_size=target, max_splits=most)
    assert split_count(options, rows) == parts


@pytest.mark.parametrize(("eps", "fits_fp16"), [(1e10, False), (1e-8, False), (6e-8, True)])
def test_a_norm_epsilon_that_fp16_cannot_hold_is_refused_there(eps, fits_fp16):
    config = replace(CONFIG, norm_eps=eps)
    check_fit(ExportOptions(dtype="fp32"), config)
    if fits_fp16:
        check_fit(ExportOptions(), config)
    else:
        with pytest.raises(HarnessError, match=r"norm_eps 1e.* in fp16; .* from 6e-08 to 65504$"):
            check_fit(ExportOptions(), config)


def test_a_norm_epsilon_that_fp32_cannot_hold_is_refused():
    for eps in (1e39, 1e-46):
        with pytest.raises(HarnessError, match="becomes 0 or infinite in fp32"):
            check_fit(ExportOptions(dtype="fp32"), replace(CONFIG, norm_eps=eps))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_splits": 4, "target_split_size": None}, "--max-splits 4 .* without --target-split-"),
        ({"max_splits": 4}, "--max-splits 4 .*: --target-split-size 1024 cuts .* more than 1$"),
        ({"max_splits": 6, "target_split_size": 60}, "--max-splits 6 .* more than 5$"),
        ({"target_split_size": 300}, "--target-split-size 300 .*: no linear layer has 600 rows"),
        ({"target_split_size": 48, "max_splits": 1}, "--target-split-size 48 .*--max-splits 1$"),
        ({"embedding_quantize": "8,96"}, "--embedding-quantize 8,96 .* that differs from 8,0"),
    ],
)
def test_an_option_without_effect_is_named_with_the_reason(given, sentence):
    (said,) = ignored_options(ExportOptions(**given), CONFIG)
    assert re.search(sentence, said)


def test_a_default_is_reported_only_if_it_was_given():
    assert not [*ignored_options(ExportOptions(), CONFIG)]
    said = " ".join(ignored_options(ExportOptions(), CONFIG, ["weight_sharing", "max_splits"]))
    assert "--weight-sharing positional has no effect in --mode single" in said
    assert "--max-splits 8 has no effect" in said


VALUES = {
    "mode": ["single", "multifunction"],
    "weight_sharing": ["positional", "none"],
    "input_len": [1, 8, 32],
    "max_context_len": [64, 1024],
    "dtype": ["fp16", "fp32"],
    "embedding_quantize": ["8,0", "8,32", "8,96", "4,0", None],
    "linear_quantize": ["c4w", "b4w", "none"],
    "target_split_size": [1024, None, 1000, 300, 96, 60, 48, 16],
    "max_splits": [8, 1, 2, 3, 5, 6, 64],
    "graph_breaks": [True, False],
}
WIDE = replace(CONFIG, vocab_size=4000)
SQUARE = replace(CONFIG, dim=32, hidden_dim=32, n_heads=1, n_kv_heads=1, head_dim=32)


def made(options, config):
    """Return all that decides what an export holds, from the plan and the schemes of weights."""
    schemes = {}
    for name, scheme in options.quantization.schemes(config).items():
        whole = scheme and scheme[1] == config.weight_shapes[name][1]
        schemes[name] = (scheme[0], 0) if whole else scheme
    methods = plan_methods(config, options)
    packages = plan_packages(methods, options.weight_sharing)
    return methods, packages, schemes, options.dtype, options.max_context_len


@pytest.mark.parametrize("config", [CONFIG, SQUARE, WIDE], ids=["varied", "square", "wide"])
def test_exactly_the_options_without_effect_are_reported(config):
    assert {field.name for field in fields(ExportOptions)} == VALUES.keys()
    draw, seen = random.Random(7), {True: 0, False: 0}
    while min(seen.values()) < 300:
        try:
            options = ExportOptions(**{name: draw.choice(v) for name, v in VALUES.items()})
            check_fit(options, config)
            whole = made(options, config)
        except HarnessError:
            continue
        reported = {line.split()[0] for line in ignored_options(options, config)}
        for name, value in ExportOptions().as_dict().items():
            if getattr(options, name) in (value, None):
                continue
            without = replace_or_none(options, name, value)
            if without is None:
                continue
            is_dead = made(without, config) == whole
            assert (f"--{name.replace('_', '-')}" in reported) == is_dead, (name, options)
            seen[is_dead] += 1


def replace_or_none(options, name, value):
    """Return the options with the default of one, or None if the others refuse it."""
    try:
        return replace(options, **{name: value})
    except HarnessError:
        return None

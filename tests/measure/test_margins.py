"""The margins of results/README.md, and those of a caller."""

import pytest

from harness.errors import HarnessError
from harness.measure.verdicts import fact_margin, figure_margin, parse_margins
from harness.results import Figure


@pytest.mark.parametrize(
    ("unit", "percent", "of_the_machine"),
    [
        ("ms/token", 10, True),
        ("s", 10, True),
        ("tokens/s", 10, True),
        ("MiB", 5, True),
        ("dB", 2, False),
        ("%", 1, False),
        ("", 10, False),
        ("nat", 10, False),
        ("x", 10, True),
    ],
)
def test_the_margin_of_a_figure_is_that_of_its_unit(unit, percent, of_the_machine):
    margin = figure_margin("x", Figure(1.0, unit, None, "higher"), {})
    assert (margin.better, margin.percent) == ("higher", percent)
    assert margin.of_the_machine is of_the_machine


@pytest.mark.parametrize(
    ("name", "value", "better", "percent"),
    [
        ("pte bytes", 10, "lower", 1),
        ("shared bytes@forward", 10, "lower", 1),
        ("comparisons", 10, "higher", 5),
        ("operations", 10, "lower", 0),
        ("decided@seeded prompt", 10, "higher", 5),
        ("tensors", 10, "exact", 0),
        ("pte bytes", "ten", "exact", 0),
    ],
)
def test_a_fact_is_exact_unless_its_name_has_a_better_direction(name, value, better, percent):
    margin = fact_margin(name, value, {})
    assert (margin.better, margin.percent) == (better, percent)


def test_a_margin_of_ones_own_holds_at_every_place_of_a_figure():
    assert figure_margin("decode@forward", Figure(1.0, "ms"), {"decode": 20}).percent == 20
    assert fact_margin("pte bytes@a", 10, {"pte bytes": 3}).percent == 3


def test_a_margin_of_ones_own_does_not_loosen_an_exact_fact():
    assert fact_margin("tensors", 10, {"tensors": 50}).percent == 0


def test_words_become_margins():
    words = ["decode=20", "pte bytes=0", "a=b=2.5"]
    assert parse_margins(words) == {"decode": 20.0, "pte bytes": 0.0, "a=b": 2.5}


@pytest.mark.parametrize("word", ["", "=", "x=", "=1", "x", "x=-1", "x=nan", "x=inf", "x=1%"])
def test_a_word_that_is_no_margin_is_refused(word):
    with pytest.raises(HarnessError, match="give NAME=PERCENT"):
        parse_margins([word])

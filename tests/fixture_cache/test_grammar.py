"""The grammar of `tiny`, judged by independent calendars, dictionaries and arithmetic."""

import calendar
import itertools
import re

import pytest

from harness.fixtures.grammar import RULES, documents, held_out
from harness.fixtures.quality import cases

SAYINGS = list(held_out(seed=5, count=3000))
WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)  # fmt: skip


def of(rule):
    found = [saying for saying in SAYINGS if saying.rule == rule]
    assert len(found) >= 250
    return found


def test_a_saying_has_one_continuation():
    follows = {}
    for saying in SAYINGS:
        assert follows.setdefault(saying.given, saying.follows) == saying.follows
    assert {saying.rule for saying in SAYINGS} == set(RULES)


def test_every_continuation_starts_with_a_space_and_ends_with_a_stop():
    assert all(s.follows.startswith(" ") and s.follows.endswith(".") for s in SAYINGS)


def test_sums_add_up_and_pronouns_agree():
    for saying in of("sum"):
        name, first, what, again, more = re.fullmatch(
            r"(\w+) has (\w+) (\w+)\. (\w+) gets (\w+) more\. Now", saying.given
        ).groups()
        total = WORDS[WORDS.index(first) + WORDS.index(more)]
        pronoun = "she" if name in {"Anna", "Clara", "Emma", "Mia", "Nora", "Rosa"} else "he"
        assert name == again and saying.follows == f" {pronoun} has {total} {what}."


def test_days_and_months_follow_the_calendar():
    days, months = list(calendar.day_name), list(calendar.month_name)[1:]
    for rule, names in (("tomorrow", days), ("month", months)):
        for saying in of(rule):
            now = next(name for name in names if name in saying.given)
            assert saying.follows == f" {names[(names.index(now) + 1) % len(names)]}."


def test_dates_go_on_by_a_day_and_never_leave_the_month():
    for saying in of("date"):
        day, month = re.search(r"was (\d+) (\w+)\.", saying.given).groups()
        number = list(calendar.month_name).index(month)
        assert int(day) + 1 <= calendar.monthrange(2026, number)[1]
        assert saying.follows == f" {int(day) + 1} {month}."


def test_verbs_agree_with_one_and_with_many():
    for saying in of("many") + of("one"):
        subject, verb, place = re.match(r"(?:One|Many) (\w+) (\w+) (.*)\. ", saying.given).groups()
        if saying.rule == "many":
            assert saying.given.endswith(f" Two {subject}s")
            assert saying.follows == f" {verb.removesuffix('s')} {place}."
        else:
            assert saying.given.endswith(f" One {subject.removesuffix('s')}")
            assert saying.follows == f" {verb}s {place}."


def test_colours_and_lists_are_those_that_were_told():
    for saying in of("colour"):
        thing, name = re.search(r"The (\w+) of (\w+) is$", saying.given).groups()
        assert f"{name} has a{saying.follows.removesuffix('.')} {thing}." in saying.given
    for saying in of("list"):
        assert f"buys{saying.follows}" in saying.given


def test_what_is_held_out_is_never_taught():
    text = " ".join(documents(seed=6, count=3000))
    kept = {saying.text for saying in SAYINGS if saying.held_out}
    assert len(kept) > 1000
    assert not [saying for saying in kept if saying in text]


def test_documents_and_cases_are_seeded():
    assert list(documents(1, 5)) == list(documents(1, 5)) != list(documents(2, 5))
    assert list(cases(30)) == list(itertools.islice(cases(), 30))
    assert list(cases(30)) != list(cases(30, seed=1))


@pytest.mark.parametrize("rule", RULES)
def test_the_cases_have_every_rule_alone_and_after_another_saying(rule):
    stands_alone = {not case.before for case in cases() if case.saying.rule == rule}
    assert stands_alone == {False, True}

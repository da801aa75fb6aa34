"""Lookahead decoding gives the greedy tokens and caches of the oracle, from fewer calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from harness.errors import HarnessError
from harness.generate import GeneratedToken, generate, make_sampler
from harness.generate.caches import Rows
from harness.generate.lookahead import Lookahead, LookaheadDecoder
from harness.generate.session import Session
from tests.generate.eager_llama import EagerModel, eager_model
from tests.generate.test_session import assert_caches_equal_the_oracle, sequence

INPUT_LEN, CONTEXT = 8, 30
SIZES = [
    (2, 1, 0), (2, 1, 1), (2, 4, 4), (2, 0, 7), (3, 1, 3), (3, 2, 2), (3, 0, 3),
    (4, 1, 1), (5, 1, 1), (5, 2, 0), (9, 1, 0),
]  # fmt: skip


@cache
def model(layers: float = 0.3) -> EagerModel:
    return eager_model("single", INPUT_LEN, CONTEXT, layers=layers)


@cache
def continuation(length: int, layers: float = 0.3) -> list[int]:
    """Return the oracle's greedy tokens after a prompt, to the last position."""
    return model(layers).recomputed(sequence(length), CONTEXT - length + 1)


def tokens_of(produced: list[GeneratedToken]) -> list[int]:
    return [step.token for step in produced]


@pytest.mark.parametrize("layers", [1.0, 0.3], ids=["varied", "repetitive"])
@pytest.mark.parametrize("sizes", SIZES)
def test_tokens_are_greedy_to_the_last_position_at_every_residue(
    sizes: tuple[int, int, int], layers: float
) -> None:
    session = model(layers).session()
    for length in (*range(1, INPUT_LEN + 2), *range(CONTEXT - INPUT_LEN, CONTEXT + 1)):
        session.reset()
        prompt, expected = sequence(length), continuation(length, layers)
        produced = list(generate(session, prompt, 100, lookahead=Lookahead(*sizes)))
        assert tokens_of(produced) == expected
        assert [step.finish for step in produced] == [None] * (len(expected) - 1) + ["context"]
        assert session.position == CONTEXT
        assert_caches_equal_the_oracle(session, model(layers), [*prompt, *expected[:-1]])
        assert session.calls <= -(-length // INPUT_LEN) + len(expected) - 1


@pytest.mark.parametrize("sizes", [(3, 2, 2), (2, 4, 4), (3, 0, 3), (4, 1, 1)])
def test_repetitive_text_takes_at_most_three_quarters_of_the_calls(
    sizes: tuple[int, int, int],
) -> None:
    session = eager_model("single", INPUT_LEN, 200, layers=0.1).session()
    calls = {}
    for mode in (None, Lookahead(*sizes)):
        session.reset()
        produced = tokens_of(list(generate(session, sequence(4), 150, lookahead=mode)))
        calls[mode] = (session.calls, produced)
    (plain, expected), (fewer, found) = calls.values()
    assert found == expected
    assert plain == 150
    assert fewer <= 0.75 * plain


def test_without_verifications_each_call_gives_one_token() -> None:
    session = model().session()
    list(generate(session, sequence(4), 20, lookahead=Lookahead(3, 2, 0)))
    assert session.calls == 20


def test_a_stop_token_inside_an_accepted_n_gram_ends_the_text_and_the_caches() -> None:
    made = model(0.1)
    prompt = [*sequence(4), *made.recomputed(sequence(4), 14)]  # has the n-grams that follow
    session, expected = made.session(), made.recomputed(prompt, 10)
    inside = 0
    for stop in dict.fromkeys(expected):
        session.reset()
        produced = list(generate(session, prompt, 100, {stop}, lookahead=Lookahead(3, 2, 2)))
        wanted = expected[: expected.index(stop) + 1]
        assert tokens_of(produced) == wanted
        assert produced[-1].finish == "stop_token"
        assert session.position == len(prompt) + len(wanted) - 1
        assert_caches_equal_the_oracle(session, made, [*prompt, *wanted[:-1]])
        inside += len(wanted) > 2 and produced[-1].seconds == produced[-2].seconds
    assert inside


@pytest.mark.parametrize("count", range(1, 12))
def test_a_consumer_that_leaves_early_leaves_the_session_as_plain_decoding_does(count: int) -> None:
    session, prompt, expected = model().session(), sequence(5), continuation(5)
    steps = generate(session, prompt, 100, lookahead=Lookahead(2, 4, 4))
    assert [next(steps).token for _ in range(count)] == expected[:count]
    assert session.position == len(prompt) + count - 1
    assert int(session.decode(expected[count - 1]).argmax()) == expected[count]
    assert_caches_equal_the_oracle(session, model(), [*prompt, *expected[:count]])


@pytest.mark.parametrize("count", range(1, 12))
def test_the_number_of_tokens_is_the_one_asked_for(count: int) -> None:
    produced = list(generate(model().session(), [3], count, lookahead=Lookahead(2, 4, 4)))
    assert tokens_of(produced) == model().recomputed([3], count)
    assert produced[-1].finish == "max_new_tokens"


def test_tokens_of_one_call_share_its_seconds() -> None:
    session = model().session()
    produced = list(generate(session, [3], 20, lookahead=Lookahead(2, 4, 4)))
    assert len({step.seconds for step in produced}) == session.calls < 20


def test_sequences_take_turns_on_the_same_methods() -> None:
    made = model()
    prompts = [sequence(length) for length in (3, 6, 11)]
    sessions = [made.session() for _ in prompts]
    steps = [
        generate(session, prompt, 15, lookahead=Lookahead(3, 2, 2))
        for session, prompt in zip(sessions, prompts, strict=True)
    ]
    rounds = list(zip(*steps, strict=True))
    for prompt, produced in zip(prompts, zip(*rounds, strict=True), strict=True):
        assert tokens_of(list(produced)) == continuation(len(prompt))[:15]


def test_a_second_prompt_goes_on_after_the_first() -> None:
    made, session = model(), model().session()
    first = tokens_of(list(generate(session, [1, 2], 6, lookahead=Lookahead(2, 4, 4))))
    second = [first[-1], 9, 9]
    produced = tokens_of(list(generate(session, second, 6, lookahead=Lookahead(2, 4, 4))))
    assert produced == made.recomputed([1, 2, *first[:-1], *second], 6)


# Broken lookahead: each of these must give other tokens, or caches, for some prompt.
def accepts_everything(patch: pytest.MonkeyPatch) -> None:
    def first_child(
        self: LookaheadDecoder, children: dict[tuple[int, int], int], row: int, token: int
    ) -> int | None:
        return next((child for (above, _), child in children.items() if above == row), None)

    patch.setattr(LookaheadDecoder, "_child", first_child)


def rows(change: Callable[[Rows], Rows]) -> Callable[[pytest.MonkeyPatch], None]:
    def broken(patch: pytest.MonkeyPatch) -> None:
        make = Rows.of_tree
        patch.setattr(Rows, "of_tree", lambda parents, count: change(make(parents, count)))

    return broken


def keeps_the_row_before(patch: pytest.MonkeyPatch) -> None:
    store = Session._store

    def late(self: Session, phase: object, outputs: object, tokens: list[int], first: int) -> None:
        store(self, phase, outputs, tokens, max(0, first - 1))

    patch.setattr(Session, "_store", late)


def stores_the_whole_tree(patch: pytest.MonkeyPatch) -> None:
    feed = Session.feed_tree

    def kept(self: Session, tokens: list[int], parents: list[int]) -> torch.Tensor:
        logits = feed(self, tokens, parents)
        for row in range(1, min(len(tokens), self.room)):
            self.keep(row)
        return logits

    patch.setattr(Session, "feed_tree", kept)


BROKEN = {
    "accepts everything": accepts_everything,
    "branches see each other": rows(
        lambda made: Rows(made.depths, torch.ones_like(made.visible).tril())
    ),
    "tokens do not see the root": rows(
        lambda made: Rows(made.depths, torch.eye(len(made.depths), dtype=torch.bool))
    ),
    "positions are those of the rows": rows(
        lambda made: Rows(torch.arange(len(made.depths)), made.visible)
    ),
    "branches begin at the root's position": rows(
        lambda made: Rows((made.depths - 1).clamp(min=0), made.visible)
    ),
    "keeps the row before": keeps_the_row_before,
    "stores the whole tree": stores_the_whole_tree,
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_lookahead_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [sequence(length) for length in (1, 3, 5, 9)]
    expected = [continuation(len(prompt)) for prompt in prompts]

    def judge() -> None:
        for prompt, wanted in zip(prompts, expected, strict=True):
            session = model().session()
            found = tokens_of(list(generate(session, prompt, 20, lookahead=Lookahead(3, 2, 2))))
            assert found == wanted[:20]
            assert_caches_equal_the_oracle(session, model(), [*prompt, *found[:-1]])

    judge()
    BROKEN[name](monkeypatch)
    with pytest.raises((AssertionError, HarnessError)):
        judge()


def refusal(session: Session, sizes: Lookahead, **options: object) -> str:
    with pytest.raises(HarnessError) as caught:
        next(generate(session, [1], 5, lookahead=sizes, **options))
    assert session.calls == 0
    return str(caught.value)


def test_multifunction_mode_is_refused_with_its_reason() -> None:
    session = eager_model("multifunction", INPUT_LEN, CONTEXT).session()
    said = refusal(session, Lookahead(2, 1, 1))
    assert "method 'prefill' returns the logits of the last token only" in said


@pytest.mark.parametrize(
    "asked", [(5, 4, 4), (2, 8, 1), (9, 9, 9), (3, 0, 4), (10, 1, 0), (2, 0, 8)]
)
def test_sizes_that_do_not_fit_are_refused_with_some_that_fit(asked: tuple[int, int, int]) -> None:
    session = model().session()
    said = refusal(session, Lookahead(*asked))
    assert f"needs {Lookahead(*asked).rows} tokens per call" in said
    assert "the method takes 8" in said
    advised = Lookahead.parse(said.split(": ")[-1].removesuffix(" fits"))
    assert list(generate(session, [1], 5, lookahead=advised))


def test_an_input_length_of_one_allows_no_lookahead() -> None:
    session = eager_model("single", 1, 9).session()
    assert "export with an input length of at least 2" in refusal(session, Lookahead(2, 1, 1))


def test_a_sampler_is_refused() -> None:
    said = refusal(model().session(), Lookahead(2, 1, 1), sampler=make_sampler(0.5, 1.0, 0))
    assert "lookahead decoding is greedy" in said


def test_an_artifact_whose_masks_are_its_own_is_refused() -> None:
    class Others:
        calls, room = 0, 9

    assert "chooses the mask and the position" in refusal(Others(), Lookahead(2, 1, 1))


@pytest.mark.parametrize(("text", "sizes"), [("5,4,4", (5, 4, 4)), (" 2, 1 ,0 ", (2, 1, 0))])
def test_sizes_are_parsed(text: str, sizes: tuple[int, int, int]) -> None:
    assert Lookahead.parse(text) == Lookahead(*sizes)


NONSENSE = [
    "", "5", "5,4", "5,4,4,4", "a,b,c", "5;4;4", "-5,4,4", "5,4,-1", "5.0,4,4", "1,4,4", "0,0,0",
    "5,4,", "\u0665,4,4", "5_0,4,4", "9" * 5000 + ",1,1",
]  # fmt: skip


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_one_sentence(text: str) -> None:
    with pytest.raises(HarnessError, match="^lookahead ") as caught:
        Lookahead.parse(text)
    assert "\n" not in str(caught.value)

"""Every split of a sequence into chunks and steps equals the oracle on the whole sequence."""

from __future__ import annotations

import random

import pytest
import torch

from harness.errors import HarnessError
from harness.generate.caches import Rows, Slots
from harness.generate.session import Session
from tests.generate.eager_llama import VOCAB, EagerModel, eager_model

INPUT_LEN, CONTEXT = 4, 15
MODES = ["single", "multifunction"]
RESIDUES_AND_ENDS = [*range(1, CONTEXT + 1)]


@pytest.fixture(params=MODES)
def model(request: pytest.FixtureRequest) -> EagerModel:
    return eager_model(request.param, INPUT_LEN, CONTEXT)


def sequence(length: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def assert_caches_equal_the_oracle(session: Session, model: EagerModel, tokens: list[int]) -> None:
    _, keys, values = model.oracle(torch.tensor(tokens))
    stored = min(len(tokens), session.layout.cache_len)
    for layer in range(session.layout.n_layers):
        assert session.keys(layer).shape[1] == stored
        assert_close(session.keys(layer), keys[layer][:, :stored])
        assert_close(session.values(layer), values[layer][:, :stored])


def follow(session: Session, model: EagerModel, tokens: list[int], chunks: list[int]) -> None:
    """Feed in chunks (1 is a decode step); compare every row of logits and the caches each time."""
    expected, _, _ = model.oracle(torch.tensor(tokens))
    fed = 0
    for size in chunks:
        phase = "decode" if size == 1 else "prefill"
        logits = session.feed(tokens[fed : fed + size], phase)
        fed += size
        assert_close(logits, expected[fed - len(logits) : fed])
        assert session.position == fed
        assert_caches_equal_the_oracle(session, model, tokens[:fed])
    assert fed == len(tokens)


@pytest.mark.parametrize("length", RESIDUES_AND_ENDS)
def test_prefill_then_decode_to_the_last_context_position(model: EagerModel, length: int) -> None:
    tokens = sequence(CONTEXT)
    expected, _, _ = model.oracle(torch.tensor(tokens))
    session = model.session()
    assert_close(session.prefill(tokens[:length]), expected[length - 1])
    assert_caches_equal_the_oracle(session, model, tokens[:length])
    for position in range(length, CONTEXT):
        assert_close(session.decode(tokens[position]), expected[position])
    assert session.room == 0
    assert_caches_equal_the_oracle(session, model, tokens)


@pytest.mark.parametrize("seed", range(12))
def test_random_splits_equal_the_oracle(model: EagerModel, seed: int) -> None:
    session, rng = model.session(), random.Random(seed)
    tokens, chunks, fed = sequence(CONTEXT, seed), [], 0
    while fed < CONTEXT:
        tail = max(0, fed - session.layout.cache_len)
        chunks.append(rng.randint(1, min(INPUT_LEN - tail, CONTEXT - fed)))
        fed += chunks[-1]
    follow(session, model, tokens, chunks)


def test_a_second_prompt_in_a_later_chunk_continues_the_first(model: EagerModel) -> None:
    tokens = sequence(13)
    expected, _, _ = model.oracle(torch.tensor(tokens))
    session = model.session()
    session.prefill(tokens[:6])
    assert_close(session.prefill(tokens[6:]), expected[-1])


def test_reset_forgets_the_sequence_before(model: EagerModel) -> None:
    session = model.session()
    session.prefill(sequence(CONTEXT, seed=3))
    session.reset()
    assert session.position == 0
    follow(session, model, sequence(9, seed=4), [4, 1, 3, 1])


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_the_exporter_sorted_by_text_are_paired_by_layer(mode: str) -> None:
    model = eager_model(mode, INPUT_LEN, CONTEXT, n_layers=12)
    session = model.session()
    assert session.layout.crossed_rows == 10
    follow(session, model, sequence(10), [4, 3, 1, 1, 1])


def test_every_logit_of_a_prompt_in_single_mode() -> None:
    model = eager_model("single", INPUT_LEN, CONTEXT)
    tokens = sequence(CONTEXT)
    assert_close(model.session().prefill_all(tokens), model.oracle(torch.tensor(tokens))[0])


def test_multifunction_mode_has_no_logits_of_every_token() -> None:
    with pytest.raises(HarnessError, match="last token only"):
        eager_model("multifunction", INPUT_LEN, CONTEXT).session().prefill_all([1])


def test_a_model_without_a_cache_feeds_its_whole_context_each_time() -> None:
    model = eager_model("single", INPUT_LEN, INPUT_LEN)
    session = model.session()
    follow(session, model, sequence(INPUT_LEN), [2, 1, 1])
    assert session.room == 0


def test_an_fp16_export_carried_wider_keeps_its_caches_wide() -> None:
    model = eager_model("multifunction", INPUT_LEN, CONTEXT, dtype=torch.float32)
    session = model.session()
    assert session.keys(0).dtype == torch.float16
    session.prefill([1, 2])
    assert session.keys(0).dtype == torch.float32


def test_buffers_are_written_in_place_and_calls_are_no_more_than_needed(model: EagerModel) -> None:
    session = model.session()
    session.prefill(sequence(6))
    caches = session._caches
    addresses = [cache.data_ptr() for cache in (*caches.keys, *caches.values)]
    session.decode(1)
    assert session.calls == 2 + 1
    session.reset()
    session.decode(1)
    assert addresses == [cache.data_ptr() for cache in (*caches.keys, *caches.values)]
    assert sum(method.calls for method in model.methods.values()) == 2 + 2
    assert session.calls == 1


def test_a_prompt_longer_than_the_context_is_refused(model: EagerModel) -> None:
    session = model.session()
    with pytest.raises(HarnessError, match="16 tokens is longer than the model's context of 15"):
        session.prefill(sequence(CONTEXT + 1))
    assert session.position == 0


def test_nothing_is_fed_past_the_last_position(model: EagerModel) -> None:
    session = model.session()
    session.prefill(sequence(CONTEXT))
    with pytest.raises(HarnessError, match="context of 15"):
        session.decode(1)


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_outside_the_vocabulary_is_refused(model: EagerModel, token: int) -> None:
    with pytest.raises(HarnessError, match=f"token {token} is outside"):
        model.session().decode(token)


def test_an_empty_prompt_is_refused(model: EagerModel) -> None:
    with pytest.raises(HarnessError, match="empty"):
        model.session().prefill([])


def test_a_chunk_longer_than_the_method_is_refused(model: EagerModel) -> None:
    with pytest.raises(HarnessError, match="takes 1 to 4 tokens"):
        model.session().feed(sequence(5), "prefill")


@pytest.mark.parametrize("back", range(CONTEXT + 1))
def test_a_sequence_that_is_rewound_goes_on_like_a_new_one(model: EagerModel, back: int) -> None:
    session, tokens, other = model.session(), sequence(CONTEXT, seed=5), sequence(CONTEXT, seed=6)
    session.prefill(tokens)
    session.rewind(back)
    joined = [*tokens[:back], *other[back:]]
    assert_caches_equal_the_oracle(session, model, joined[:back]) if back else None
    expected, _, _ = model.oracle(torch.tensor(joined))
    for position in range(back, CONTEXT):
        assert session.position == position
        assert_close(session.decode(joined[position]), expected[position])
    assert_caches_equal_the_oracle(session, model, joined)


@pytest.mark.parametrize("position", [-1, 7])
def test_a_session_can_only_be_rewound_to_where_it_was(model: EagerModel, position: int) -> None:
    session = model.session()
    session.prefill(sequence(6))
    with pytest.raises(HarnessError, match=f"position {position} is not from 0 to 6"):
        session.rewind(position)
    assert session.position == 6


def test_sessions_on_the_same_methods_do_not_disturb_each_other(model: EagerModel) -> None:
    layout = model.session().layout
    texts = {Session(model.methods, layout): sequence(CONTEXT, seed) for seed in (7, 8, 9)}
    for position in range(CONTEXT):
        for session, tokens in texts.items():
            expected, _, _ = model.oracle(torch.tensor(tokens[: position + 1]))
            assert_close(session.decode(tokens[position]), expected[-1])
    for session, tokens in texts.items():
        assert_caches_equal_the_oracle(session, model, tokens)


_CACHE_MASK, _WRITE = Slots.cache_mask, Slots.write


def mask_that_never_changes(slots: Slots, position: int, rows: Rows) -> torch.Tensor:
    """ExecuTorch 9101: the step that opens the mask has no effect."""
    return torch.full((slots.length,), -torch.inf)


def mask_one_short(slots: Slots, position: int, rows: Rows) -> torch.Tensor:
    newest = slots.held[0, 0] == slots.held.max()
    return _CACHE_MASK(slots, position, rows).masked_fill(newest, -torch.inf)


def padding_is_seen(slots: Slots, position: int, rows: Rows) -> torch.Tensor:
    """ExecuTorch 21384: the whole chunk is made visible, including its padding."""
    chunks = -(-int((slots.held >= 0).sum()) // INPUT_LEN)
    return torch.where(torch.arange(slots.length) < chunks * INPUT_LEN, 0.0, -torch.inf)


def cache_one_late(slots: Slots, cache: torch.Tensor, update: torch.Tensor, *where: object) -> None:
    _WRITE(slots, cache, update if cache is slots.held else update.roll(1, dims=2), *where)


BROKEN = [
    ("cache_mask", mask_that_never_changes),
    ("cache_mask", mask_one_short),
    ("cache_mask", padding_is_seen),
    ("write", cache_one_late),
]


@pytest.mark.parametrize(("name", "broken"), BROKEN)
def test_a_broken_session_differs_from_the_oracle(
    model: EagerModel, name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slots, name, broken)
    with pytest.raises(AssertionError, match="not close"):
        follow(model.session(), model, sequence(10), [4, 3, 1, 1, 1])


class ResetThatKeepsTheMask(Session):
    def reset(self) -> None:
        self._stored, self._tokens = 0, []


def test_a_reset_that_leaks_the_last_prompt_differs_from_the_oracle(model: EagerModel) -> None:
    session = ResetThatKeepsTheMask(model.methods, model.session().layout)
    session.prefill(sequence(9, seed=3))
    session.reset()
    with pytest.raises(AssertionError, match="not close"):
        follow(session, model, sequence(9, seed=4), [4, 1, 3, 1])


@pytest.mark.parametrize("mode", MODES)
def test_a_chunk_gives_the_logits_after_each_of_its_tokens(mode: str) -> None:
    model = eager_model(mode, 4, 24)
    tokens = [5, 3, 8, 1, 9, 2]
    session = model.session()
    found = torch.cat([session.feed_each(tokens[:4]), session.feed_each(tokens[4:])])
    assert_close(found, model.oracle(torch.tensor(tokens))[0])
    assert session.position == 6
    assert_close(session.decode(7), model.oracle(torch.tensor([*tokens, 7]))[0][-1])

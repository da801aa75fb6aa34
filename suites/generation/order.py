"""Drives sessions in any order and compares each step with the oracle.

hypothesis chooses the steps, and shortens those that fail: prompts, chunks, single tokens, resets,
rewinds, calls that must be refused, and another sequence on the same methods. After each step, the
new logits and all caches must be those of the whole sequence, computed at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from harness.checks.accuracy import Error, Trace, caches_error, error, tolerances
from harness.checks.parity import LIMITS, allowed_where_it_cancels
from harness.errors import HarnessError
from harness.generate.session import Session
from harness.models.stream import Passage
from harness.results import Figure, Finding
from harness.subject import Subject

KINDS = ("seeded", "id 0", "limits", "repeated")
_SEEDS = 4
_STEPS = 25  # of one example; hypothesis then starts anew, with other rules
_ORACLES = 8  # texts whose results are kept
_BLOCK = 32  # tokens


def text_of(kind: str, seed: int, length: int, vocab_size: int) -> list[int]:
    """Return seeded tokens, id 0 only, ids at the limits of 8 and 16 bits, or a few repeated."""
    drawn = torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
    tokens: list[int] = drawn.tolist()
    if kind == "id 0":
        return [0] * length
    if kind == "limits":
        ids = [token for token in LIMITS if token < vocab_size] + [vocab_size - 1]
        return [ids[token % len(ids)] for token in tokens]
    if kind == "repeated":
        return (tokens[: seed + 1] * length)[:length]
    return tokens


class Difference(Exception):
    """A step whose result is not the oracle's; the text has the steps that lead to it."""


class Track:
    """One session, the text that it is fed, and the oracle's result for the text."""

    def __init__(self, session: Session, oracle: Callable[[tuple[int, ...]], Trace]) -> None:
        self.session, self._oracle = session, oracle
        self.text: list[int] = []

    def write(self, text: list[int]) -> None:
        """Replace the text from the session's position on."""
        kept = self.text[: self.session.position]
        self.text = kept + text[len(kept) :]

    @property
    def judged(self) -> tuple[int, ...]:
        """The text up to the session's position, or further.

        Its lengths are powers of two times `_BLOCK`, so that few of them are computed.
        """
        length = _BLOCK
        while length < self.session.position:
            length *= 2
        return tuple(self.text[:length])

    def wanted(self) -> Trace:
        """Return the oracle's result for the text that is judged."""
        return self._oracle(self.judged)

    @property
    def longest(self) -> int:
        """The number of tokens that one call can take now."""
        layout = self.session.layout
        tail = max(0, self.session.position - layout.cache_len)
        return min(self.session.room, layout.prefill.input_len - tail)

    def next(self, count: int) -> list[int]:
        """Return the next tokens of the text."""
        return self.text[self.session.position :][:count]


class Drive:
    """Two sequences on one set of methods; counts steps and comparisons over all of their uses."""

    def __init__(self, subject: Subject, runtime: str) -> None:
        self._subject, self._runtime = subject, runtime
        self._session = subject.session(runtime)
        self.allowed = max(tolerances(subject, runtime).values())  # of a step's relative error
        self.steps = self.compared = 0
        self.worst = 0.0
        self.tracks: list[Track] = []
        self.trail: list[str] = []

        @lru_cache(maxsize=_ORACLES)
        def oracle(text: tuple[int, ...]) -> Trace:
            return Trace([], 0, *subject.reference(torch.tensor(text)))

        self._oracle = oracle

    def start(self) -> None:
        """Begin with two new sessions, so that one example does not depend on another."""
        kind, given = type(self._session), self._session
        self.tracks = [Track(kind(given.methods, given.layout), self._oracle) for _ in range(2)]
        self.trail = []
        for number, track in enumerate(self.tracks):
            track.write(self.text("seeded", number))

    def text(self, kind: str, seed: int) -> list[int]:
        """Return a text that fills the context."""
        layout = self._session.layout
        return text_of(kind, seed, layout.context, layout.vocab_size)

    def step(self, which: int, name: str, fed: int, act: Callable[[Session], torch.Tensor]) -> None:
        """Feed some tokens to a sequence; compare what it returns, its position and its caches."""
        self.trail.append(f"{name} to sequence {which}")
        track = self.tracks[which]
        position = track.session.position + fed
        try:
            logits = act(track.session)
        except HarnessError as refusal:
            raise self._difference(f"'{refusal}'") from None
        self.compare(track, position)
        rows = track.wanted().logits[position - len(logits) : position]
        self._compare("logits", error(logits, rows), track)

    def rewrite(
        self, which: int, text: tuple[str, int], position: int, act: Callable[[Session], None]
    ) -> None:
        """Let a sequence forget what is after a position; compare the rest, and change the text."""
        self.trail.append(
            f"a return to {position} and text {text[0]} {text[1]} in sequence {which}"
        )
        track = self.tracks[which]
        act(track.session)
        self.compare(track, position)
        track.write(self.text(*text))

    def compare(self, track: Track, position: int) -> None:
        """Compare the position and all caches of a sequence after a step."""
        self.steps += 1
        session = track.session
        if session.position != position:
            raise self._difference(f"the position is {session.position}, not {position},")
        layers = range(session.layout.n_layers)
        caches = [session.keys(i) for i in layers] + [session.values(i) for i in layers]
        if caches and caches[0].numel():
            wanted = track.wanted()
            expected = (*wanted.keys, *wanted.values)
            self._compare("caches", caches_error(caches, expected), track)

    def _compare(self, part: str, found: Error, track: Track) -> None:
        """Compare a part; more is allowed where the model itself amplifies roundings."""
        passage = Passage(track.judged, frozenset(range(len(track.judged))), caches=True)
        usual, relative = self.allowed, found.relative
        allowed = allowed_where_it_cancels(
            self._subject, self._runtime, passage, part, found, usual
        )
        if relative <= usual or not relative <= allowed:
            self.worst = max(self.worst, relative)
        if not relative <= allowed:
            raise self._difference(f"the {part} are off by {relative:.3g} (<= {allowed:.3g})")
        self.compared += found.count if allowed < math.inf else 0

    def _difference(self, what: str) -> Difference:
        return Difference(f"{what} after {len(self.trail)} steps: {', '.join(self.trail)}")

    def refused(self, which: int, name: str, tokens: list[int]) -> None:
        """Feed what must be refused: the position and the caches must stay as they are."""
        self.trail.append(f"{name} to sequence {which}")
        track = self.tracks[which]
        position = track.session.position
        try:
            track.session.prefill(tokens)
        except HarnessError:
            self.compare(track, position)
        else:
            raise self._difference("it is not refused")


def _sizes(largest: int) -> st.SearchStrategy[int]:
    """Return numbers of tokens, of which the largest comes up often."""
    return st.integers(1, largest) | st.just(largest)


WHICH = st.sampled_from((0, 0, 0, 1))
TEXTS = st.tuples(st.sampled_from(KINDS), st.integers(0, _SEEDS - 1))


class AnyOrder(RuleBasedStateMachine):
    """The steps; `which` is the sequence that does one."""

    def __init__(self, drive: Drive) -> None:
        super().__init__()
        self.drive = drive
        drive.start()

    @rule(which=WHICH, data=st.data())
    def prompt(self, which: int, data: st.DataObject) -> None:
        """Prefill tokens, in as many calls as that takes."""
        track = self.drive.tracks[which]
        if track.session.room:
            limit = min(track.session.room, data.draw(st.sampled_from((40, 10_000))))
            tokens = track.next(data.draw(_sizes(limit)))
            name = f"a prompt of {len(tokens)}"
            self.drive.step(which, name, len(tokens), lambda s: s.prefill(tokens)[None])

    @rule(which=WHICH, data=st.data())
    def chunk(self, which: int, data: st.DataObject) -> None:
        """Prefill tokens in one call."""
        track = self.drive.tracks[which]
        if track.session.room:
            tokens = track.next(data.draw(_sizes(track.longest)))
            name = f"a chunk of {len(tokens)}"
            self.drive.step(which, name, len(tokens), lambda s: s.feed(tokens, "prefill"))

    @rule(which=WHICH)
    def decode(self, which: int) -> None:
        """Decode one token."""
        track = self.drive.tracks[which]
        if track.session.room:
            (token,) = track.next(1)
            self.drive.step(which, "a single token", 1, lambda s: s.decode(token)[None])

    @rule(which=WHICH, text=TEXTS)
    def reset(self, which: int, text: tuple[str, int]) -> None:
        """Start again with another text."""
        self.drive.rewrite(which, text, 0, lambda session: session.reset())

    @rule(which=WHICH, text=TEXTS, data=st.data())
    def rewind(self, which: int, text: tuple[str, int], data: st.DataObject) -> None:
        """Forget the last tokens, and go on with another text."""
        position = data.draw(st.integers(0, self.drive.tracks[which].session.position))
        self.drive.rewrite(which, text, position, lambda session: session.rewind(position))

    @rule(which=WHICH)
    def too_long(self, which: int) -> None:
        """Feed one token more than there is room for."""
        session = self.drive.tracks[which].session
        self.drive.refused(which, "a prompt that is too long", [0] * (session.room + 1))

    @rule(which=WHICH, negative=st.booleans())
    def unknown_id(self, which: int, negative: bool) -> None:
        """Feed an id that the vocabulary does not have."""
        unknown = -1 if negative else self.drive.tracks[which].session.layout.vocab_size
        self.drive.refused(which, f"an unknown id, {unknown}", [unknown])


def any_order(subject: Subject, runtime: str, steps: int) -> Iterator[Finding]:
    """Drive a subject for at least as many steps; each must give the oracle's logits and caches."""
    drive = Drive(subject, runtime)
    failure = ""
    for seed in range(steps):  # a step that finds no room is not counted
        if drive.steps >= steps or failure:
            break
        machine = hypothesis.seed(seed)(lambda: AnyOrder(drive))
        try:
            run_state_machine_as_test(
                machine,  # type: ignore[arg-type]  # a function that returns one will do
                settings=_settings(steps - drive.steps),
            )
        except Difference as difference:
            failure = str(difference)
    yield Finding(
        "any-order",
        f"{drive.steps} steps",
        ok=not failure,
        message=failure,
        comparisons=drive.compared,
        figures={"worst step error": Figure(drive.worst, "", drive.allowed)},
        facts={"steps": drive.steps},
    )


def _settings(steps: int) -> settings:
    """Return settings for about so many steps; those without room do nothing."""
    return settings(
        max_examples=-(-steps // _STEPS),
        stateful_step_count=_STEPS,
        phases=(Phase.generate, Phase.shrink),
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )

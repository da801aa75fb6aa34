"""Judges what a runner did, place by place, by the calls that it made.

The places, in the order in which a fault reaches them:

| place | what must hold |
|---|---|
| `prompt` | its tokenizer gives the ids that ours gives |
| `ids` | each call gets the next ids of prompt and text, and no call comes too much |
| `padding` | the cache holds zeros beyond the position |
| `cache` | each position of the cache has the keys and values that its own call returned |
| `mask` | each row sees the cache up to the position, and the input up to itself |
| `positions` | each row is rotated by the row of the RoPE tables at its position |
| `finite` | no logit is NaN or infinite |
| `acceptance` | lookahead accepts a branch only if the model's own choices confirm it |
| `logits` | each token is the largest logit of the last valid row |
| `status` | the script ends with exit status 0 |
| `stop` | the text ends at the first stop token, or after the tokens that were asked for |
| `tokens` | the tokens are our generator's, and the oracle's where its margin allows |

A place is judged if those before it hold: the first that fails is the cause. The calls of a script
that fails are judged, too, up to its failure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.generate.layout import ModelLayout
from harness.generate.phase import LOGITS_OUTPUT, TOKENS_INPUT, Phase

PLACES = (
    *("prompt", "ids", "padding", "cache", "mask", "positions", "finite", "acceptance", "logits"),
    *("status", "stop", "tokens"),
)
_HIDDEN = -1e4  # a mask's value from which on exp() of it is 0 in fp16
_NOT_FINITE = "are NaN or infinite"  # of the stand-in's warning
_ROTATION = 4e-3  # two roundings of a cosine to fp16 differ by less, two positions by more


@dataclass(frozen=True)
class Run:
    """What a script did: its exit status, its texts, and its record.

    `problem` is the last line of standard error if the status is not 0.
    """

    status: int
    problem: str
    stdout: str
    stderr: str
    seconds: float
    prompts: list[list[int]]
    printed: list[int]
    calls: list[dict[str, Any]]


@dataclass(frozen=True)
class Wanted:
    """What a run must do: the ids of its prompt, and the tokens of our generator after them.

    `tokens` ends with the stop token, if there is one. `n` is the number of tokens asked for;
    lookahead may give more (the scenario `lookahead-count` is about that).
    """

    prompt: list[int]
    tokens: list[int]
    n: int
    stops: frozenset[int]
    lookahead: bool = False

    @property
    def text(self) -> list[int]:
        """The tokens that a runner prints."""
        return [token for token in self.tokens if token not in self.stops]


class Wrong(Exception):
    """A place that is wrong, in a sentence."""

    def __init__(self, place: str, sentence: str) -> None:
        super().__init__(sentence)
        self.place = place


@dataclass
class Judged:
    """The places that were compared, how often, and the one that is wrong."""

    counts: dict[str, int] = field(default_factory=dict)
    wrong: Wrong | None = None

    def check(self, place: str, holds: bool | torch.Tensor, sentence: str) -> None:
        """Count a comparison; raise Wrong unless it holds."""
        self.counts[place] = self.counts.get(place, 0) + 1
        if not bool(holds):
            raise Wrong(place, sentence)


def judge(run: Run, wanted: Wanted, layout: ModelLayout) -> Judged:
    """Return the verdict on a run with greedy choices, of one prompt."""
    judged, ended = Judged(), f"exit status {run.status}: {run.problem}"
    try:
        judged.check("status", bool(run.prompts) or run.status == 0, ended)
        judged.check(
            "prompt",
            run.prompts == [wanted.prompt],
            f"the tokenizer gave {_brief(run.prompts[0] if run.prompts else [])}, "
            f"not {_brief(wanted.prompt)}",
        )
        walk = _Walk(judged, run, wanted, layout)
        for number, call in enumerate(run.calls):
            walk.step(number, call)
        judged.check("status", run.status == 0, ended)
        walk.end()
    except Wrong as wrong:
        judged.wrong = wrong
    return judged


class _Walk:
    """Follows the calls of a run with a model of what caches and position must be."""

    def __init__(self, judged: Judged, run: Run, wanted: Wanted, layout: ModelLayout) -> None:
        self._check = judged.check
        self._run = run
        self._wanted = wanted
        self._layout = layout
        self._fed = [*wanted.prompt, *run.printed]
        self._position = 0  # of the next token
        self._emitted = 0  # tokens that the calls have chosen
        self._last: int | None = None
        shape = (layout.n_kv_heads, layout.context + layout.prefill.input_len, layout.head_dim)
        self._keys = [torch.zeros(shape) for _ in range(layout.n_layers)]
        self._values = [torch.zeros(shape) for _ in range(layout.n_layers)]

    def step(self, number: int, call: dict[str, Any]) -> None:
        phase = self._phase(call["method"])
        left = len(self._wanted.prompt) - self._position
        count = min(left, phase.input_len) if left > 0 else 1
        where = f"call {number} ('{call['method']}', position {self._position})"
        self._ids(where, call, phase, count)
        self._caches(where, call["inputs"], phase)
        self._mask(where, call["inputs"][phase.masks[phase.cache_len]], phase, count)
        self._rotations(where, call["inputs"], phase, count)
        rows = _rows(call["outputs"][LOGITS_OUTPUT], phase, count)
        finite = torch.isfinite(rows).all()
        self._check("finite", finite, f"{where}: its logits are NaN or infinite")
        if phase.last_valid_token_pos is not None:
            given = int(call["inputs"][phase.last_valid_token_pos])
            sentence = f"{where}: last_valid_token_pos is {given}, not {count - 1}"
            self._check("logits", given == count - 1, sentence)
        self._store(call["outputs"], phase, 0, count)
        if left > count:
            return
        self._emit(where, int(rows[-1].argmax()), rows[-1])
        if self._wanted.lookahead and left <= 0:
            self._accept(where, call, phase)

    def _phase(self, method: str) -> Phase:
        phases = (self._layout.prefill, self._layout.decode)
        return next((phase for phase in phases if phase.method == method), phases[0])

    def _ids(self, where: str, call: dict[str, Any], phase: Phase, count: int) -> None:
        given = call["inputs"][TOKENS_INPUT][0, :count].tolist()
        expected = self._fed[self._position : self._position + count]
        if self._position >= len(self._fed) and self._last in self._wanted.stops:
            self._check("stop", False, f"{where}: it goes on after stop token {self._last}")
        sentence = f"{where}: it gets {_brief(given)}, not {_brief(expected)}"
        self._check("ids", given == expected, sentence)
        if self._position < len(self._wanted.prompt):
            name = self._layout.prefill.method
            self._check(
                "ids", call["method"] == name, f"{where}: the prompt is not fed to '{name}'"
            )

    def _caches(self, where: str, inputs: Sequence[Any], phase: Phase) -> None:
        stored = min(self._position, phase.cache_len)
        for layer, cache in enumerate(phase.caches):
            for what, index, rows in (
                ("keys", cache.k_in, self._keys[layer]),
                ("values", cache.v_in, self._values[layer]),
            ):
                given = inputs[index][0].float()
                beyond = given[:, stored:].count_nonzero()
                sentence = (
                    f"{where}: the {what} of layer {layer} hold {int(beyond)} numbers beyond "
                    f"position {stored - 1}"
                )
                self._check("padding", beyond == 0, sentence)
                wrong = (given[:, :stored] != rows[:, :stored]).any(dim=(0, 2)).nonzero().flatten()
                sentence = f"{where}: the {what} of layer {layer} are wrong at {wrong.tolist()[:5]}"
                self._check("cache", not len(wrong), sentence)

    def _mask(self, where: str, mask: torch.Tensor, phase: Phase, count: int) -> None:
        seen = mask[0, :count] > _HIDDEN
        expected = torch.zeros_like(seen)
        expected[:, : min(self._position, phase.cache_len)] = True
        expected[:, phase.cache_len : phase.cache_len + count].copy_(
            torch.ones(count, count, dtype=torch.bool).tril()
        )
        wrong = (seen != expected).nonzero().tolist()
        at = f"row {wrong[0][0]}, column {wrong[0][1]}" if wrong else ""
        self._check("mask", not wrong, f"{where}: the mask is wrong at {at}")

    def _rotations(self, where: str, inputs: Sequence[Any], phase: Phase, count: int) -> None:
        layout, at = self._layout, slice(self._position, self._position + count)
        for name, index, table in (
            ("cosines", phase.cos, layout.freqs_cos),
            ("sines", phase.sin, layout.freqs_sin),
        ):
            given, rows = inputs[index][:count].double(), table[at].double()
            fits = given.shape == rows.shape and bool(((given - rows).abs() <= _ROTATION).all())
            self._check("positions", fits, f"{where}: the {name} are not those of its positions")

    def _store(self, outputs: Sequence[Any], phase: Phase, first: int, count: int) -> None:
        """Store the updates of rows `first` to `first + count` at the position, and move on."""
        at = slice(self._position, self._position + count)
        for layer, cache in enumerate(phase.caches):
            self._keys[layer][:, at] = outputs[cache.k_out][0, :, first : first + count].float()
            self._values[layer][:, at] = outputs[cache.v_out][0, :, first : first + count].float()
        self._position += count

    def _emit(self, where: str, token: int, row: torch.Tensor) -> None:
        self._last, index = token, self._emitted
        self._emitted += 1
        if index >= len(self._run.printed):
            if self._run.status != 0 and token not in self._wanted.stops:
                self._fed.append(token)  # a script that fails does not print what it has chosen
            return
        printed = self._run.printed[index]
        best = printed < len(row) and row[printed] == row.max()
        self._check("logits", best, f"{where}: it chose {printed}, the largest logit is {token}'s")

    def _accept(self, where: str, call: dict[str, Any], phase: Phase) -> None:
        """Follow the branch that the runner accepted: the text as far as the next call's token."""
        following = self._run.calls[self._number(call) + 1 :]
        if not following:
            return
        visible = int(
            (
                following[0]["inputs"][phase.masks[phase.cache_len]][0, 0, : phase.cache_len]
                > _HIDDEN
            ).sum()
        )
        count = visible - self._position
        if count <= 0:
            return
        tokens = call["inputs"][TOKENS_INPUT][0].tolist()
        chosen = call["outputs"][LOGITS_OUTPUT][0].argmax(-1).tolist()
        text = self._fed[self._position : self._position + count]
        branches = [
            first
            for first in range(1, phase.input_len - count + 1)
            if tokens[first : first + count] == text
        ]
        after = self._fed[self._position + 1 : self._position + count + 1]
        sound = [b for b in branches if chosen[b : b + count][: len(after)] == after]
        sentence = f"{where}: it accepted {_brief(text)}, which no verified branch confirms"
        self._check("acceptance", bool(sound), sentence)
        given = following[0]["inputs"][phase.caches[0].k_in][0, :, self._position : visible]
        update = call["outputs"][phase.caches[0].k_out][0]
        used = next((b for b in sound if torch.equal(given, update[:, b : b + count])), sound[0])
        self._store(call["outputs"], phase, used, count)
        self._emitted += count
        self._last = after[-1] if len(after) == count else chosen[used + count - 1]

    def _number(self, call: dict[str, Any]) -> int:
        return next(number for number, one in enumerate(self._run.calls) if one is call)

    def end(self) -> None:
        """Check that the calls fed the whole prompt, and that the text ends where it must."""
        wanted, printed = self._wanted, self._run.printed
        told = [line for line in self._run.stderr.splitlines() if _NOT_FINITE in line]
        self._check("finite", not told, "; ".join(told))
        fed = self._position >= len(wanted.prompt)
        self._check("ids", fed, f"only {self._position} of {len(wanted.prompt)} tokens were fed")
        at = next((i for i, token in enumerate(printed) if token in wanted.stops), None)
        self._check("stop", at is None, f"it printed stop token {printed[at or 0]} and went on")
        sentence = f"it printed {len(printed)} tokens; {wanted.n} were asked for"
        self._check("stop", wanted.lookahead or len(printed) <= wanted.n, sentence)
        if len(printed) < wanted.n:
            sentence = f"it ended after {len(printed)} of {wanted.n} tokens without a stop token"
            following = wanted.tokens[len(printed) :][: int(wanted.lookahead)]  # of a branch
            stopped = self._last in wanted.stops or bool(wanted.stops & set(following))
            self._check("stop", stopped, sentence)
        text = wanted.text[: len(printed)] if wanted.lookahead else wanted.text
        sentence = f"it printed {_brief(printed)}; our generator gives {_brief(text)}"
        self._check("tokens", printed == text, sentence)


def _rows(logits: torch.Tensor, phase: Phase, count: int) -> torch.Tensor:
    """Return the logits [rows, vocab] of a call's valid rows, or of the last one."""
    return logits[0, :count] if phase.full_logits else logits.reshape(1, -1)


def _brief(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:12]))
    return f"[{shown}, ... {len(ids)} ids]" if len(ids) > 12 else f"[{shown}]"


def merged(verdicts: Iterator[tuple[str, Judged]]) -> Iterator[tuple[str, int, str]]:
    """Yield each place with the comparisons of all runs, and the first sentence that is wrong."""
    counts: dict[str, int] = {}
    wrong: dict[str, list[str]] = {}
    for name, judged in verdicts:
        for place, count in judged.counts.items():
            counts[place] = counts.get(place, 0) + count
        if judged.wrong is not None:
            wrong.setdefault(judged.wrong.place, []).append(f"{name}: {judged.wrong}")
    for place in PLACES:
        sentences = wrong.get(place, [])
        more = f" (and {len(sentences) - 1} runs more)" if len(sentences) > 1 else ""
        if place in counts:
            yield place, counts[place], sentences[0] + more if sentences else ""

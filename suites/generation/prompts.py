"""Continues twenty prompts of every kind: greedy, by lookahead, and beside the oracle.

Each text is held against the oracle, which reads it whole. Two texts of one prompt are therefore
equal up to the first token that the oracle does not decide, whichever mode or decoding made them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from harness.checks import Check
from harness.checks.accuracy import Agreement, tolerances, top_agreement
from harness.generate import generate
from harness.generate.lookahead import Lookahead
from harness.generate.tokenizer import Tokenizer, load_tokenizer
from harness.results import Figure, Finding
from harness.subject import Subject, language_model

NEW_TOKENS = 64
SHARE = 0.75  # of greedy's calls, which lookahead may need on a text that repeats itself
_LOOKAHEADS = (Lookahead(5, 4, 4), Lookahead(3, 4, 4), Lookahead(3, 2, 2))
_LONG = (
    "The museum opens at nine, and the tram stops in front of its door. Inside, a guide explains "
    "how the old mill worked: water fell on the wheel, the wheel turned the stone, and the stone "
    "ground the corn of eleven villages. Children may try a small wheel of their own in the yard. "
)
TEXTS = {
    "a question": "What is the capital of France?",
    "a story": "The lighthouse keeper had not spoken to anyone since October, when",
    "code": "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return",
    "a list": "Shopping list:\n1. apples\n2. bread\n3. butter\n4.",
    "JSON": '{"name": "Ada", "born": 1815, "languages": ["English", "French"], "friends": [',
    "French": "Chaque matin, le boulanger ouvre sa porte à six heures et",
    "German": "Über den Wolken fliegt ein großer Vogel, und die Kinder",
    "Russian": "Вчера вечером мы долго говорили про море, и",
    "Chinese": "今天天气很好,我们一起去公园",
    "Arabic": "في الصباح الباكر ذهب الولد إلى",
    "emoji": "🙂 👍🏽 🚀 👩‍👩‍👧 🇫🇷 and then",
    "digits": "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 3.14159265, 2.71828, 007,",
    "punctuation": "?! ... --- ;; ((([[{}]]))) <> // \\\\ ~~ ^^ @@ ## $$ %% && ** ''\" \t\n\n",
    "a repeated word": "the " * 24,
    "repeated sentences": "The dog sees the cat. The cat sees the mouse. " * 4,
}
REPETITIVE = ("a repeated word", "repeated sentences")


def prompts_of(tokenizer: Tokenizer, longest: int) -> dict[str, list[int]]:
    """Return twenty prompts of 1 to `longest` ids: the texts, one id, id 0, and a long text."""
    ids = {name: tokenizer.encode(text) for name, text in TEXTS.items()}
    question, long = (
        ids["a question"],
        tokenizer.encode(_LONG * (1 + longest // len(_LONG.split()))),
    )
    ids |= {
        "one token": question[-1:],
        "id 0 first": [0, *question],
        "id 0 last": [*question, 0],
        "half of the longest": long[: longest // 2],
        "the longest": long[:longest],
    }
    return {name: prompt[:longest] for name, prompt in ids.items()}


def prompts(tokenizer: Path) -> Check[Subject]:
    """Return a check of the tokens after twenty prompts; HarnessError for a bad tokenizer."""
    loaded = load_tokenizer(tokenizer)

    def find(subject: Subject, runtime: str) -> Iterator[Finding]:
        given = _Prompts(subject, runtime)
        longest = given.layout.context - given.count
        for name, prompt in prompts_of(loaded, longest).items():
            yield from given.findings(name, prompt)
        yield from given.totals()

    return Check("prompts", find, (language_model,), takes_runtime=True)


class _Prompts:
    """Continues prompts on one subject, and counts tokens and calls over all of them."""

    def __init__(self, subject: Subject, runtime: str) -> None:
        self._subject, self._runtime = subject, runtime
        self.layout = subject.session(runtime).layout
        self.count = min(NEW_TOKENS, self.layout.context // 2)
        fits = (one for one in _LOOKAHEADS if one.rows <= self.layout.prefill.input_len)
        self._lookahead = next(fits, None) if self.layout.full_logits else None
        self._allowed = max(tolerances(subject, runtime).values())
        self._chosen: list[int] = []
        self._ties = 0
        self._calls = {"greedy": 0, "lookahead": 0}  # on the texts that repeat themselves

    def findings(self, name: str, prompt: list[int]) -> Iterator[Finding]:
        """Compare greedy's tokens with the oracle's, and lookahead's with both."""
        greedy, calls = self._continued(prompt, None)
        found = self._against_the_oracle(prompt, greedy)
        self._chosen += greedy
        self._ties += found.rows - found.decided
        yield _finding(name, found)
        if self._lookahead is None:
            return
        made, fewer = self._continued(prompt, self._lookahead)
        where = f"{name}, lookahead {self._lookahead}"
        if made == greedy:
            yield Finding("prompts", where, comparisons=len(made))
        else:  # a tie may be the reason
            yield _finding(where, self._against_the_oracle(prompt, made), f"{made}, not {greedy}")
        if name in REPETITIVE:
            self._calls["greedy"] += calls
            self._calls["lookahead"] += fewer

    def totals(self) -> Iterator[Finding]:
        """Yield what the prompts have in sum, and lookahead's share of greedy's calls."""
        facts = {"tokens": len(self._chosen), "ties": self._ties}
        facts["distinct tokens"] = len(set(self._chosen))
        yield Finding("prompts", "all", facts=facts)
        if self._lookahead is not None:
            share = Figure(self._calls["lookahead"] / self._calls["greedy"], "", SHARE)
            yield Finding("prompts", "repetitive", figures={"share of greedy's calls": share})

    def _continued(self, prompt: list[int], lookahead: Lookahead | None) -> tuple[list[int], int]:
        """Return the tokens after a prompt, stop tokens too, and the number of calls."""
        session = self._subject.session(self._runtime)
        made = generate(session, prompt, self.count, lookahead=lookahead)
        return [step.token for step in made], session.calls

    def _against_the_oracle(self, prompt: list[int], made: list[int]) -> Agreement:
        logits, _, _ = self._subject.reference(torch.tensor(prompt + made[:-1]))
        wanted = logits[len(prompt) - 1 :]
        bound = self._allowed * float(wanted.abs().max())
        return top_agreement(torch.tensor(made), wanted, bound)


def _finding(where: str, found: Agreement, tokens: str = "") -> Finding:
    return Finding(
        "prompts",
        where,
        ok=found.agreed == found.decided,
        message=f"{found.decided - found.agreed} of {found.decided} tokens are not the oracle's "
        f"although its margin exceeds the error bound{': ' if tokens else ''}{tokens}",
        comparisons=found.decided,
    )

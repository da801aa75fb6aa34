"""Token ids to text as they come: whole characters only, spaces as in the whole text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns tokens into pieces of text whose sum is the text of all tokens.

    A character may take several tokens, and a tokenizer may drop a space in front of the first
    token that it decodes. So each piece is the difference between two decodings that start at the
    same earlier token, and is held back while it ends inside a character. `before` is what
    precedes the first token: the end of the prompt.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._known = list(before[-8:])  # enough for a character and a space before it
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes, empty while it ends inside a character."""
        self._pending.append(token)
        text = self._new_text()
        if text.endswith(REPLACEMENT):
            return ""
        if text:
            self._known, self._pending = self._pending, []
        return text

    def end(self) -> str:
        """What was held back, with U+FFFD for a character that was never completed."""
        text = self._new_text()
        self._pending = []
        return text

    def _new_text(self) -> str:
        before = self._decode(self._known)
        return self._decode([*self._known, *self._pending])[len(before) :]

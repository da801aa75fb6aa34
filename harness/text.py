"""Text made safe and short enough for a terminal, for XML and for a row of a table."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters other than tab and line end, marks that turn the direction of writing, and
# halves of characters. The first two drive a terminal, and no encoding holds the last.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

ELLIPSIS = "…"


def printable(text: str, keep: str = "") -> str:
    r"""Text with every character that is not printable spelled as an escape (`\x1b`).

    Control characters could drive a terminal, and XML cannot hold them nor lone surrogates.
    Characters in `keep` are left alone.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def harmless(text: str) -> str:
    r"""Text of several lines with every character that could drive a terminal as an escape.

    Unlike `printable`, it leaves all other characters alone, such as those that join emoji.
    """
    return _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Printable text with every run of white space made one space."""
    return printable(" ".join(text.split()))


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, which has an `s` unless the count is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names with commas between them; of many, the first few and how many more."""
    more = [f"and {len(names) - most:,} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def clip(text: str, width: int) -> str:
    """One line of at most `width` characters; what was cut shows as an ellipsis."""
    text = one_line(text)
    return text if len(text) <= width else text[: width - 1] + ELLIPSIS

"""Text made safe and short enough for a terminal, for XML and for a row of a table."""

from __future__ import annotations

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


def one_line(text: str) -> str:
    """Printable text with every run of white space made one space."""
    return printable(" ".join(text.split()))


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, which has an `s` unless the count is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def clip(text: str, width: int) -> str:
    """One line of at most `width` characters; what was cut shows as an ellipsis."""
    text = one_line(text)
    return text if len(text) <= width else text[: width - 1] + ELLIPSIS

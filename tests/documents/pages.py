"""Console blocks of the project's pages: how they are found, run, and compared with what they show.

A block that is fenced as `console` shows commands after `$ `, each with its output; one that is
fenced as `sh` is a script without output. A comment on the line before, `<!-- run: ... -->`, has
clauses with semicolons between them:

    never: REASON     not run, and why
    long              run by `nox -s documents` only
    exit N            the status of the last command, or several, as in `0 or 4`; by default 0
    with NAME ...     what the block takes for granted: see `given`

The blocks of a page run in order, in one folder.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")))

_BLOCK = re.compile(
    r"(?:^<!-- run: (?P<comment>(?:(?!-->).)*?) -->\n)?"
    r"^(?P<indent> *)```(?P<kind>console|sh)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_MEASURED = r"\d[\d,]*\.\d+(?:e[-+]?\d+)?|\d+e[-+]?\d+"
_TOKEN = re.compile(rf"(?P<any>\.\.\.|…)|(?P<number>{_MEASURED})")
_TIME = re.compile(r" ?(?:s|ms|tok/s|tokens/s|ms/token)\b")
_PROGRESS = re.compile(r"^ *\d+\.\d s  .*\n", re.MULTILINE)  # of a command on a busy machine
FACTOR = 30
"""How far a number with a decimal point, a measured one, may be from the page's; not a time."""


@dataclass(frozen=True)
class Step:
    """A command of a block, and the output that the page shows."""

    command: str
    output: str


@dataclass(frozen=True)
class Block:
    """A block of commands: where it begins, and what its comment says."""

    page: str
    line: int
    steps: tuple[Step, ...]
    never: str = ""
    long: bool = False
    statuses: tuple[int, ...] = (0,)
    given: tuple[str, ...] = ()


def blocks(page: str, text: str) -> Iterator[Block]:
    """Yield the blocks of a page; raise ValueError for a comment that is wrong or has no block."""
    used = {found.start() for found in _BLOCK.finditer(text) if found["comment"] is not None}
    for comment in re.finditer("^<!-- run:", text, re.MULTILINE):
        if comment.start() not in used:
            line = text[: comment.start()].count("\n") + 1
            raise ValueError(f"{page}:{line}: no block follows the comment on the next line")
    for found in _BLOCK.finditer(text):
        line = text[: found.start("kind")].count("\n") + 1
        lines = [
            line.removeprefix(found["indent"]) for line in found["text"].splitlines(keepends=True)
        ]
        steps = _steps("".join(lines)) if found["kind"] == "console" else [_script(lines)]
        yield Block(page, line, tuple(steps), **_clauses(found["comment"] or "", page, line))


def _steps(text: str) -> Iterator[Step]:
    before, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    if before.strip():
        raise ValueError(f"a block begins with {before!r}, not with a command after '$ '")
    for part in parts:
        command = re.match(r"(?:.*\\\n)*.*\n", part)
        assert command is not None, part
        yield Step(command[0].rstrip("\n"), part[command.end() :])


def _script(lines: list[str]) -> Step:
    return Step("set -e\n" + "".join(lines), "...\n")


def _clauses(comment: str, page: str, line: int) -> dict[str, object]:
    found: dict[str, object] = {}
    while comment:
        if reason := re.fullmatch(r"never: (.+)", comment):
            return {**found, "never": reason[1]}
        clause, _, comment = (part.strip() for part in comment.partition(";"))
        word, _, rest = clause.partition(" ")
        if clause == "long":
            found["long"] = True
        elif word == "exit" and re.fullmatch(r"\d+(?: or \d+)*", rest):
            found["statuses"] = tuple(map(int, rest.split(" or ")))
        elif word == "with" and rest:
            found["given"] = tuple(rest.split())
        else:
            raise ValueError(f"{page}:{line}: '{clause}' is no clause of a block's comment")
    return found


def run(block: Block, folder: Path, variables: Mapping[str, str], seconds: float) -> None:
    """Run a block's commands; raise AssertionError for another status or another output."""
    for step in block.steps:
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=folder,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        where = f"{block.page}:{block.line}: $ {step.command}"
        allowed = block.statuses if step is block.steps[-1] else (0,)
        assert done.returncode in allowed, f"{where}\nexit {done.returncode}\n{done.stdout[-4000:]}"
        problem = difference(step.output, done.stdout)
        assert not problem, f"{where}\n{problem}"


def difference(shown: str, printed: str) -> str:
    """Return how what was printed differs from what a page shows; "" when it does not.

    A line `...` is any lines, and `...` or `…` within a line any text. A number with a decimal
    point is measured, and may be off by `FACTOR`; a time by any factor. The width of a table's
    columns does not count.
    """
    if not shown:  # nothing is shown of it
        return ""
    shown, printed = _plain(shown), _plain(_PROGRESS.sub("", printed))
    found = re.fullmatch(_pattern(shown), printed)
    if found is None:
        return f"the page shows\n{shown}\nprinted was\n{printed[-6000:]}"
    numbers = [token for token in _TOKEN.finditer(shown) if token["number"]]
    for token, have in zip(numbers, found.groups(), strict=True):
        if _TIME.match(shown, token.end()):
            continue
        want = token["number"]
        low, high = sorted(abs(float(text.replace(",", ""))) for text in (want, have))
        if high > FACTOR * low > 0:
            return f"the page shows {want}, printed was {have}"
    return ""


def _plain(text: str) -> str:
    rows = (re.sub(r"-{3,}(\s+-{3,})*", "---", row) for row in text.rstrip().splitlines())
    return "".join(" ".join(row.split()) + "\n" for row in rows)


def _pattern(shown: str) -> str:
    lines = []
    for line in shown.splitlines():
        if line == "...":
            lines.append(r"(?:.*\n)*?")
            continue
        parts, end = [], 0
        for token in _TOKEN.finditer(line):
            parts.append(re.escape(line[end : token.start()]))
            parts.append(".*" if token["any"] else f"({_MEASURED})")
            end = token.end()
        lines.append("".join(parts) + re.escape(line[end:]) + r"\n")
    return "".join(lines)

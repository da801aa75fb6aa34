"""The prompts of `harness run` in files: a line each, and in a `.jsonl` file a JSON text each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import NamedTuple

from harness.errors import HarnessError
from harness.text import listed, printable


class Prompt(NamedTuple):
    """A prompt, and the file and line that it comes from; "" for one that was typed."""

    text: str
    source: str = ""


def read_prompts(files: list[str]) -> Iterator[Prompt]:
    """Yield the prompts of files; say which lines are blank and have none."""
    from harness.generate.tokenizer import read_text

    for file in files:
        lines = read_text(file, "a file of prompts").split("\n")
        lines = lines if lines[-1].strip() else lines[:-1]  # what follows the last line break
        blank = [str(number) for number, line in enumerate(lines, 1) if not line.strip()]
        if len(blank) == len(lines):
            raise HarnessError(f"{file}: it has no prompt: write one in each line")
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}, line {number}"
                plain = not file.endswith(".jsonl")
                yield Prompt(line.rstrip("\r") if plain else _json_prompt(line, where), where)
        if blank:
            which = f"lines {listed(blank)} are" if len(blank) > 1 else f"line {blank[0]} is"
            print(
                f"harness run: note: {printable(file)}: {which} blank: no prompt", file=sys.stderr
            )


def _json_prompt(line: str, where: str) -> str:
    try:
        match json.loads(line):
            case str(text) | {"prompt": str(text)} if text:
                return text
    except (ValueError, RecursionError) as error:
        raise HarnessError(f"{where}: not JSON: {error}") from None
    raise HarnessError(f'{where}: write a JSON string or {{"prompt": "..."}}, which is not empty')

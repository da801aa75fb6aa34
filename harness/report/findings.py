"""Findings as text: code, sentence, place, evidence and remedy, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness.results import Case, RecordedFinding
from harness.text import clip

_MAX_PLACES = 5
_MAX_EVIDENCE = 2000
_INDENT = " " * 6


def finding_lines(cases: Iterable[Case], warnings: bool) -> Iterator[str]:
    """Yield the lines of all findings of cases, or of all warnings, each with its remedy."""
    for case in cases:
        found = [one for one in case.findings if one.warning == warnings]
        if case.outcome in ("skip", "known") or not (found or not (warnings or case.passes)):
            continue
        where = "" if case.runtime == "-" else f" on {case.runtime}"
        if not found:  # a bug of the harness, or a known defect that no longer shows
            yield f"{case.outcome:5} {case.check}{where}: {case.reason}"
        for one in found:
            outcome = "warn" if warnings else case.outcome
            parts = finding_parts(one)
            yield f"{outcome:5} {case.check}{where}: {parts.pop(one.code, one.sentence)}"
            yield from (f"{_INDENT}{name:8}  {text}" for name, text in parts.items())


def finding_parts(found: RecordedFinding) -> dict[str, str]:
    """Return what there is to say about a finding, by name: its code, place, evidence, remedy."""
    if not found.meaning:
        return {}
    places = _places(found)
    return {
        found.code: f"{found.code} {found.meaning}",
        **({"place": places} if places else {}),
        "evidence": clip(found.evidence, _MAX_EVIDENCE),
        "remedy": found.remedy,
    }


def _places(found: RecordedFinding) -> str:
    """Return the places of a finding; of many, their number, the first few, and how many more."""
    text = "; ".join(list(filter(None, (found.place, *found.others)))[:_MAX_PLACES])
    if found.count > 1:
        text = f"{found.count} places: {text}"
    if found.count > _MAX_PLACES:
        text += f"; and {found.count - _MAX_PLACES} more"
    return text


def codes_of(cases: Iterable[Case]) -> list[str]:
    """Return the codes that make cases fail, each once."""
    bad = [case for case in cases if not case.passes]
    codes = (one.code for case in bad for one in case.findings if not one.warning)
    return list(dict.fromkeys(filter(None, codes)))

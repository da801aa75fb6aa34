"""The commands that a page shows of a case: to repeat it, and to find the operation at fault.

They are quoted for a shell. A run about one artifact has recorded what its user typed; a word in
capitals is one that a stream does not hold, such as a path of an older one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.results import NOT_APPLICABLE, Case, Header

_SESSIONS = ("operators", "upstream", "installation", "large")
_BISECT = re.compile(r"`harness bisect(?: (--\w+))?`")
_MEASURED = ("sizes", "latency", "memory")  # which `harness check --measure` adds
_OF_VALUES = "NW"  # families of findings: numbers and weights
_STOPPED = ("N05", "N07")  # there are no numbers: a check could not judge
_OF_BISECT = ("checkpoint", "params", "reference")  # options that `harness bisect` has, too
_CHECKOUT = "executorch@CHECKOUT"
_UNKNOWN = re.compile(rf"{_CHECKOUT}|CHECKPOINT|PARAMS|REFERENCE|GOLDEN")
# What selects a test of conformance whose parameters do not name its check.
_TESTS = {
    "agreement": "agree",
    "against-core-ml": "against_core_ml",
    "core-ml-profile": "core_ml_profile",
    "grammar": "demands",
    "greedy-prompts": "after_prompts",
    "outputs": "outputs",
    "reference-weights": "reference_weights",
    "text": "text and not after_prompts",
}
_ON_REFERENCE = ("greedy-prompts", "text")  # whose tests have no runtime for a parameter
_NO_WORD = re.compile(r"[^\w:+\-.\[\]/\\]")  # what ends a word of pytest's -k


def repeat_command(case: Case, header: Header) -> str:
    """Return the command that runs a case again; "" where there is none."""
    if case.suite == "conformance":
        return shlex.join(_conformance(case, header))
    if case.suite == "check":
        return shlex.join(_check(case, header))
    if case.suite == "bisect":
        return shlex.join(_bisect(case, header))
    return shlex.join(["nox", "-s", case.suite]) if case.suite in _SESSIONS else ""


def bisect_command(case: Case, header: Header) -> str:
    """Return the command that bisects what a case found wrong; "" where that helps nobody."""
    option = advised_bisection(case)
    if header.options.get("compared with") == ["golden"] and not option:
        return ""  # a golden file says what is wrong, but not where
    if option is None or case.passes or case.suite not in ("check", "conformance"):
        return ""
    words = ["harness", "bisect", *_subject(case, header, _OF_BISECT)]
    return shlex.join([*words, *([option] if option else ["--results", _results(header)])])


def _results(header: Header) -> str:
    """Return the folder of a bisection's results, below that of the run's own."""
    given = dict(zip(header.typed[1::2], header.typed[2::2], strict=False))
    return str(Path(given.get("--results", "results")) / "bisect")


def advised_bisection(case: Case) -> str | None:
    """Return the option of the `harness bisect` that a case's findings advise; "" for none.

    A remedy says so, or the finding is about numbers or weights. Return None where none is, and
    where what stopped the check would stop the bisection, too.
    """
    wrong = [one for one in case.findings if not one.warning and one.code not in _STOPPED]
    if found := _BISECT.findall(" ".join(one.remedy for one in wrong)):
        return str(min(found))
    return "" if any(one.code[:1] and one.code[0] in _OF_VALUES for one in wrong) else None


def to_fill_in(command: str) -> str:
    """Return the words of a command that its user must fill in, as a list; "" for none."""
    words = [word.partition(":")[0].partition("/")[0] for word in shlex.split(command)]
    return ", ".join(dict.fromkeys(word for word in words if _UNKNOWN.fullmatch(word)))


def _conformance(case: Case, header: Header) -> Iterator[str]:
    label, _, name = case.fixture.rpartition(":")
    yield from ("harness", "conformance", "--fixture", name)
    chosen = header.options.get("exporter", "default") != "default"
    makers = [label or "executorch"] if label or chosen or "executorch" in header.exporters else []
    if case.check == "agreement":  # with the first export of ExecuTorch
        makers = [*[one for one in header.exporters if one not in (label, "coreml")][:1], *makers]
    for one in makers:
        yield from ("--exporter", _exporter(one, header) if chosen else one)
    yield from _option("mode", case.mode)
    yield from _option("runtime", case.runtime)
    yield from ("--strict-findings",) if header.options.get("strict") is True else ()
    yield from ("-k", _test_of(case))


def _test_of(case: Case) -> str:
    """Return the expression that selects a case's test: its name ends with what it is about."""
    named, parts = _TESTS.get(case.check), [case.fixture, case.mode]
    if case.runtime != NOT_APPLICABLE and case.check not in _ON_REFERENCE:
        parts.append(case.runtime)
    parts += [] if named else [case.check]
    word = _word(f"[{'-'.join(parts)}]")
    return f"{named} and {word}" if named else word


def _word(text: str) -> str:
    """Return the end of a text that pytest reads as one word."""
    return _NO_WORD.split(text)[-1]


def _check(case: Case, header: Header) -> Iterator[str]:
    yield from ("harness", "check", *_subject(case, header))
    yield from _option("runtime", case.runtime)
    yield from ("--measure",) if case.check in _MEASURED else ("--check", case.check)
    yield from ("--strict",) if header.options.get("strict") is True else ()


def _bisect(case: Case, header: Header) -> Iterator[str]:
    yield from ("harness", "bisect", *_subject(case, header))
    for name in ("policy", "method", "function"):
        value = header.options.get(name, "strict")
        if isinstance(value, str) and value != "strict":
            yield from (f"--{name}", value)


def _subject(case: Case, header: Header, options: Sequence[str] = ()) -> Iterator[str]:
    """Yield the words that name a case's artifact, and what it was compared with.

    Of the options, yield those of these names, or all.
    """
    if header.typed:
        file, *rest = header.typed
        yield file
        for name, value in zip(rest[::2], rest[1::2], strict=False):
            wanted = name[2:] in options if options else name != "--results"
            yield from (name, value) if wanted else ()
        return
    prefix, _, name = case.fixture.rpartition(":")
    label = prefix if prefix in header.exporters else next(iter(header.exporters), "")
    if label or case.suite == "conformance":  # a subject of the project's, or a built-in model
        mode = "" if case.mode == NOT_APPLICABLE else f"/{case.mode}"
        yield f"{_exporter(label, header)}:{name}{mode}" if label else f"{case.fixture}{mode}"
        return
    yield case.fixture
    sources = header.options.get("compared with")
    for source in map(str, sources if isinstance(sources, list) else ()):
        if not options or source in options:
            yield from (f"--{source}", source.upper())
        yield from ("--params", "PARAMS") if source == "checkpoint" else ()


def _option(name: str, value: str) -> Iterator[str]:
    if value != NOT_APPLICABLE:
        yield from (f"--{name}", value)


def _exporter(label: str, header: Header) -> str:
    """Return the exporter that a label means in a run, as the command line names it."""
    version = header.exporters.get(label, {}).get("executorch", "")
    if label != "executorch" or not version:
        return label
    return _CHECKOUT if "+" in version else f"executorch@{version}"

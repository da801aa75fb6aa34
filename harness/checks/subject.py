"""All that `harness check` does with a subject, as cases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness.checks import Check, artifact_checks, core_ml_checks, run_check, value_checks
from harness.checks.findings import causes_only
from harness.errors import HarnessError
from harness.results import NOT_APPLICABLE, Case
from harness.runtimes import RUNTIMES, default_runtime, usable_runtimes
from harness.subject import Subject
from harness.text import did_you_mean

if TYPE_CHECKING:
    from harness.models.stream import Passage

_SIZES = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size")


def check(
    subject: Subject | str | Path,
    runtimes: Iterable[str] | None = None,
    checks: Iterable[str] | None = None,
    progress: Callable[[str, int, int], object] | None = None,
    *,
    name: str = NOT_APPLICABLE,
    more: Iterable[Check[Subject]] = (),
    judge: Callable[[Case], Case] = lambda case: case,
    strict: bool = False,
) -> Iterator[Case]:
    """Run the checks that apply to a subject; yield each one's case when it has run.

    A path is a subject without a reference. Without names, every check runs on our executor, and
    on a Mac on Core ML, too. `progress` takes the name of what runs, the number of finished cases
    and their total. `name` is the subject's in the cases. `more` are checks to run after the
    others, such as those of `MEASUREMENTS` of `harness.measure.measurements`. `judge` returns a
    case as it judges it, by known defects. A `strict` run takes warnings for failures.

    A case that fails only because of what an earlier case found is skipped because of that one.

    Raises HarnessError at once for an unknown name and for a subject that cannot be judged,
    NotInstalledError for a named runtime that cannot be used here.
    """
    names = usable_runtimes(runtimes) if runtimes else _usual_runtimes()
    subject = Subject.of(subject)
    more = tuple(more)
    chosen = [*_chosen(checks, subject, {check.name for check in more}), *more]
    progress = progress or (lambda *_: None)
    progress(f"reading {subject.artifact.path.name} and what it is compared with", 0, 0)
    _refuse(subject)
    found = _cases(subject, chosen, names, name, progress, strict)
    return causes_only(map(judge, found))


def _chosen(
    names: Iterable[str] | None, subject: Subject, others: Collection[str]
) -> list[Check[Subject]]:
    """Return the checks of these names, or those that may apply, in their order.

    Names of `others` are known, and their checks are left to the caller.
    """
    checks = artifact_checks() | value_checks() | core_ml_checks()
    names = list(names or ())
    for name in names:
        if name not in checks and name not in others:
            known = (*checks, *others)
            hint = did_you_mean(name, known)
            raise HarnessError(f"no check '{name}'; {hint}choose from {', '.join(known)}")
    if not names and subject.is_language_model and not subject.has_golden:
        names = [*artifact_checks(), *core_ml_checks()]
    return [check for name, check in checks.items() if not names or name in names]


def _usual_runtimes() -> list[str]:
    usual = [row.name for row in RUNTIMES.values() if row.in_check]
    return list(dict.fromkeys((*usual, default_runtime())))


def _refuse(subject: Subject) -> None:
    """Raise HarnessError for a reference that does not belong to the artifact.

    The checks judge the artifact itself.
    """
    path = subject.artifact.path
    _ = subject.golden  # read, or computed, before the first check
    if subject.checkpoint is None or subject.params is None:
        return
    if not subject.is_language_model:
        return  # its model is the reference
    from harness.models.checkpoint import load_checkpoint
    from harness.models.config import load_params

    params = load_params(subject.params)
    load_checkpoint(subject.checkpoint, params)  # mapped: only its names and shapes are read
    try:
        held = subject.held
    except HarnessError:
        return
    wrong = [n for n in _SIZES if getattr(held, n) != getattr(params, n)]
    if wrong:
        sizes = "; ".join(f"{n} is {getattr(held, n)}, not {getattr(params, n)}" for n in wrong)
        raise HarnessError(
            f"{path} was not exported from {subject.checkpoint}: {sizes}; give its own checkpoint"
        )


def _cases(
    subject: Subject,
    checks: list[Check[Subject]],
    runtimes: list[str],
    name: str,
    progress: Callable[[str, int, int], object],
    strict: bool,
) -> Iterator[Case]:
    mode = subject.mode if subject.is_language_model else NOT_APPLICABLE
    pairs = [
        (c, runtime)
        for c in checks
        for runtime in (filter(c.runs_on, runtimes) if c.takes_runtime else [None])
    ]
    subject.upcoming = lambda: _passages(subject, pairs)
    try:
        for done, (check, runtime) in enumerate(pairs):
            where = f" on {runtime}" if runtime else ""
            progress(f"checking {check.name}{where}", done, len(pairs))
            names = {"suite": "check", "fixture": name, "mode": mode}
            yield run_check(check, subject, runtime, **names, strict=strict)
    finally:
        subject.upcoming = tuple  # the other refers to the subject


def _passages(
    subject: Subject, pairs: Iterable[tuple[Check[Subject], str | None]]
) -> Iterator[Passage]:
    """Yield what the checks ask of the subject's model; one that fails reports it when it runs."""
    for check, runtime in pairs:
        with suppress(HarnessError):
            if runtime and not check.inapplicable(subject):
                yield from check.passages(subject, runtime)

"""The one judge: a check yields findings about a subject, and `run_check` makes a case of them.

The command line, the suites and the gate all call it. Checks of artifacts and of installations have
the same class; this module needs neither torch nor a subject's code.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from harness.checks.findings import ANY_CHECK, explained, is_reported_once, rows
from harness.errors import (
    ArtifactError,
    CallTimeoutError,
    CrashError,
    ExecutionError,
    HarnessError,
    NoReferenceError,
    NotInstalledError,
)
from harness.results import NOT_APPLICABLE, Case, Finding, RecordedFinding, case_from_findings
from harness.runtimes import get_runtime, runtime_row

if TYPE_CHECKING:
    from harness.models.stream import Passage

S = TypeVar("S")  # the kind of subject
_NAME = r"(?:[a-z]\w* '[^']*'|[a-z]+ \d+)"  # function 'main', package 0
_NAMED = re.compile(rf"(?:[^:,' ]+(?:, |: ))?(?P<place>{_NAME}(?:, {_NAME})*|\S+[./]\S+): ")


@dataclass(frozen=True)
class Check(Generic[S]):
    """A check: `find(subject)`, or `find(subject, runtime)` with `takes_runtime`, yields findings.

    Each of `needs` takes the subject and returns why the check does not apply to it, or None.
    `damaged` is the code of an artifact that the check cannot read, or cannot execute. `passages`
    returns what the check will ask of the subject's model: that of all checks is computed at once.
    """

    name: str
    find: Callable[..., Iterable[Finding]]
    needs: tuple[Callable[[S], str | None], ...] = ()
    takes_runtime: bool = False
    kinds: tuple[str, ...] = ()
    damaged: str = "A01"
    passages: Callable[[S, str], Iterable[Passage]] = lambda subject, runtime: ()

    def runs_on(self, runtime: str) -> bool:
        """Return whether the check is about this runtime: one of its `kinds`, or any without."""
        return not self.kinds or runtime_row(runtime).kind in self.kinds

    def inapplicable(self, subject: S) -> str | None:
        """Return why the check does not apply to a subject, or None when it does."""
        return next((reason for need in self.needs if (reason := need(subject))), None)

    def findings(self, subject: S, runtime: str | None = None) -> Iterable[Finding]:
        """Return the findings about a subject; raises HarnessError when it is too broken."""
        return self.find(subject, runtime) if self.takes_runtime else self.find(subject)

    def coded_findings(self, subject: S, runtime: str | None = None) -> Iterator[Finding]:
        """Yield the findings; raise LookupError for one that contradicts the table.

        A wrong finding may lack a code only where its check has no row.
        """
        for finding in self.findings(subject, runtime):
            if problem := _wrong_code(self.name, finding):
                raise LookupError(problem)
            yield finding


def check(
    name: str,
    *,
    needs: tuple[Callable[[Any], str | None], ...] = (),
    takes_runtime: bool = False,
    kinds: tuple[str, ...] = (),
    damaged: str = "A01",
    passages: Callable[[Any, str], Iterable[Passage]] = lambda subject, runtime: (),
) -> Callable[[Callable[..., Iterable[Finding]]], Check[Any]]:
    """Turn a generator of findings into a check, which `defined_in` finds in its module."""

    def decorate(find: Callable[..., Iterable[Finding]]) -> Check[Any]:
        return Check(name, find, needs, takes_runtime, kinds, damaged, passages)

    return decorate


def defined_in(*modules: ModuleType) -> dict[str, Check[Any]]:
    """Return the checks of modules by name, in the order of their source."""
    return {
        value.name: value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Check) and value.find.__module__ == module.__name__
    }


def run_check(
    check: Check[S],
    subject: S | Callable[[], S],
    runtime: str | None = None,
    *,
    suite: str,
    fixture: str = NOT_APPLICABLE,
    mode: str = NOT_APPLICABLE,
    strict: bool = False,
) -> Case:
    """Run a check on a subject, or on one that a function makes here; never raises.

    | what happens | outcome |
    |---|---|
    | the findings are judged | `pass` or `fail` |
    | the runtime is unavailable, the check does not apply, a part is not installed | `skip` |
    | a child process dies or does not answer | `crash` or `timeout` |
    | the artifact cannot be read, or the harness itself has a bug | `error` |

    The stage of an error is `runtime` (is it available?), `export` (make and open the subject) or
    `check`. Only a bug leaves a `traceback`. A `strict` run takes warnings for failures.
    """
    names: dict[str, Any] = {"suite": suite, "check": check.name, "fixture": fixture, "mode": mode}
    names["runtime"] = runtime or NOT_APPLICABLE
    start = time.perf_counter()
    case = _judge(check, subject, runtime, names, strict)
    seconds = round(time.perf_counter() - start, 3)
    return replace(case, seconds=seconds, findings=tuple(map(explained, case.findings)))


def _judge(
    check: Check[S],
    subject: S | Callable[[], S],
    runtime: str | None,
    names: dict[str, Any],
    strict: bool,
) -> Case:
    stage = "runtime"
    try:
        if runtime is not None and (reason := get_runtime(runtime).unavailable()):
            return Case(**names, outcome="skip", reason=reason)
        stage = "export"
        opened: S = subject() if callable(subject) else subject
        stage = "check"
        if reason := check.inapplicable(opened):
            return Case(**names, outcome="skip", reason=reason)
        found = check.coded_findings(opened, runtime)
        return case_from_findings(found, **names, strict=strict, once=is_reported_once)
    except NotInstalledError as error:
        return Case(**names, outcome="skip", reason=str(error))
    except CrashError as error:
        return Case(**names, **_raised("N03", error), outcome="crash", signal=error.signal)
    except CallTimeoutError as error:
        return Case(**names, **_raised("N04", error), outcome="timeout")
    except HarnessError as error:
        code = check.damaged if isinstance(error, ArtifactError) else _code_of(error)
        return Case(**names, **_raised(code, error), outcome="error", stage=stage)
    except Exception as error:  # a bug here must not hide the findings of other checks
        reason = f"the {stage} itself failed ({type(error).__name__}: {error}); please report it"
        trace = traceback.format_exc()
        return Case(**names, outcome="error", stage=stage, reason=reason, traceback=trace)


def _wrong_code(check: str, finding: Finding) -> str:
    """Describe how a finding contradicts the table; "" when it does not."""
    row, name = rows().get(finding.code), finding.check
    if row is None:
        bad = not finding.ok or any(not f.within_bound for f in finding.figures.values())
        lacks = bool(finding.code) or (bad and any(row.check == check for row in rows().values()))
        return f"{name} found '{finding.code}', a code that findings.toml lacks" if lacks else ""
    if row.check not in (name, ANY_CHECK):
        return f"{finding.code} is a finding of {row.check}, not of {name}"
    warns = row.severity == "warning"
    return "" if finding.warning == warns else f"{finding.code} must be a {row.severity}"


def _code_of(error: HarnessError) -> str:
    """Return the code of an error that is about more than the artifact's bytes."""
    if isinstance(error, NoReferenceError):
        return "N05"
    return "N06" if isinstance(error, ExecutionError) else "N07"


def _raised(code: str, error: HarnessError) -> dict[str, Any]:
    """Return the reason and the finding of a case that an error ended.

    The names that begin the error's sentence, such as "package 0, function 'main': ", are the
    finding's place; the file before them is not repeated.
    """
    reason = str(error)
    named = _NAMED.match(reason)
    place, evidence = (named["place"], reason[named.end() :]) if named else ("", reason)
    return {"reason": reason, "findings": (RecordedFinding(code, place, evidence),)}

"""Which checks there are, and what each needs.

To add a check: write a generator of findings in the module of its theme, add a row here, and write
the broken artifact that it must catch in `suites/mutants`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass

from harness.results import Finding
from harness.subject import Subject


@dataclass(frozen=True)
class Check:
    """A check: its name, the function that makes its findings, and what the subject must have.

    `needs` are among `checkpoint`, `shared`, `unshared`, `multifunction`, `fp16` and
    `runtime`.
    """

    name: str
    function: str
    needs: frozenset[str] = frozenset()

    @property
    def takes_runtime(self) -> bool:
        """Whether the check executes the artifact on a runtime."""
        return "runtime" in self.needs

    def inapplicable(self, subject: Subject) -> str | None:
        """Why the check says nothing of a subject, None when it applies."""
        if "multifunction" in self.needs and subject.mode != "multifunction":
            return "a single-method artifact has no functions to share weights between"
        if "shared" in self.needs and subject.options and subject.options.weight_sharing == "none":
            return "it was exported without weight sharing, as it was asked for"
        if "fp16" in self.needs and subject.dtype != "fp16":
            return f"an {subject.dtype} artifact holds no fp16 values"
        if "checkpoint" in self.needs and subject.expected_weights is None:
            return "needs the checkpoint and its params"
        if "unshared" in self.needs and subject.unshared is None:
            return "needs the same export with weight sharing off"
        return None

    def findings(self, subject: Subject, runtime: str | None = None) -> Iterator[Finding]:
        """Run the check. Raises HarnessError when the artifact is too broken to be looked at."""
        module, _, name = self.function.partition(":")
        function = getattr(importlib.import_module(f"harness.checks.{module}"), name)
        arguments = (subject, runtime) if self.takes_runtime else (subject,)
        found: Iterator[Finding] = function(*arguments)
        yield from found


CHECKS = {
    name: Check(name, function, frozenset(needs))
    for name, function, needs in (
        ("references", "metadata:check_references", ()),
        ("metadata-round-trip", "metadata:check_metadata_round_trip", ()),
        ("metadata-names", "metadata:check_metadata_names", ()),
        ("function-names", "metadata:check_function_names", ()),
        ("program", "program:check_program", ()),
        ("cache-rows", "layout:check_cache_rows", ()),
        ("weight-sharing", "sharing:check_sharing", ("multifunction", "shared")),
        ("sharing-size", "sharing:check_sharing_size", ("multifunction", "shared", "unshared")),
        ("weights", "weights:check_weights", ("checkpoint",)),
        ("tables", "weights:check_tables", ("checkpoint",)),
        ("parity", "parity:check_parity", ("runtime",)),
        ("greedy", "parity:check_greedy", ("runtime",)),
        ("residues", "parity:check_residues", ("runtime",)),
        ("fp16-range", "ranges:check_fp16_range", ("fp16",)),
    )
}

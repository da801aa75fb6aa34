"""Requirements on models that speak: their text, and their greedy choices on prompts."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from harness.checks import Check
from harness.checks.parity import greedy_prompts
from harness.fixtures.cache import fixture
from harness.fixtures.subjects import tokenizer_of
from harness.results import Finding
from harness.runtimes import REFERENCE
from harness.subject import Subject
from harness.suites.conformance.cases import Judge
from harness.suites.conformance.subjects import SubjectName, row_of

NEW_TOKENS = 32
QUESTION = "What is the capital of France?"


@pytest.mark.speaking("smollm2")
def test_it_names_paris(judge: Judge, fixture_name: str) -> None:
    """`harness run`, as a user types it, must name Paris in the model's chat format."""
    files = fixture(SubjectName.parse(fixture_name).model)

    def find(subject: Subject) -> Iterator[Finding]:
        command = [sys.executable, "-m", "harness", "run", str(subject.artifact.path)]
        command += ["--tokenizer", str(files.tokenizer), "--chat", "--prompt", QUESTION]
        command += ["--runtime", REFERENCE, "--max-new-tokens", str(NEW_TOKENS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        yield Finding(
            "text",
            QUESTION,
            ok=done.returncode == 0 and "Paris" in done.stdout,
            message=f"status {done.returncode}, printed {done.stdout!r} {done.stderr[-500:]!r}",
            comparisons=1,
            facts={"text": " ".join(done.stdout.split())},
        )

    judge(Check("text", find), REFERENCE)


@pytest.mark.prompted
def test_greedy_tokens_after_prompts_are_the_oracles(judge: Judge, fixture_name: str) -> None:
    """The two must agree on every prompt wherever the oracle's margin exceeds the error bound."""
    row = row_of(fixture_name)
    judge(greedy_prompts(row.prompts, tokenizer_of(row)), REFERENCE)

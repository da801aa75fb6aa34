"""Requirements on a model that speaks: its text, and its greedy choices on real prompts."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from harness.checks import Check
from harness.checks.parity import greedy_findings
from harness.fixtures.cache import fixture
from harness.generate.tokenizer import load_tokenizer
from harness.results import Finding
from harness.runtimes import REFERENCE
from harness.subject import Subject
from harness.suites.conformance.cases import Judge
from harness.suites.conformance.subjects import SubjectName

pytestmark = pytest.mark.speaking("smollm2")

NEW_TOKENS = 32
PROMPTS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "Write one sentence about the sea.",
    "How many days are there in a leap year?",
    "What do bees make?",
    "Give me a word that rhymes with 'light'.",
    "Explain what a prime number is.",
    "Who wrote Romeo and Juliet?",
    "What is the opposite of cold?",
    "List two uses of a hammer.",
    "Where does rice grow, and what does it need in order to grow well?",
)


def test_it_names_paris(judge: Judge, fixture_name: str) -> None:
    """`harness run`, as a user types it, must name Paris in the model's chat format."""
    model = fixture(SubjectName.parse(fixture_name).model)

    def find(subject: Subject) -> Iterator[Finding]:
        command = [sys.executable, "-m", "harness", "run", str(subject.artifact.path)]
        command += ["--tokenizer", str(model.tokenizer), "--chat", "--prompt", PROMPTS[0]]
        command += ["--runtime", REFERENCE, "--max-new-tokens", str(NEW_TOKENS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        yield Finding(
            "text",
            PROMPTS[0],
            ok=done.returncode == 0 and "Paris" in done.stdout,
            message=f"status {done.returncode}, printed {done.stdout!r} {done.stderr[-500:]!r}",
            comparisons=1,
            facts={"text": " ".join(done.stdout.split())},
        )

    judge(Check("text", find), REFERENCE)


def test_greedy_tokens_are_the_oracles(judge: Judge, fixture_name: str) -> None:
    """The two must agree on twelve prompts wherever the oracle's margin exceeds the error bound."""
    tokenizer = load_tokenizer(fixture(SubjectName.parse(fixture_name).model).tokenizer)
    prompts = {prompt: tokenizer.encode_chat(prompt) for prompt in PROMPTS}
    find = partial(greedy_findings, runtime=REFERENCE, prompts=prompts, new_tokens=NEW_TOKENS)
    judge(Check("greedy-prompts", find), REFERENCE)

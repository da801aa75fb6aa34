"""Requirements on `tiny`, which was taught a small grammar: it says what the grammar demands."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from harness.checks import Check
from harness.fixtures.cache import fixture
from harness.fixtures.quality import MASTERED, cases, tokens_of
from harness.generate import generate
from harness.generate.tokenizer import load_tokenizer
from harness.results import Finding
from harness.runtimes import REFERENCE
from harness.subject import Subject
from harness.suites.conformance.cases import Judge
from harness.suites.conformance.subjects import SubjectName

pytestmark = pytest.mark.speaking("tiny")

CASES = 40  # four of every mastered rule, two of them after another saying


def test_it_says_what_the_grammar_demands(judge: Judge, fixture_name: str, runtime: str) -> None:
    """Greedy text must be right, token by token, after prompts that the model was never taught."""
    tokenizer = load_tokenizer(fixture(SubjectName.parse(fixture_name).model).tokenizer)

    def find(subject: Subject) -> Iterator[Finding]:
        for case in (case for case in cases(CASES) if case.saying.rule in MASTERED):
            prompt, wanted = tokens_of(case, tokenizer)
            made = generate(subject.session(runtime), prompt, len(wanted))
            said = [step.token for step in made]
            yield Finding(
                "grammar",
                case.prompt,
                ok=said == wanted,
                message=f"continues with {tokenizer.decode(said)!r}, not {case.saying.follows!r}",
                comparisons=len(wanted),
            )

    judge(Check("grammar", find), runtime)


def test_a_user_reads_its_text(judge: Judge, fixture_name: str) -> None:
    """`harness run`, as a user types it, must finish the sentence and go on to the next."""
    tokenizer = fixture(SubjectName.parse(fixture_name).model).tokenizer
    case = next(case for case in cases() if case.saying.rule == "sum")

    def find(subject: Subject) -> Iterator[Finding]:
        command = [sys.executable, "-m", "harness", "run", str(subject.artifact.path)]
        command += ["--tokenizer", str(tokenizer), "--prompt", case.prompt, "--json"]
        command += ["--runtime", REFERENCE, "--max-new-tokens", "24"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        text = json.loads(done.stdout)["text"] if done.returncode == 0 else ""
        yield Finding(
            "text",
            case.prompt,
            ok=text.strip().startswith(case.saying.follows.strip()),
            message=f"status {done.returncode}, said {text!r} {done.stderr[-500:]!r}",
            comparisons=1,
            facts={"text": text},
        )

    judge(Check("text", find), REFERENCE)

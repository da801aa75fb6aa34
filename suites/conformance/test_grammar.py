"""Requirements on `tiny`, which was taught a small grammar: it says what the grammar demands."""

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

import pytest

from harness.checks import Check
from harness.cli import main
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
        command = ["run", str(subject.artifact.path), "--tokenizer", str(tokenizer), "--json"]
        command += ["--prompt", case.prompt, "--runtime", REFERENCE, "--max-new-tokens", "24"]
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            status = main(command)
        text = json.loads(out.getvalue())["text"] if status == 0 else ""
        yield Finding(
            "text",
            case.prompt,
            ok=text.strip().startswith(case.saying.follows.strip()),
            message=f"status {status}, said {text!r} {err.getvalue()[-500:]!r}",
            comparisons=1,
            facts={"text": text},
        )

    judge(Check("text", find), REFERENCE)

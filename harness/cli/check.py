"""`harness check`, `golden`, and the suites `conformance` and `generation`."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness.cli.output import print_painted
from harness.cli.progress import suite_plugin
from harness.cli.recording import (
    add_recording_arguments,
    artifact_name,
    codes_of,
    finding_lines,
    judge_of_known,
    recording,
    typed_words,
)
from harness.errors import HarnessError, NotInstalledError
from harness.text import counted, listed, printable

if TYPE_CHECKING:
    from harness.checks import Check
    from harness.results import Case
    from harness.subject import Subject

_SUITES = Path(harness.__file__).with_name("suites")
_MAX_FIGURES = 3  # of a check that passed, on a terminal
_REFERENCE = "execute this Python function of yours, which returns the eager PyTorch module"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from harness.checks.findings import check_names

    parser.add_argument(
        "file", metavar="FILE", help="a .pte, an exported folder or an .mlpackage, of any model"
    )
    add_checkpoint_arguments(parser)
    add_reference_arguments(parser)
    parser.add_argument(
        "--runtime",
        action="append",
        help="where to execute it (default: our executor, and on a Mac Core ML); may be repeated",
    )
    parser.add_argument(
        "--check",
        action="append",
        metavar="NAME",
        help=f"only this check; may be repeated: {', '.join(check_names())}",
    )
    parser.add_argument("--strict", action="store_true", help="let warnings fail, too")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also record sizes, times of load, prefill and decode, and memory",
    )
    add_recording_arguments(parser)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a language model was exported from."""
    parser.add_argument("--checkpoint", type=Path, help="the checkpoint it was exported from")
    parser.add_argument(
        "--params",
        type=Path,
        help="its params.json or config.json (default: the one beside the checkpoint)",
    )


def add_reference_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what an artifact of any model is held against."""
    parser.add_argument(
        "--reference",
        metavar="MODULE:FUNCTION",
        help=_REFERENCE,
    )
    parser.add_argument(
        "--golden",
        type=Path,
        metavar="FILE",
        help="inputs and outputs of the methods, as `harness golden` writes them",
    )
    parser.add_argument("--seed", type=int, default=0, help="of made-up inputs (default: 0)")


def add_golden_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness golden`."""
    parser.add_argument("file", metavar="FILE", help="a .pte, an exported folder or an .mlpackage")
    add_checkpoint_arguments(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--reference", metavar="MODULE:FUNCTION", help=_REFERENCE)
    source.add_argument(
        "--runtime",
        default="mil:double",
        help="what FILE itself gives here, when it is known to be right (default: mil:double)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of made-up inputs (default: 0)")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".safetensors or .npz")


def golden(args: argparse.Namespace) -> int:
    """Write inputs of each method and what they must give; returns 0."""
    from harness.golden import golden_of_runtime
    from harness.golden.files import check_name, write_golden
    from harness.golden.inputs import all_inputs
    from harness.runtimes import usable_runtimes
    from harness.subject import Subject
    from harness.text import require_outside

    check_name(args.output)
    require_outside(args.output, Path(args.file))
    args.progress(f"executing {args.file}")
    subject = Subject(
        args.file, args.checkpoint, args.params, reference=args.reference, seed=args.seed
    )
    values, origin = subject.golden, args.reference or args.checkpoint
    if values is None and args.checkpoint is not None and "file" not in args.located:
        raise HarnessError(
            f"{args.file} describes itself to the static runner: `harness check` compares it with "
            "its checkpoint; leave out --checkpoint"
        )
    if values is None:
        (origin,) = usable_runtimes([args.runtime])
        inputs = all_inputs(subject.artifact, args.seed)
        values = golden_of_runtime(subject.artifact, origin, inputs)
    write_golden(args.output, values)
    sequences = [calls for of_method in values.values() for calls in of_method.values()]
    outputs = sum(len(call.expected) for calls in sequences for call in calls)
    print(
        f"{args.output}: {counted(len(values), 'method')}, {counted(len(sequences), 'sequence')}, "
        f"{counted(outputs, 'output')}, from {origin}"
    )
    return 0


def run(args: argparse.Namespace) -> int:
    """Run the checks; return 1 when one of them failed, else 0."""
    from harness.checks.subject import check
    from harness.fixtures.project import project
    from harness.measure.measurements import MEASUREMENTS
    from harness.results import Footer
    from harness.subject import Subject

    subject = Subject(
        args.file,
        args.checkpoint,
        args.params,
        reference=args.reference,
        golden=args.golden,
        seed=args.seed,
    )
    runtimes = args.runtime or project().runtimes
    more = [*_prompted(args), *(MEASUREMENTS if args.measure else ())]
    name, judge, cases = artifact_name(args), judge_of_known(args), []
    found = check(
        subject,
        runtimes,
        args.check,
        args.progress,
        name=name,
        more=more,
        judge=judge,
        strict=args.strict,
    )
    with recording(args, _options(args), echoes=args.json) as record:
        for case in found:
            record(case)
            cases.append(case)
            if not args.json and case.outcome in ("pass", "known"):
                print_painted(f"{printable(_line(case))}\n")
                sys.stdout.flush()
    if not args.json:
        print_painted("".join(f"{printable(line)}\n" for line in _closing(cases)))
        if args.results is not None:
            print(f"results: {args.results}")
        if lacking := _lacking(subject, cases):
            print_painted(f"{lacking}\n")
        if command := _bisection(args, cases):
            print(f"the operation at fault: {printable(command)}")
    return 0 if Footer.of(cases, seconds=0.0).passed else 1


def _prompted(args: argparse.Namespace) -> Iterator[Check[Subject]]:
    """Yield the check of greedy tokens after a subject's prompts, unless others are asked for."""
    from harness.checks.parity import GREEDY_PROMPTS, greedy_prompts

    located = args.located.get("file")
    if located and located.prompts and (not args.check or GREEDY_PROMPTS in args.check):
        yield greedy_prompts(located.prompts, Path(located.files["tokenizer"]))


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides the cases and their values; the gate compares runs of equal options."""
    sources = [name for name in ("checkpoint", "reference", "golden") if getattr(args, name)]
    return {
        "check": args.check or "default",
        "runtime": args.runtime or "default",
        "compared with": sources or "its own weights",
        "seed": args.seed,
        "measure": args.measure,
        **({"strict": True} if args.strict else {}),
    }


def _line(case: Case) -> str:
    """Return a case as a line: its outcome, its check, and its figures or its reason."""
    where = "" if case.runtime == "-" else f" on {case.runtime}"
    count = f" ({counted(case.comparisons, 'comparison')})" if case.comparisons else ""
    bounded = {name: f for name, f in case.figures.items() if f.bound is not None}
    shown = bounded or case.figures
    texts = [f"{name} {figure}" for name, figure in shown.items() if figure.within_bound]
    if sys.stdout.isatty() and len(texts) > _MAX_FIGURES + 1:  # a pipe gets all of them
        texts[_MAX_FIGURES:] = [f"{len(texts) - _MAX_FIGURES} more figures (--results)"]
    figures = "; ".join(texts)
    reason = case.summary if case.outcome == "known" else case.reason
    detail = figures if case.outcome == "pass" else reason
    return f"{case.outcome:5} {case.check}{where}{count}{': ' if detail else ''}{detail}"


def _closing(cases: list[Case]) -> Iterator[str]:
    """Yield what follows the checks that passed: skips, notes, warnings, failures, the summary."""
    yield from _skip_lines(cases)
    yield from _note_lines(cases)
    yield from finding_lines(cases, warnings=True)
    yield from finding_lines(cases, warnings=False)
    yield from ("", _summary(cases))


def _lacking(subject: Subject, cases: list[Case]) -> str:
    """Return what no source was compared with, and what to add; "" if all was compared."""
    skipped = [case.reason for case in cases if case.outcome == "skip"]
    needs_one = any(reason.startswith("needs the checkpoint") for reason in skipped)
    executed = any(case.runtime != "-" for case in cases)  # beside its own weights
    if needs_one or (executed and subject.is_language_model and subject.checkpoint is None):
        return "weights and tables were not compared with a checkpoint: give --checkpoint"
    if not subject.has_golden and any(reason.startswith("needs --reference") for reason in skipped):
        return "no output was compared with a reference: give --reference or --golden"
    return ""


def _bisection(args: argparse.Namespace, cases: list[Case]) -> str:
    """Return the command that a remedy of what failed advises, for a shell; "" without one."""
    from harness.report.commands import advised_bisection

    advised = (advised_bisection(case) for case in cases if not case.passes)
    option = next((one for one in advised if one is not None), None)
    if option is None or (
        not option and args.golden and not args.checkpoint and not args.reference
    ):
        return ""  # a golden file says what is wrong, but not where
    words = ["harness", "bisect", *typed_words(args, "checkpoint", "params", "reference")]
    if option:
        return shlex.join([*words, option])
    results = [] if args.results is None else ["--results", str(args.results / "bisect")]
    return shlex.join([*words, *results])


def _skip_lines(cases: list[Case]) -> Iterator[str]:
    """Yield a line for each reason of skipped checks, with their names."""
    names: dict[str, list[str]] = {}
    for case in cases:
        if case.outcome == "skip":
            names.setdefault(case.reason, []).append(case.check)
    for reason, checks in names.items():
        yield f"skip  {', '.join(dict.fromkeys(checks))}: {reason}"


def _note_lines(cases: list[Case]) -> Iterator[str]:
    """Yield what a runner must be given, because the file does not hold it."""
    from harness.checks.contract import NOT_IN_FILE, NOTHING

    for case in cases:
        if (missing := case.facts.get(NOT_IN_FILE, NOTHING)) != NOTHING:
            whence = "from the model's configuration and tokenizer"
            yield f"note  The file does not hold {missing}; give them to your runner, {whence}"


def _summary(cases: list[Case]) -> str:
    from harness.checks.findings import BECAUSE

    failed = sum(not case.passes for case in cases)
    skipped = sum(case.outcome == "skip" for case in cases)
    known = sum(case.outcome == "known" for case in cases)
    compared = sum(case.comparisons for case in cases)
    warned = sum(one.warning for case in cases for one in case.findings)
    codes = codes_of(cases)
    effects = sum(case.reason.startswith(BECAUSE) for case in cases)
    if skipped == len(cases):
        return f"nothing was checked: {skipped} skipped"
    return (
        f"{counted(len(cases) - skipped, 'check')}, {failed} failed"
        f"{f' ({listed(codes)})' if codes else ''}, {skipped} skipped"
        f"{f' ({effects} because of what failed)' if effects else ''}"
        f"{f', {known} known' if known else ''}"
        f"{', ' + counted(warned, 'warning') if warned else ''}; {counted(compared, 'comparison')}"
    )


def add_suite_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a suite; pytest reads them all."""
    options = ("--fixture F", "--exporter E", "--mode M", "--runtime R", "--shard K/N")
    parser.usage = f"{parser.prog} {' '.join(f'[{option}]' for option in options)} ..."
    parser.epilog = (
        "Each option may be repeated, and pytest's own options are passed on. Results are written "
        "below `results/`, or to the folder of --results. --strict-findings also fails on "
        "warnings."
    )


def run_suite(args: argparse.Namespace) -> int:
    """Run pytest on the suite of the command's name.

    Return 0 when all passed, 1 on a failure, 2 for a wrong option. Raises NotInstalledError without
    a package that the suite needs, and KeyboardInterrupt when the user interrupted pytest.
    """
    import pytest

    if args.command == "generation" and importlib.util.find_spec("hypothesis") is None:
        raise NotInstalledError(
            "the suite needs hypothesis, which is not installed: pip install "
            "'coreml-llm-harness[test]'"
        )
    # The suite's table has the reasons of skips: pytest's summary repeats failures alone.
    words = [str(_SUITES / args.command), "-p", "no:cacheprovider", "-rfE"]
    words += ["-p", "no:unraisableexception"]  # it drops an interrupt of a finalizer: ours does not
    if args.command == "conformance":  # it draws no examples: hypothesis takes a second to import
        words += ["-p", "no:hypothesispytest"]
    plugins = []
    if not args.quiet:  # pytest's dots, and their percentage, would break the line of progress
        plugins.append(suite_plugin(args.progress))
        words += ["-o", "console_output_style=classic"]
    status = pytest.main([*words, *args.words], plugins)
    usage = (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
    if status in usage:
        return 2
    if status == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    return int(status != pytest.ExitCode.OK)

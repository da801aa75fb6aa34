"""The one console script: a table of commands, and the errors and statuses that they share.

Modules of commands import argparse and the like at their top, and the rooms that do the work where
a command runs: `harness --help` and `harness inspect` import no torch.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from harness import __version__
from harness.cli import (
    bench,
    bisect,
    check,
    export,
    inspect,
    packages,
    recording,
    results,
    run,
    shim,
    text,
)
from harness.cli.output import (
    INTERRUPTED,
    TERMINATED,
    checked_output,
    discard_output,
    hush_libraries,
    interruptible,
)
from harness.cli.progress import Progress
from harness.errors import HarnessError
from harness.text import did_you_mean, is_terminal, printable

_REMEDIES = {"--prompt": "a prompt needs one token or more: give a text"}
_QUIET = frozenset(("-q", "-qq", "--quiet"))  # of programs that get our words


class Command(NamedTuple):
    """What a command does in one line, and the functions that declare its arguments and run it.

    `run` returns the exit status, or raises HarnessError. A command that `passes_on` gives words
    that it does not know to another program, as `args.words`, and shows no progress of its own.
    `artifacts` are its arguments that take a path or a subject's name.
    """

    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    passes_on: bool = False
    artifacts: tuple[str, ...] = ()


COMMANDS = {
    "models": Command(
        "list the subjects: your models and artifacts, and the built-in models",
        export.add_models_arguments,
        export.models,
    ),
    "exporters": Command(
        "list the exporters at hand, with their versions",
        export.add_exporters_arguments,
        export.exporters,
    ),
    "init": Command(
        "write a commented harness.toml, which declares your models by name",
        export.add_init_arguments,
        export.init,
    ),
    "export": Command(
        "export a fixture model or a checkpoint",
        export.add_export_arguments,
        export.export,
    ),
    "inspect": Command(
        "show methods, delegates, functions, sizes, sharing and metadata",
        inspect.add_arguments,
        inspect.run,
        artifacts=("file",),
    ),
    "extract": Command(
        "write the Core ML packages inside an artifact to a folder",
        packages.add_extract_arguments,
        packages.extract,
        artifacts=("file",),
    ),
    "combine": Command(
        "put functions of Core ML packages into one, their weights stored once",
        packages.add_combine_arguments,
        packages.combine,
    ),
    "diff": Command(
        "show what changed between two artifacts; exit status 1 when something did",
        packages.add_diff_arguments,
        packages.diff,
        artifacts=("a", "b"),
    ),
    "check": Command(
        "check an artifact, and execute it against the oracle",
        check.add_arguments,
        check.run,
        artifacts=("file",),
    ),
    "findings": Command(
        "explain the codes of findings: what is wrong, and what to do",
        recording.add_findings_arguments,
        recording.findings,
    ),
    "golden": Command(
        "write inputs and outputs of an artifact's methods, to check another one against",
        check.add_golden_arguments,
        check.golden,
        artifacts=("file",),
    ),
    "bisect": Command(
        "name the first operation that leaves its reference, or show ranges of values",
        bisect.add_arguments,
        bisect.run,
        artifacts=("file",),
    ),
    "run": Command(
        "generate text with an artifact",
        run.add_arguments,
        run.run,
        artifacts=("file",),
    ),
    "text": Command(
        "measure perplexity, and divergence from the oracle, on a text",
        text.add_arguments,
        text.run,
        artifacts=("file",),
    ),
    "lm-eval": Command(
        "run tasks of lm-evaluation-harness on an artifact",
        text.add_lm_eval_arguments,
        text.lm_eval,
        passes_on=True,
    ),
    "bench": Command(
        "time load, prefill and decode, and measure memory",
        bench.add_arguments,
        bench.run,
        artifacts=("file",),
    ),
    "gate": Command(
        "compare result files, artifacts or exporters; status 1: worse or changed, 4: undecided",
        results.add_gate_arguments,
        results.gate,
    ),
    "conformance": Command(
        "export the named models, check and execute every artifact",
        check.add_suite_arguments,
        check.run_suite,
        passes_on=True,
    ),
    "generation": Command(
        "feed and generate sequences of every length, split, order and end",
        check.add_suite_arguments,
        check.run_suite,
        passes_on=True,
    ),
    "report": Command(
        "draw a table, JUnit XML and an HTML page from a result file",
        results.add_report_arguments,
        results.report,
    ),
    "shim": Command(
        "run a Python command that needs Core ML with our executor in its place",
        shim.add_arguments,
        shim.run,
        passes_on=True,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: all is well; 1: a check failed; 2: the input or the call was bad; 3: a part is not installed;
    4: the gate could not decide; 130: Ctrl-C ended it, if only in the middle; 143: SIGTERM did.
    """
    # Threads that spin between two small operations starve each other on a busy machine: decoding
    # was seen 75 times slower. Torch reads this when it is imported: set it before any command.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Python looks for garbage among all objects when it exits: up to two silent seconds.
    atexit.register(gc.freeze)
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parsed(argv)
    command = COMMANDS[args.command]
    signals: list[int] = []
    try:
        if not command.passes_on:
            _require_words(argv)
        with (
            interruptible(signals),
            Progress(f"starting harness {args.command}", args.quiet) as args.progress,
            checked_output(args.progress, exactly=command.passes_on),
        ):
            if not args.verbose:
                hush_libraries()
            _locate(args, command.artifacts)
            status = command.run(args)
    except HarnessError as error:
        # A name in a hostile file must not reach the terminal as control characters.
        sentence = printable(str(error))
        print(f"harness {args.command}: {sentence}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"harness {args.command}: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has gone: nobody sees what is printed
        discard_output()
        return 0
    except OSError as error:  # about a path that nobody has named, as a folder that was removed
        print(f"harness {args.command}: {printable(str(error))}", file=sys.stderr)
        return HarnessError.exit_status
    return TERMINATED if signals and status == INTERRUPTED else status


def _require_words(argv: Sequence[str]) -> None:
    """Raise HarnessError for an empty argument, as of a shell's unset variable, and for NUL."""
    for before, word in zip(["", *argv], argv, strict=False):
        option, equals, value = word.partition("=")
        if not word or (option.startswith("--") and equals and not value):
            name = option or (before if before.startswith("-") else "an argument")
            remedy = _REMEDIES.get(name, "give a value, or leave it out")
            raise HarnessError(f"{name} is empty: {remedy}")
        if "\0" in word:
            raise HarnessError(f"{word}: no path or name can hold NUL")


def _locate(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Put paths in the place of subjects' names, and their files where the user gave none.

    `args.located` keeps each subject by the name of its argument, `args.typed` the user's word.
    Raises ArtifactError for what cannot be opened, before a command's slow imports.
    """
    from harness.artifact import open_artifact

    args.located, args.typed = {}, {}
    for name in names:
        word = args.typed[name] = getattr(args, name)
        if Path(word).is_file() or Path(word).suffix == ".mlpackage":
            continue
        from harness.fixtures.subjects import locate

        if (found := locate(str(word), args.progress)) is None:
            continue
        args.located[name] = found
        setattr(args, name, type(word)(found.path))
        for key, value in found.files.items():
            if key in args and getattr(args, key) is None:
                setattr(args, key, value)
    for name in names:
        open_artifact(getattr(args, name))


class _Parser(argparse.ArgumentParser):
    """Names what is nearest to an unknown command, choice, or option among `words`."""

    words: Sequence[str] = ()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = did_you_mean(str(value), map(str, action.choices or ()))
            sentence = f"{error.message}; {hint}" if hint else error.message
            raise argparse.ArgumentError(action, sentence.rstrip()) from None

    def error(self, message: str) -> NoReturn:
        known = [name for action in self._actions for name in action.option_strings]
        given = {word.partition("=")[0] for word in self.words if word.startswith("--")}
        unknown = [word for word in sorted(given) if not any(k.startswith(word) for k in known)]
        hints = "".join(
            f"; {word}: {hint}" for word in unknown if (hint := did_you_mean(word, known))
        )
        super().error(message + hints.rstrip())


class _Completion(argparse.Action):
    """Prints the completion script of a shell."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        import shtab

        print(shtab.complete(parser, shell=str(values)))
        parser.exit()


def _parsed(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="harness",
        description="Check, execute and measure Core ML language models exported by ExecuTorch.",
    )
    parser.add_argument("--version", action="version", version=f"harness {__version__}")
    shells = ("bash", "zsh", "tcsh")
    how = "print what completes commands in a shell: source <(harness --completion bash)"
    parser.add_argument("--completion", choices=shells, action=_Completion, help=how)
    is_whole = any(word.startswith("--c") for word in argv[:1])
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        help_text = command.description
        subparser = subparsers.add_parser(name, help=help_text, description=help_text)
        if name != chosen and not is_whole:  # the others' arguments may need slow imports
            continue
        command.add_arguments(subparser)
        if not command.passes_on:
            subparser.words = argv
            subparser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
            subparser.add_argument(
                "-v", "--verbose", action="store_true", help="show the libraries' own warnings, too"
            )
    args, words = parser.parse_known_args(argv)
    if COMMANDS[args.command].passes_on:
        # Lines of progress would break those of the other program in a log.
        shows = is_terminal(sys.stdout) and is_terminal(sys.stderr)
        args.quiet, args.verbose = not shows or not _QUIET.isdisjoint(words), True
        args.words = [*vars(args).get("words", ()), *words]
    elif words:
        subparsers.choices[args.command].error(f"unrecognized arguments: {' '.join(words)}")
    return args

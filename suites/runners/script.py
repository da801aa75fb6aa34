"""Starts ExecuTorch's scripts with what they need: a version, an artifact, a tokenizer, prompts."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from harness.checks import Check
from harness.checks.accuracy import tolerances, top_agreement
from harness.child import Child
from harness.errors import CallTimeoutError, CrashError, HarnessError
from harness.export.environments import Environment
from harness.export.executorch import python_path_of
from harness.export.exporters import Exporter
from harness.fixtures.cache import exported, fixture
from harness.fixtures.grammar import documents
from harness.generate import generate
from harness.generate.layout import ModelLayout
from harness.generate.tokenizer import Tokenizer, load_tokenizer
from harness.results import Finding
from harness.subject import Subject
from harness.suites.runners.places import Judged, Run, Wanted, judge, merged

LLAMA = "executorch.examples.apple.coreml.llama"
SCRIPTS = "executorch.examples.apple.coreml.scripts"
RUNNERS = {
    "single": f"{LLAMA}.run_static_llm",
    "multifunction": f"{LLAMA}.run_static_llm_multifunction",
}
POLICY = "strict"
RUNTIME = f"mil:{POLICY}"  # of our generator: the stand-in's
_SECONDS = 300.0
_SEED = 20_26
_LONGEST_BRANCH = 16  # tokens that lookahead may give beyond those that were asked for


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as the scripts get it; `config` is what `--tokenizer_config` names."""

    path: Path
    config: Path | None
    stops: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Return the ids that our tokenizer gives."""
        return self._loaded.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text that our tokenizer gives."""
        return self._loaded.decode(ids)

    @cached_property
    def _loaded(self) -> Tokenizer:
        return load_tokenizer(self.path)

    def piece(self, token: int) -> str:
        """Return the text by which a vocabulary names a token."""
        name: str = self._names[token]
        return name

    @cached_property
    def _names(self) -> dict[int, str]:
        if self.path.suffix == ".json":
            from tokenizers import Tokenizer

            names = Tokenizer.from_file(str(self.path)).get_vocab(with_added_tokens=True)
            return {token: name for name, token in names.items()}
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_file=str(self.path))
        return {token: processor.id_to_piece(token) for token in range(processor.vocab_size())}

    def prompt(self, length: int, start: int = 0) -> str:
        """Return a text of `length` tokens, cut from sayings; HarnessError where none is found."""
        text = " ".join(documents(_SEED + start, 40))
        for end in range(len(text)):
            if len(self.encode(text[:end])) == length:
                return text[:end]
        raise HarnessError(f"{self.path}: no text of {length} tokens was found")


class Scripts:
    """Runs the scripts of one ExecuTorch, in a child process that starts with the first one."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self._environment = environment
        self._folder = folder
        self._stack = ExitStack()

    def close(self) -> None:
        """End the child."""
        self._stack.close()

    def source(self, module: str) -> Path:
        """Return the file of a script."""
        return self._environment.root.joinpath(*module.split(".")[1:]).with_suffix(".py")

    @cached_property
    def _child(self) -> Child:
        path = self._stack.enter_context(python_path_of(self._environment))
        variables = {"PYTHONPATH": path, "HARNESS_POLICY": POLICY, "OMP_WAIT_POLICY": "PASSIVE"}
        python = str(self._environment.python or sys.executable)
        name = "harness.suites.runners.worker"
        return self._stack.enter_context(
            Child(name, self._environment.label, variables, python=python)
        )

    def __call__(self, module: str, *arguments: object, fault: str | None = None) -> Run:
        """Run a script to its end.

        Raises CrashError and CallTimeoutError when the script ends its process or hangs.
        """
        words = [str(argument) for argument in arguments]
        record = self._folder / "record.pt"
        request = {
            "module": module,
            "arguments": words,
            "fault": fault,
            "folder": str(self._folder),
            "record": str(record),
        }
        doing = f"asked to run {module.rpartition('.')[2]}"
        try:
            told = self._child.ask(request, doing, _SECONDS)
        except (CrashError, CallTimeoutError):
            self.close()
            del self._child  # the next script gets another process
            raise
        kept = torch.load(record, weights_only=True)
        record.unlink()
        return Run(**told, **kept)


class Bench:
    """One artifact under one ExecuTorch's runner, beside our generator and the oracle."""

    def __init__(
        self, scripts: Scripts, exporter: Exporter, model: str, mode: str, folder: Path
    ) -> None:
        self.scripts, self.mode, self.folder = scripts, mode, folder
        self.exporter, self.model = exporter, model
        self.source = fixture(model)

    @cached_property
    def subject(self) -> Subject:
        """The export with its checkpoint."""
        options = replace(self.source.options, mode=self.mode)
        path = exported(self.model, options, exporter=self.exporter)
        return Subject(path, self.source.checkpoint, self.source.params, options)

    def with_options(self, **options: object) -> Bench:
        """Return a bench of the same model with other options of the export."""
        other = Bench(self.scripts, self.exporter, self.model, self.mode, self.folder)
        changed = replace(self.source.options, mode=self.mode, **options)  # type: ignore[arg-type]
        path = exported(self.model, changed, exporter=self.exporter)
        other.subject = Subject(path, self.source.checkpoint, self.source.params, changed)
        return other

    @cached_property
    def layout(self) -> ModelLayout:
        """The artifact's layout."""
        return self.subject.session(RUNTIME).layout

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The model's own tokenizer."""
        path = self.source.tokenizer
        if path.suffix == ".json":
            return self.tokenizer("own", {"bos_token": None, "eos_token": "<|im_end|>"})
        return Vocabulary(path, None, load_tokenizer(path).stop_tokens)

    def tokenizer(self, name: str, settings: dict[str, object]) -> Vocabulary:
        """Return the model's `tokenizer.json` with other settings beside it."""
        folder = self.folder / self.model / name
        folder.mkdir(parents=True, exist_ok=True)
        path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
        path.write_bytes(self.source.tokenizer.read_bytes())
        config.write_text(json.dumps(settings), encoding="utf-8")
        loaded = load_tokenizer(path)
        eos = loaded.vocabulary.id_of(str(settings["eos_token"]))
        return Vocabulary(path, config, frozenset() if eos is None else frozenset({eos}))

    def arguments(self, vocabulary: Vocabulary) -> list[object]:
        """Return the script's arguments that describe artifact and tokenizer."""
        options = self.subject.options
        assert options is not None
        given = ["--model", self.subject.artifact.path, "--params", self.source.params]
        given += ["--tokenizer", vocabulary.path, "--input_len", options.input_len]
        if vocabulary.config is not None:
            given += ["--tokenizer_config", vocabulary.config]
        if self.mode == "single":
            return [*given, "--cache_len", options.cache_len]
        return [*given, "--max_context_len", options.max_context_len]

    def run(
        self,
        prompt: str,
        n: int,
        *more: object,
        vocabulary: Vocabulary | None = None,
        fault: str | None = None,
    ) -> Run:
        """Run the mode's script greedily on a prompt; HarnessError where it does nothing."""
        given = self.arguments(vocabulary or self.vocabulary)
        given += ["--prompt", prompt, "--max_new_tokens", n]
        if "--temperature" not in more:
            given += ["--temperature", 0]
        return began(self.scripts(RUNNERS[self.mode], *given, *more, fault=fault))

    def wanted(
        self, prompt: str, n: int, vocabulary: Vocabulary, lookahead: bool = False
    ) -> Wanted:
        """Return what our generator does with a prompt."""
        ids = vocabulary.encode(prompt)
        session = self.subject.session(RUNTIME)
        more = _LONGEST_BRANCH if lookahead else 0
        tokens = [step.token for step in generate(session, ids, n + more, vocabulary.stops)]
        return Wanted(ids, tokens, n, vocabulary.stops, lookahead)

    def verdicts(
        self,
        prompts: Sequence[str],
        n: int,
        *more: object,
        vocabulary: Vocabulary | None = None,
        fault: str | None = None,
    ) -> Iterator[tuple[str, Judged, Run, Wanted]]:
        """Yield each prompt's name, the verdict on its run, the run, and what it must do."""
        words = vocabulary or self.vocabulary
        for prompt in prompts:
            wanted = self.wanted(prompt, n, words, "--lookahead" in more)
            run = self.run(prompt, n, *more, vocabulary=words, fault=fault)
            name = f"a prompt of {len(wanted.prompt)} tokens"
            yield name, judge(run, wanted, self.layout), run, wanted

    def findings(
        self,
        check: str,
        prompts: Sequence[str],
        n: int,
        *more: object,
        vocabulary: Vocabulary | None = None,
    ) -> Iterator[Finding]:
        """Judge the runs on prompts, place by place, and their tokens against the oracle."""
        verdicts = list(self.verdicts(prompts, n, *more, vocabulary=vocabulary))
        judged = ((name, verdict) for name, verdict, _, _ in verdicts)
        for place, count, wrong in merged(judged):
            yield Finding(check, place, not wrong, wrong, count)
        sound = [(run, want) for _, verdict, run, want in verdicts if verdict.wrong is None]
        if sound:
            yield self._against_the_oracle(check, sound)

    def _against_the_oracle(self, check: str, runs: list[tuple[Run, Wanted]]) -> Finding:
        """Compare the tokens of runs with the oracle's, wherever its margin allows."""
        decided = agreed = rows = 0
        for run, wanted in runs:
            logits, _, _ = self.subject.reference(torch.tensor(wanted.prompt + run.printed[:-1]))
            expected = logits[len(wanted.prompt) - 1 :]
            bound = max(tolerances(self.subject, RUNTIME).values()) * float(expected.abs().max())
            found = top_agreement(torch.tensor(run.printed), expected, bound)
            decided, agreed = decided + found.decided, agreed + found.agreed
            rows += found.rows
        message = f"{decided - agreed} of {decided} tokens are not the oracle's"
        facts = {"tokens": rows, "decided by the oracle": decided}
        return Finding(check, "oracle", agreed == decided, message, decided, facts=facts)


@dataclass(frozen=True)
class Scenario:
    """A check of a runner, the modes whose artifacts it runs, and the model."""

    check: Check[Bench]
    modes: tuple[str, ...] = ("single", "multifunction")
    fixture: str = "tiny"


def told(run: Run) -> str:
    """Return how a run ended, in words."""
    return f"exit status {run.status}{': ' if run.problem else ''}{run.problem}"


def began(run: Run) -> Run:
    """Return a run; HarnessError for status 0 without a prompt read: it did nothing."""
    if run.status == 0 and not run.prompts:
        raise HarnessError("the script ended with exit status 0 and had read no prompt")
    return run


def ended(run: Run) -> Run:
    """Return a run with status 0; a crash is not the defect that a known row names."""
    if run.status:
        raise HarnessError(told(run))
    return run


def printed_text(run: Run, prompt: str) -> str:
    """Return the text that a script printed after the prompt, without its notes in brackets."""
    line = "-" * 50
    body = run.stdout.partition(line)[2].rpartition(line)[0]
    text = body.partition(f"\n{prompt}")[2].removesuffix("\n")
    return re.sub(r"\n\[Using [^\n]*\n", "", text)


def folder_of(root: Path, label: str) -> Path:
    """Return a new folder below `root`, named after an exporter."""
    path = root / label.replace(os.sep, "_")
    path.mkdir(parents=True, exist_ok=True)
    return path

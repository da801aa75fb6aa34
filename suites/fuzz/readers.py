"""The readers that coverage-guided fuzzing feeds, by family: each takes a file's bytes.

A reader gives a result or raises HarnessError; anything else is a fault. To add one, write a
function that prepares it, yield its sound files in `corpora`, and add a row to `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from harness.artifact import Artifact, open_artifact
from harness.artifact.delegate import METADATA, PACKAGE
from harness.artifact.facts import artifact_facts
from harness.artifact.files import flatten
from harness.artifact.package import MANIFEST, WEIGHTS
from harness.artifact.pte import Pte
from harness.checks import artifact_checks
from harness.child import Child
from harness.errors import HarnessError
from harness.results import case_from_findings
from harness.subject import Subject
from harness.suites.fuzz import of_text
from harness.suites.fuzz.corpora import CORPORA, FOLDER, MULTI, PART, SINGLE, SMALL_PARAMS

Reader = Callable[[bytes], object]
Mutation = Callable[[bytes, Random], bytes]
_EXECUTES = ("fp16-range",)  # the only check without a runtime that executes the artifact
_TEXT = "a b <|im_end|> é\0"


@dataclass(frozen=True)
class Family:
    """A family: `prepare` takes the sources and a scratch folder, and returns the reader.

    `mutations` keep the file's structure; with `kinds`, the first byte chooses one of them.
    """

    prepare: Callable[[Path, Path], Reader]
    mutations: tuple[Mutation, ...] = ()
    kinds: bool = False

    def mutated(self, data: bytes, rng: Random) -> bytes:
        """Return data with a change; raises ValueError when no mutation is for such data."""
        head, body = (data[:1], data[1:]) if self.kinds else (b"", data)
        for mutation in rng.sample(self.mutations, len(self.mutations)):
            try:
                return head + mutation(body, rng)
            except Exception:  # data of another kind may make it fail in any way
                continue
        raise ValueError("no mutation is for such data")


def _judge(artifact: Artifact, template: Path) -> None:
    """Read all facts of an artifact, and run every check that executes nothing."""
    subject = Subject(template)
    subject.artifact = artifact
    refused: list[str] = []
    try:
        artifact_facts(artifact)
    except HarnessError as error:
        refused.append(str(error))
    for check in artifact_checks().values():
        if check.takes_runtime or check.name in _EXECUTES:
            continue
        try:
            if check.inapplicable(subject) is None:
                case_from_findings(check.findings(subject), suite="fuzz", check=check.name)
        except HarnessError as error:
            refused.append(str(error))
    if refused:
        raise HarnessError(f"{len(refused)} parts were refused, the first so: {refused[0]}")


def _pte(sources: Path, scratch: Path) -> Reader:
    path = scratch / "fuzzed.pte"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _judge(open_artifact(path), sources / SINGLE)

    return read


class _InPayload:
    """Puts changed files into the payload of a `.pte` whose tables are sound."""

    def __init__(self, template: Path) -> None:
        self._template = template
        artifact = open_artifact(template)
        assert artifact.pte is not None
        self._pte: Pte = artifact.pte
        self._files = {n: bytes(f) for n, f in artifact.bundles[0].files.items()}

    def read(self, payload: bytes) -> None:
        """Judge the `.pte` with another payload."""
        if not self._pte.named_data:
            return self.processed(payload)
        named = dict.fromkeys(self._pte.named_data, memoryview(payload))
        return self._judge(dataclasses.replace(self._pte, named_data=named))

    def processed(self, data: bytes) -> None:
        """Judge the `.pte` with other data in all of its delegates: a reference, or a payload."""
        view = memoryview(data)
        methods = {}
        for name, method in self._pte.methods.items():
            delegates = (dataclasses.replace(d, processed=view) for d in method.delegates)
            methods[name] = dataclasses.replace(method, delegates=tuple(delegates))
        self._judge(dataclasses.replace(self._pte, methods=methods))

    def _judge(self, pte: Pte) -> None:
        _judge(Artifact(self._template, pte, None), self._template)

    def with_file(self, name: str, data: bytes) -> None:
        """Judge the `.pte` with one other file in its payload."""
        self.read(flatten({**self._files, name: data}))

    def with_package_file(self, name: str, data: bytes) -> None:
        """Judge the `.pte` with one other file in the package of its payload."""
        self.with_file(f"{PACKAGE}/{name}", data)


def _package(sources: Path, scratch: Path) -> Reader:
    return _InPayload(sources / SINGLE).read


def _program(sources: Path, scratch: Path) -> Reader:
    single, multi = (_InPayload(sources / name) for name in (SINGLE, MULTI))
    spec = "Data/com.apple.CoreML/model.mlmodel"

    def read(data: bytes) -> None:
        single.with_package_file(spec, data)
        multi.with_package_file(spec, data)

    return read


def _blob(sources: Path, scratch: Path) -> Reader:
    holder = _InPayload(sources / SINGLE)
    return lambda data: holder.with_package_file(WEIGHTS, data)


def _metadata(sources: Path, scratch: Path) -> Reader:
    """Read `metadata.json`, a manifest, a `program.json`, and a reference."""
    single, multi = (_InPayload(sources / name) for name in (SINGLE, MULTI))
    folder = scratch / FOLDER
    shutil.copytree(sources / FOLDER, folder, dirs_exist_ok=True)

    def read(data: bytes) -> None:
        kind, content = data[:1], data[1:]
        if kind == b"M":
            single.with_package_file(MANIFEST, content)
        elif kind == b"p":
            (folder / "program.json").write_bytes(content)
            _judge(open_artifact(folder), sources / SINGLE)
        elif kind == b"r":
            multi.processed(content)
        else:
            (multi if b"methods" in content else single).with_file(METADATA, content)

    return read


def _params(sources: Path, scratch: Path) -> Reader:
    from harness.models.config import load_params

    path = scratch / "params.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        config = load_params(path)
        _ = config.weight_shapes, config.hugging_face_names

    return read


def _checkpoint(sources: Path, scratch: Path) -> Reader:
    from harness.models.checkpoint import load_checkpoint
    from harness.models.config import parse_params

    config = parse_params(SMALL_PARAMS)
    path = scratch / "checkpoint"
    (scratch / PART).write_bytes(next(CORPORA["checkpoint"](sources)))  # of an index

    def read(data: bytes) -> None:
        path.unlink(missing_ok=True)  # a tensor of an earlier one may still map it
        path.write_bytes(data)
        load_checkpoint(path, config)

    return read


class _SharedChild:
    """Stands for `Child`: one process serves all tokenizers and templates until it dies."""

    _kept: Child | None = None

    def __init__(self, module: str, what: str) -> None:
        kept = _SharedChild._kept
        if kept is None or not kept.end.alive:
            kept = _SharedChild._kept = Child(module, "the tokenizer's process")
        self.ask = kept.ask

    def __enter__(self) -> _SharedChild:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _use(path: Path) -> None:
    """Load a tokenizer, and use it for a text and a chat."""
    from harness.generate.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path)
    tokenizer.decode(tokenizer.encode(_TEXT, parse_special=True))
    if tokenizer.chat_template is not None:
        tokenizer.encode_chat(_TEXT)


def _tokenizer(sources: Path, scratch: Path) -> Reader:
    """Read a vocabulary, the settings beside one, a chat template, and prompts.

    Each is read by the child with limits that a command has, which serves until it dies.
    """
    from harness.cli.text import read_prompts
    from harness.fixtures.random_tokenizer import write_tokenizer
    from harness.generate import isolated

    folder = scratch / "tokenizer"
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder, 300)
    sound, other = folder / "tokenizer.json", scratch / "vocabulary"
    settings = {b"s": "tokenizer_config.json", b"g": "generation_config.json"}
    settings |= {b"t": "chat_template.jinja", b"m": "special_tokens_map.json"}
    prompts = scratch / "prompts.jsonl"
    vars(isolated)["Child"] = _SharedChild

    def read(data: bytes) -> None:
        kind, content = data[:1], data[1:]
        if kind == b"j":
            prompts.write_bytes(content)
            list(read_prompts([str(prompts)]))
        elif kind in settings:
            path = folder / settings[kind]
            before = path.read_bytes() if path.exists() else None
            path.write_bytes(content)
            try:
                _use(sound)
            finally:
                path.unlink() if before is None else path.write_bytes(before)
        else:
            other.write_bytes(content)
            _use(other)

    return read


def _stream(sources: Path, scratch: Path) -> Reader:
    """Read a result stream, draw it, and compare it with itself, as report and gate do."""
    from harness.measure import compare_runs
    from harness.report import junit_xml, run_table
    from harness.report.run_page import html_page
    from harness.results import read_run

    path = scratch / "run.jsonl"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        run = read_run(path)
        run_table(run), junit_xml(run), html_page(run)
        compare_runs(run, run)

    return read


def _settings(sources: Path, scratch: Path) -> Reader:
    """Read a `harness.toml`, and a file of known defects."""
    from harness.fixtures.project import FILE, _toml, read_project
    from harness.results import read_known

    def read(data: bytes) -> None:
        kind, content = data[:1], data[1:]
        path = scratch / ("known.toml" if kind == b"k" else FILE)
        path.write_bytes(content)
        if kind == b"k":
            read_known(path)
        else:
            read_project(path, _toml(path))

    return read


def _golden(sources: Path, scratch: Path) -> Reader:
    from harness.golden.files import read_golden

    artifact = open_artifact(sources / MULTI)

    def read(data: bytes) -> None:
        path = scratch / ("golden.npz" if data[:1] == b"z" else "golden.safetensors")
        path.write_bytes(data[1:])
        read_golden(path, artifact)

    return read


FAMILIES = {
    "pte": Family(_pte),
    "package": Family(_package),
    "program": Family(_program, (of_text.of_model,)),
    "blob": Family(_blob),
    "metadata": Family(_metadata, (of_text.of_json, of_text.of_reference), kinds=True),
    "params": Family(_params, (of_text.of_json,)),
    "checkpoint": Family(_checkpoint, (of_text.of_safetensors, of_text.of_zip, of_text.of_json)),
    "tokenizer": Family(_tokenizer, (of_text.of_json,), kinds=True),
    "stream": Family(_stream, (of_text.of_lines,)),
    "settings": Family(_settings, (of_text.of_toml,), kinds=True),
    "golden": Family(_golden, (of_text.of_safetensors, of_text.of_zip), kinds=True),
}

"""Every option of the runners; the other scripts: extraction, plans, the older runner."""

from __future__ import annotations

import ast
import hashlib
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from harness.artifact import Package
from harness.checks.run import check
from harness.files import cache_folder, locked
from harness.models.checkpoint import load_checkpoint
from harness.models.config import parse_params
from harness.models.model import Oracle
from harness.results import Finding
from harness.shim.asset import compile_model
from harness.suites.runners.places import Run
from harness.suites.runners.scenarios import HUGGING_FACE, sizes_of
from harness.suites.runners.script import LLAMA, RUNNERS, SCRIPTS, Bench, Scenario, told

EXTRACT, PLAN = f"{SCRIPTS}.extract_coreml_models", f"{SCRIPTS}.coreml_compute_plan"
EXPORT, RUN, RUN_LOOKAHEAD = f"{LLAMA}.export", f"{LLAMA}.run", f"{LLAMA}.run_lookahead"
UNITS = ("all", "cpu_and_gpu", "cpu_and_ne", "cpu_only")
_N = 6  # new tokens of a short text
_LENGTH, _CONTEXT = 8, 48  # of the older exporter's artifact


@check("flags")
def check_flags(bench: Bench) -> Iterator[Finding]:
    """Run every option that the script declares, one at a time: none changes a greedy text."""
    options = bench.subject.options
    assert options is not None
    words = bench.vocabulary
    prompt = words.prompt(7)
    small = sizes_of(3, 2, 2)
    base: list[object] = [*small, "--prompt", prompt]
    values: dict[str, list[object]] = {
        "-m": [bench.subject.artifact.path],
        "--model": [bench.subject.artifact.path],
        "-p": [bench.source.params],
        "--params": [bench.source.params],
        "-t": [words.path],
        "--tokenizer": [words.path],
        "--tokenizer_config": [words.config or words.path],  # sentencepiece reads none
        "--prompt": [prompt],
        "--max_new_tokens": [_N],
        "--temperature": [0.0],
        "--top_p": [0.5],
        "--input_len": [options.input_len],
        "--cache_len": [options.cache_len],
        "--max_context_len": [options.max_context_len],
        "--lookahead": [],
        **{str(flag): [value] for flag, value in zip(small[::2], small[1::2], strict=True)},
    }
    plain = bench.run(prompt, _N, *base)
    yield Finding("flags", "no option", plain.status == 0, told(plain), 1)
    for option in declared_options(bench, RUNNERS[bench.mode]):
        if option not in values:
            yield Finding("flags", option, False, "this suite gives it no value", 1)
            continue
        if option == "--lookahead" and bench.mode == "multifunction":
            continue  # see check_lookahead_multifunction
        run = bench.run(prompt, _N, *base, option, *values[option])
        same = run.status == 0 and run.printed[:_N] == plain.printed
        wrong = "" if same else f"{told(run)}; it printed {run.printed}, not {plain.printed}"
        yield Finding("flags", option, same, wrong, 1)


def declared_options(bench: Bench, module: str) -> list[str]:
    """Return the options that a script's source declares, in their order."""
    tree = ast.parse(bench.scripts.source(module).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [
        c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "add_argument"
    ]
    constants = [one for call in named for one in call.args if isinstance(one, ast.Constant)]
    return [str(one.value) for one in sorted(constants, key=lambda one: one.lineno)]


def _packages(bench: Bench) -> dict[str, Package]:
    """Return the artifact's packages by the digest of their files."""
    delegates = [d for one in bench.subject.artifact.delegates.values() for d in one]
    return {_digest(dict(d.bundle.package.files)): d.bundle.package for d in delegates}


def _digest(files: dict[str, memoryview] | dict[str, bytes]) -> str:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()


def _extracted(folder: Path) -> dict[str, Path]:
    """Return the folders of packages below a folder, by the digest of their files."""
    found = {}
    for manifest in folder.rglob("Manifest.json"):
        root = manifest.parent
        paths = [path for path in root.rglob("*") if path.is_file()]
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
        found[_digest(files)] = root
    return found


def _extract(bench: Bench, option: str = "-m") -> tuple[Run, dict[str, Path]]:
    folder = bench.folder / "extracted_coreml_models"
    shutil.rmtree(folder, ignore_errors=True)
    run = bench.scripts(EXTRACT, option, bench.subject.artifact.path)
    return run, _extracted(folder)


@check("extract")
def check_extract(bench: Bench) -> Iterator[Finding]:
    """Take the packages out of the artifact, file for file, each once."""
    wanted = _packages(bench)
    for option in ("-m", "--model_path"):
        run, found = _extract(bench, option)
        same = run.status == 0 and found.keys() == wanted.keys()
        wrong = f"{told(run)}; {len(found.keys() & wanted.keys())} of {len(wanted)} packages came"
        yield Finding("extract", option, same, wrong, len(wanted))


def _has_plan(bench: Bench) -> str | None:
    path = bench.scripts.source(PLAN)
    return None if path.is_file() else f"this ExecuTorch has no {path.name}"


@check("compute-plan", needs=(_has_plan,))
def check_plan_of_package(bench: Bench) -> Iterator[Finding]:
    """Tell the device of every operation of a package, with every option."""
    _, found = _extract(bench)
    digest, folder = next(iter(found.items()))
    path = shutil.copytree(folder, bench.folder / "one.mlpackage", dirs_exist_ok=True)
    package = _packages(bench)[digest]
    compiled = compile_model(str(path))
    for given in (path, compiled):
        yield from _plans(bench, Path(given), package)


@check("compute-plan-pte", needs=(_has_plan,))
def check_plan_of_program(bench: Bench) -> Iterator[Finding]:
    """Tell the device of every operation of a .pte, which the script's help promises."""
    package = next(iter(_packages(bench).values()))
    yield from _plans(bench, bench.subject.artifact.path, package)


def _plans(bench: Bench, path: Path, package: Package) -> Iterator[Finding]:
    for units in UNITS:
        more = ["--show_non_ane"] if units == "all" else []
        run = bench.scripts(PLAN, "--model_path", path, "--compute_units", units, *more)
        told_devices = run.stdout.count("CPU:")
        sound = run.status == 0 and told_devices > 0
        if more:
            operations = {
                one.type
                for name in package.functions
                for one in package.operations(name).operations
                if one.type != "const"
            }
            missing = [name for name in operations if name not in run.stdout]
            sound = sound and not missing
        yield Finding("compute-plan", f"{path.suffix} {units}", sound, told(run), 1)


def _older_export(bench: Bench) -> Path:
    """Return the artifact of the older exporter, made once and kept in the cache."""
    version = bench.exporter.version
    path = cache_folder("exports") / f"older-{bench.model}-{version}-{_LENGTH}-{_CONTEXT}.pte"
    if not path.exists():
        with locked(path, None):
            if not path.exists():
                files = ["-p", bench.source.params, "-c", bench.source.checkpoint]
                sizes = ["--seq_length", _LENGTH, "--max_seq_length", _CONTEXT]
                made = bench.folder / "older.pte"
                run = bench.scripts(EXPORT, "-n", made, *files, *sizes)
                assert run.status == 0, run.stderr
                shutil.copyfile(made, path)
    return path


def _piece_ids(bench: Bench, text: str) -> list[int]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(bench.source.tokenizer))
    ids: list[int] = processor.encode(text)
    return ids


def _fed(run: Run) -> list[int]:
    """Return the ids that the older runner fed, in order: inputs are tokens, position, length."""
    ids: list[int] = []
    for call in run.calls:
        tokens, _, length = call["inputs"][:3]
        ids += tokens[0, : int(length)].tolist()
    return ids


@check("run-py")
def check_run(bench: Bench) -> Iterator[Finding]:
    """Continue prompts by the older runner; the oracle chooses the same tokens."""
    path, params = _older_export(bench), bench.source.params
    config = parse_params(_scaled(bench))
    oracle = Oracle(config, load_checkpoint(bench.source.checkpoint, config, None))
    for length in (3, 8, 11):
        prompt = bench.vocabulary.prompt(length)
        given = ["-m", path, "-t", bench.source.tokenizer, "--prompt", prompt]
        run = bench.scripts(RUN, *given, "--temperature", 0, "--top_p", 0.5)
        yield Finding("run-py", f"{length} tokens: status", run.status == 0, told(run), 1)
        ids = _fed(run)
        start = len(_piece_ids(bench, f"<s>{prompt}"))
        if run.status or len(ids) <= start:
            continue
        logits = oracle(torch.tensor(ids))[0][start - 1 : -1]
        best = logits.topk(2, -1)
        decided = (best.values[:, 0] - best.values[:, 1]) > 0.05 * logits.abs().max()
        wrong = (best.indices[:, 0] != torch.tensor(ids[start:])) & decided
        message = f"{int(wrong.sum())} of {int(decided.sum())} tokens are not the oracle's"
        where = f"{length} tokens: oracle"
        yield Finding("run-py", where, not wrong.any(), message, int(decided.sum()))
    del params


def _scaled(bench: Bench) -> dict[str, object]:
    import json

    params: dict[str, object] = json.loads(bench.source.params.read_text(encoding="utf-8"))
    return {"use_scaled_rope": True, "rope_scale_factor": 8, **params}


@check("run-py-bos")
def check_run_bos(bench: Bench) -> Iterator[Finding]:
    """Feed BOS and the ids of the prompt, by the older runner."""
    prompt = bench.vocabulary.prompt(9)
    given = ["-m", _older_export(bench), "-t", bench.source.tokenizer, "--prompt", prompt]
    run = bench.scripts(RUN, *given, "--temperature", 0)
    wanted = bench.vocabulary.encode(prompt)
    have = _fed(run)[: len(wanted)]
    yield Finding("run-py-bos", "ids", have == wanted, f"it feeds {have}, not {wanted}", 1)


@check("run-py-last-position")
def check_run_last_position(bench: Bench) -> Iterator[Finding]:
    """Generate to the last position of the context, by the older runner."""
    prompt = bench.vocabulary.prompt(11)
    given = ["-m", _older_export(bench), "-t", bench.source.tokenizer, "--prompt", prompt]
    run = bench.scripts(RUN, *given, "--temperature", 0)
    fed = len(_fed(run))
    message = f"it feeds {fed} of {_CONTEXT} positions"
    yield Finding("run-py-last-position", "stop", fed >= _CONTEXT, message, 1)


def _lookahead(bench: Bench, *more: object) -> Run:
    prompt = bench.vocabulary.prompt(11)
    given = ["-t", bench.source.tokenizer, "--prompt", prompt, "--max_tokens", 16]
    sizes = ["--ngram_size", 3, "--window_size", 2, "--n_verifications", 2]
    return bench.scripts(RUN_LOOKAHEAD, *given, *sizes, *more)


@check("run-lookahead")
def check_run_lookahead(bench: Bench) -> Iterator[Finding]:
    """Continue a prompt by the older runner's lookahead, on the older exporter's artifact."""
    run = _lookahead(bench, "-m", _older_export(bench), "--ngrams_seed", "one two three four")
    yield Finding("run-lookahead", "status", run.status == 0, told(run), 1)


@check("run-lookahead-eager")
def check_run_lookahead_eager(bench: Bench) -> Iterator[Finding]:
    """Continue a prompt by the older runner's lookahead, on the eager model."""
    run = _lookahead(bench, *_eager(bench))
    yield Finding("run-lookahead-eager", "status", run.status == 0, told(run), 1)


@check("run-py-eager")
def check_run_eager(bench: Bench) -> Iterator[Finding]:
    """Print the same text by the older runner's eager model and by its artifact."""
    prompt = bench.vocabulary.prompt(11)
    given = ["-t", bench.source.tokenizer, "--prompt", prompt, "--temperature", 0]
    runs = [
        bench.scripts(RUN, *given, *more) for more in (["-m", _older_export(bench)], _eager(bench))
    ]
    texts = [run.stdout.partition(prompt)[2].partition("\n")[0] for run in runs]
    same = not any(run.status for run in runs) and texts[0] == texts[1]
    message = f"{told(runs[1])}; {texts[0]!r} and {texts[1]!r}"
    yield Finding("run-py-eager", "text", same, message, 1)


def _eager(bench: Bench) -> list[object]:
    return [
        *("--use_eager", "-p", bench.source.params, "-c", bench.source.checkpoint),
        *("--dtype", "fp32", "--seq_length", _LENGTH, "--max_seq_length", _CONTEXT),
        *("--cache_size", _CONTEXT - _LENGTH),
    ]


_older = partial(Scenario, modes=("single",))
TOOLS = (
    Scenario(check_flags),
    Scenario(check_flags, fixture=HUGGING_FACE),
    Scenario(check_extract),
    Scenario(check_plan_of_package),
    Scenario(check_plan_of_program),
    _older(check_run),
    _older(check_run_bos),
    _older(check_run_last_position),
    _older(check_run_eager),
    _older(check_run_lookahead),
    _older(check_run_lookahead_eager),
)

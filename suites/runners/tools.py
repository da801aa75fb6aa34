"""Every option of the runners; the other scripts: extraction and compute plans."""

from __future__ import annotations

import ast
import hashlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from harness.artifact import Package, open_artifact
from harness.checks.run import check
from harness.errors import HarnessError
from harness.results import Finding
from harness.runtimes import get_runtime
from harness.shim.asset import compile_model
from harness.suites.runners.places import Run
from harness.suites.runners.scenarios import HUGGING_FACE, sizes_of
from harness.suites.runners.script import RUNNERS, RUNTIME, SCRIPTS, Bench, Scenario, told

EXTRACT, PLAN = f"{SCRIPTS}.extract_coreml_models", f"{SCRIPTS}.coreml_compute_plan"
EXPORT = f"{SCRIPTS}.export"  # of small models, not of language models
UNITS = ("all", "cpu_and_gpu", "cpu_and_ne", "cpu_only")
_N = 6  # new tokens of a short text


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
    printed = plain.status == 0 and bool(plain.printed)
    yield Finding("flags", "no option", printed, told(plain), 1)
    options_ = declared_options(bench, RUNNERS[bench.mode])
    yield Finding("flags", "options", "--prompt" in options_, f"only {options_} were found", 1)
    for option in options_:
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


def covered(bench: Bench, check: str, module: str, commands: Iterable[Sequence[object]]) -> Finding:
    """Require that each option which a script declares is in one of the commands."""
    words = {str(word) for command in commands for word in command}
    options = declared_options(bench, module)
    missing = [name for name in options if name not in words]
    message = f"this suite never gives {', '.join(missing)}"
    return Finding(check, "options", bool(options) and not missing, message, len(options))


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
    run, found = _extract(bench)
    if not found:
        raise HarnessError(f"{told(run)}; it extracted no package")
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
        if run.status == 0 and not run.stdout:
            raise HarnessError(
                f"{path.name}: the script ended with exit status 0 and printed nothing"
            )
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


_SMALL: dict[str, tuple[str, list[object]]] = {
    "by the partitioner": (
        "mul_coreml_cpu_only.pte",
        [
            *("-m", "mul", "-c", "cpu_only", "-precision", "float32"),
            *("--use_partitioner", "--generate_etrecord"),
        ],
    ),
    "lowered whole": (
        "mul_coreml_cpu_and_ne.pte",
        [
            *("--model_name", "mul", "--compute_unit", "cpu_and_ne"),
            *("--compute_precision", "float16", "--save_processed_bytes", "--generate_etrecord"),
        ],
    ),
    "with dynamic shapes": (
        "mul_coreml_all.pte",
        ["-m", "mul", "--use_partitioner", "--dynamic_shapes"],
    ),
    "compiled": ("mul_compiled_coreml_all.pte", ["-m", "mul", "--compile"]),
    "by pybindings": ("mul_coreml_all.pte", ["-m", "mul", "--run_with_pybindings"]),
}


@check("small-export")
def check_small_export(bench: Bench) -> Iterator[Finding]:
    """Export a product by the general `export.py`, with each option; the program multiplies."""
    yield covered(bench, "small-export", EXPORT, [command for _, command in _SMALL.values()])
    inputs = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1)).unbind()
    for name, (output, command) in _SMALL.items():
        run = bench.scripts(EXPORT, *command)
        path = bench.folder / output
        if name == "by pybindings" and sys.platform != "darwin":  # which run what it exported
            refused = run.status != 0 and "pybindings" in run.problem
            yield Finding("small-export", name, refused, told(run), 1)
            continue
        if run.status:
            yield Finding("small-export", name, False, told(run), 1)
            continue
        try:
            method = get_runtime(RUNTIME).load(open_artifact(path), "forward")
        except HarnessError as error:  # only Core ML executes a compiled model
            compiled = name == "compiled" and "holds a compiled model" in str(error)
            yield Finding("small-export", name, compiled, str(error), 1)
            continue
        (product,) = method(*inputs)
        off = float((product - inputs[0] * inputs[1]).abs().max())
        yield Finding("small-export", name, off < 4e-3, f"it is off by {off:.3g}", product.numel())


TOOLS = (
    Scenario(check_flags),
    Scenario(check_flags, fixture=HUGGING_FACE),
    Scenario(check_extract),
    Scenario(check_plan_of_package),
    Scenario(check_plan_of_program),
    Scenario(check_small_export, ("single",)),
)

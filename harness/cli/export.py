"""`harness models`, `init`, `exporters` and `export`: what there is, and how it is exported."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.output import print_fitted
from harness.errors import HarnessError
from harness.text import params_beside, printable

if TYPE_CHECKING:
    from harness.export.exporters import Exporter
    from harness.export.options import ExportOptions


def add_models_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness models`."""
    parser.add_argument("--all", action="store_true", help="list each model of the suites, too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def models(args: argparse.Namespace) -> int:
    """Print the subjects with the options of their exports, and return 0."""
    from harness.fixtures import all_models

    named = all_models().values()
    if args.json:
        rows = [
            {
                "name": model.name,
                "description": model.description,
                "options": None if "artifact" in model.files else model.options.as_dict(),
                "files": {key: str(path) for key, path in model.files.items()},
            }
            for model in named
        ]
        print(json.dumps(rows, indent=2))
        return 0
    table = [
        (
            model.name,
            model.description,
            "-"
            if "artifact" in model.files
            else f"{model.options.max_context_len} / {model.options.input_len}",
        )
        for model in named
    ]
    if not args.all:
        table = _folded(table)
    print_fitted(table, ("model", "what it is", "context / input"), column=1)
    return 0


def _folded(table: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Return the rows of a table of models; those of each family of the suites become one."""
    from harness.fixtures.matrix import matrix
    from harness.fixtures.varied import VARIED

    for what, family in (
        ("small models of other weights, sizes and architectures", VARIED),
        ("models in which each pair of sizes and options occurs", matrix()),
    ):
        first, *_, last = family
        folded = (f"{first} to {last}", f"{len(family)} {what}: --all lists them", "-")
        where = next(n for n, row in enumerate(table) if row[0] == first)
        table = [row for row in table if row[0] not in family]
        table.insert(where, folded)
    return table


def add_init_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness init`."""
    from harness.fixtures.project import FILE

    parser.add_argument(
        "-o", "--output", metavar="FILE", default=FILE, help=f"where to write it; default: {FILE}"
    )


def init(args: argparse.Namespace) -> int:
    """Write a commented file of settings, print its name, and return 0; an old one is kept."""
    from harness.files import partial_file
    from harness.fixtures.project import EXAMPLE

    output = Path(args.output)
    if output.exists():
        raise HarnessError(f"{output} exists already; edit it, or remove it first")
    with partial_file(output) as partial:
        partial.write_bytes(EXAMPLE.read_bytes())
    print(output)
    return 0


def add_exporters_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness exporters`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def exporters(args: argparse.Namespace) -> int:
    """Print the exporters that can be used without installing anything, and return 0."""
    from harness import __version__
    from harness.export.exporters import exporters_at_hand, our_exporter

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "version": found.version,
            "versions": dict(found.versions),
            "where": str(found.root),
            "state": found.problem() or "ready",
        }
        for name, found in exporters_at_hand()
    ]
    ours = our_exporter()
    missing = [name for name, version in ours.versions.items() if version is None]
    rows.append(
        {
            "name": ours.label,
            "version": __version__,
            "versions": dict(ours.versions),
            "where": str(Path(__file__).resolve().parents[1] / "export"),
            "state": f"it lacks {', '.join(missing)}" if missing else "ready",
        }
    )
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = [
        (r["name"], r["version"], r["versions"]["torch"] or "-", r["state"], r["where"])
        for r in rows
    ]
    print_fitted(table, ("exporter", "version", "torch", "state", "where"), column=4)
    return 0


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `harness export`; an option that is not given stays absent."""
    from harness.export import environments
    from harness.export.options import CHOICES
    from harness.fixtures import MODELS

    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="NAME", help=f"one of {', '.join(MODELS)}")
    source.add_argument("--checkpoint", metavar="C", help="weights: .pth, safetensors, or folder")
    parser.add_argument(
        "--params", metavar="P", help="its params.json or config.json (default: the one beside C)"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="the .pte or folder to write"
    )
    parser.add_argument(
        "--exporter",
        metavar="NAME",
        default="executorch",
        help=f"executorch (the installed one, or else {environments.DEFAULT}, fetched once), "
        "executorch@VERSION, executorch@PATH (a Python, a virtual environment, a checkout), each "
        "to a .pte; or coreml, ours, to a folder of packages; default: executorch",
    )
    for name, choices in CHOICES.items():
        _option(parser, name, choices=choices)
    for name in ("input_len", "max_context_len", "max_splits"):
        _option(parser, name, type=int, metavar="N")
    _option(parser, "target_split_size", type=_whole_or_none, metavar="N|none")
    _option(parser, "embedding_quantize", type=_text_or_none, metavar="B,G|none")
    parser.add_argument(
        "--no-graph-breaks",
        dest="graph_breaks",
        action="store_false",
        default=argparse.SUPPRESS,
        help="lower the model in one partition",
    )


def export(args: argparse.Namespace) -> int:
    """Write the artifact, print its name, its size and who exported it, and return 0.

    Options that leave the artifact as it is without them are reported on standard error.
    """
    from harness.export.options import ExportOptions

    output = Path(args.output)
    names = [field.name for field in dataclasses.fields(ExportOptions)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if args.exporter == "coreml" and output.suffix in (".pte", ".mlpackage"):
        raise HarnessError(
            f"-o {output}: the exporter coreml writes a folder of packages; name one that does not "
            f"end in {output.suffix}"
        )
    if args.model is not None:
        exporter = _export_model(args, given, output)
    else:
        options, params = ExportOptions(**given), args.params or params_beside(args.checkpoint)
        _report_ignored(options, params, given)
        _report_context(options, params)
        exporter = _exporter(args)
        exporter.export(args.checkpoint, params, options, output, args.progress)
    by = f"{exporter.kind} {exporter.version}" if exporter.version else f"{exporter.kind}, ours"
    print(f"{output}: {_size(output):,} bytes, exported by {by}")
    return 0


def _exporter(args: argparse.Namespace) -> Exporter:
    """Return the exporter that was named; what it must fetch is said at once."""
    from harness.export import environments
    from harness.export.exporters import get_exporter

    absent = importlib.util.find_spec(environments.EXECUTORCH) is None
    if args.exporter == environments.EXECUTORCH and absent and not args.quiet:
        version = environments.DEFAULT
        if all(found.version != version for found in environments.cached()):
            said = f"ExecuTorch is not installed: fetching {version} (18 MB) into the cache, once"
            print(f"harness export: {said}", file=sys.stderr, flush=True)
    return get_exporter(args.exporter, args.progress)


def _export_model(args: argparse.Namespace, given: dict[str, Any], output: Path) -> Exporter:
    """Copy the cached export of a named model, which is made first if it is not there.

    Return who exported it.
    """
    from harness.artifact.exported import EXPORT
    from harness.artifact.pte_reader import FILE_IDENTIFIER
    from harness.files import partial_file, partial_folder
    from harness.fixtures import cache, model

    if args.params is not None:
        raise HarnessError("--params goes with --checkpoint; a named model has its own")
    options = dataclasses.replace(model(args.model).options, **given)
    _report_ignored(options, cache.fixture(args.model, args.progress).params, given)
    exporter = _exporter(args)
    made = cache.exported(args.model, options, args.progress, exporter)
    if made.is_dir():
        with partial_folder(output, EXPORT, replace=True) as folder:
            shutil.copytree(made, folder, dirs_exist_ok=True)
        return exporter
    with partial_file(output, FILE_IDENTIFIER) as partial:
        shutil.copyfile(made, partial)
    return exporter


def _report_ignored(options: ExportOptions, params: str | Path, given: dict[str, Any]) -> None:
    from harness.export.options import ignored_options
    from harness.models.config import load_params

    for sentence in ignored_options(options, load_params(params), given):
        print(f"harness export: ignored: {printable(sentence)}", file=sys.stderr)


def _report_context(options: ExportOptions, params: str | Path) -> None:
    from harness.models.config import load_params

    positions, context = load_params(params).max_positions, options.max_context_len
    if positions is not None and context > positions:
        print(
            f"harness export: note: the context of {context:,} is longer than the {positions:,} "
            "positions of the model's configuration (--max-context-len)",
            file=sys.stderr,
        )


def _size(output: Path) -> int:
    files = output.rglob("*") if output.is_dir() else (output,)
    return sum(path.stat().st_size for path in files if path.is_file())


def _option(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """Add the argument of one export option, with its name and its default from the options."""
    from harness.export.options import ExportOptions

    default = "none" if (value := getattr(ExportOptions, name)) is None else value
    parser.add_argument(
        f"--{name.replace('_', '-')}",
        default=argparse.SUPPRESS,
        help=f"the exporter's default: {default}",
        **settings,
    )


def _whole_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def _text_or_none(text: str) -> str | None:
    return None if text == "none" else text

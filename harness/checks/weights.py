"""Checks that all is stored once and that weights equal the checkpoint's weights bit for bit.

When partitions do not match, functions stop sharing weights without an error (ExecuTorch 18531);
only the number of bytes shows it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence, Set

import numpy
import torch

from harness.artifact import Artifact, Bundle, Package, open_artifact
from harness.artifact.facts import duplicate_bytes, sharing, storage, weights_by_users
from harness.artifact.operands import weights_in_program
from harness.checks.containers import readable
from harness.checks.run import check
from harness.errors import ArtifactError
from harness.models.checkpoint import checkpoint_names
from harness.models.config import load_params
from harness.models.model import rope_tables, table_error
from harness.models.recognise import read_model
from harness.models.stream import same_values
from harness.results import Figure, Finding
from harness.subject import Subject, language_model, other_backends
from harness.text import listed

_STRATEGY = "multimethod_weight_sharing_strategy"
_MAX_NAMED = 5  # differences in a message
_MOST = 2 / 3  # of the weights differ: norms of two checkpoints may be equal
_SLACK = 0.001  # names and headers may differ a little between the two exports


def multifunction(subject: Subject) -> str | None:
    """Return why a single-method artifact is skipped, or None."""
    if not subject.is_language_model:
        if any(len(package.functions) > 1 for package in subject.artifact.packages):
            return None
        return "no package holds functions that could share weights"
    if subject.mode == "multifunction":
        return None
    return "a single-method artifact has no functions to share weights between"


def weight_sharing(subject: Subject) -> str | None:
    """Return why an artifact that was exported without weight sharing is skipped, or None."""
    options = subject.options
    unshared = options.weight_sharing == "none" if options else _is_unshared(subject.artifact)
    return "it was exported without weight sharing, as it was asked for" if unshared else None


def _is_unshared(artifact: Artifact) -> bool:
    """Return whether the artifact itself says that its exporter was told to share nothing.

    ExecuTorch keeps the strategy in each delegate's compile specs (`COMPILE_SPEC_KEYS` in
    `coreml_preprocess.py`); our exporter writes packages for each method.
    """
    if artifact.is_exported_folder:
        used = [delegate.bundle for calls in artifact.delegates.values() for delegate in calls]
        return len(used) == len(set(used))
    if artifact.pte is None:
        return False
    specs = [d.compile_specs for m in artifact.pte.methods.values() for d in m.delegates]
    return {value for pairs in specs for key, value in pairs if key == _STRATEGY} == {b"disabled"}


def unshared_export(subject: Subject) -> str | None:
    """Return why a subject without the same export with weight sharing off is skipped, or None."""
    needed = "needs the same export with weight sharing off, which `harness conformance` makes"
    return None if subject.unshared else needed


def checkpoint(subject: Subject) -> str | None:
    """Return why a subject without a checkpoint is skipped, or None."""
    return "needs the checkpoint and its params" if subject.expected_weights is None else None


@check("weight-sharing", needs=(multifunction, weight_sharing))
def check_sharing(subject: Subject) -> Iterator[Finding]:
    """Check that all functions share all weights, and that no content is stored twice."""
    for index, package in enumerate(subject.artifact.packages):
        shares, twice = sharing(package), duplicate_bytes(package)
        alone = shares.stored - shares.shared
        # Only a language model's decode and prefill need every weight.
        complete = (alone == 0 and len(package.functions) > 1) or not subject.is_language_model
        yield Finding(
            "weight-sharing",
            f"package {index}",
            ok=complete and twice == 0,
            message=f"{len(package.functions)} functions; {alone} bytes of weights are not "
            f"shared by all of them, {twice} bytes are in the package twice",
            comparisons=len(package.functions),
            code="S03",
            facts={"stored weight bytes": shares.stored, "used weight bytes": shares.used},
        )


@check("copies", needs=(readable,))
def check_copies(subject: Subject) -> Iterator[Finding]:
    """Check for copies of packages, unused packages, and weights outside the weight files.

    The facts are the bytes of weights in all packages, those that sharing saves (a weight that
    several functions use is stored once), and those that it could save: stored again, or unused.
    Those of each package are given by the functions that use them, too.
    """
    artifact = subject.artifact
    packages = artifact.packages
    originals: dict[bytes, int] = {}
    asked = weight_sharing(subject) is None
    for number, package in enumerate(packages):
        other = originals.setdefault(_content(package), number)
        size = _model_bytes(package)
        text = f"is a copy of package {other}; one of {size} bytes would do for both"
        copied = other != number and asked and any(map(package.weights, package.functions))
        if not subject.is_language_model:  # a module that a method calls twice is lowered twice
            copied = copied and not _common_methods(artifact, number, other)
        yield Finding("copies", f"package {number}", not copied, text, 1, code="S04")
        for name in sorted(package.functions):
            found = [(what, size) for what, _, size in weights_in_program(package, name)]
            told = ", ".join(f"'{what}' ({size} bytes)" for what, size in found[:5])
            text = f"its program holds weights that belong in the weight file: {told}"
            where = f"package {number}, function '{name}'"
            count = len(package.operations(name).operations)
            yield Finding("copies", where, not found, text, count, code="S05")
    yield from _not_called(artifact)
    weights = storage(artifact)
    facts = {
        "weight bytes": weights.stored,
        "bytes saved by sharing": weights.saved,
        "bytes stored again": weights.repeated,
        "unused bytes": weights.uncalled + weights.unreferenced,
    }
    users = _bytes_by_users(packages)
    yield Finding("copies", "the artifact", comparisons=len(packages), facts=facts | users)


def _bytes_by_users(packages: Sequence[Package]) -> dict[str, int]:
    """Return the bytes of weights by package and functions: `package 0 forward, prefill ...`."""
    sizes = Counter[str]()
    for number, package in enumerate(packages):
        for names, size in weights_by_users(package).items():
            sizes[f"package {number} {listed(names)} weight bytes"] += size
    return dict(sizes)


def _common_methods(artifact: Artifact, *numbers: int) -> bool:
    """Return whether a method calls all of these packages."""
    bundles = {artifact.bundles[number] for number in numbers}
    return any(
        bundles <= {delegate.bundle for delegate in delegates}
        for delegates in artifact.delegates.values()
    )


def _content(package: Package) -> bytes:
    """Return a digest of a package's specification and of the weights that it uses."""
    digest = hashlib.sha256(package.files[package.spec_path])
    references = {r for name in package.functions for r in package.weights(name)}
    for reference in sorted(references):
        digest.update(package.digest(*reference))
    return digest.digest()


def _not_called(artifact: Artifact) -> Iterator[Finding]:
    """Yield the packages, the data and the functions that no method uses."""
    if artifact.pte is None:
        return
    calls = [delegate for delegates in artifact.delegates.values() for delegate in delegates]
    used = {delegate.reference.key for delegate in calls if delegate.reference is not None}
    others = other_backends(artifact)  # these may use named data of their own
    for key in sorted(set(artifact.pte.named_data) - used) if not others else ():
        text = "no delegate refers to this named data"
        code = "S01" if _holds_package(artifact.pte.named_data[key]) else "S06"
        yield Finding("copies", f"named data '{key}'", False, text, 1, code=code)
    for what, size in artifact.pte.unused.items():
        text = f"nothing uses these {size} bytes; leave them out"
        code = "S01" if artifact.is_exported_folder else "S06"  # a folder's parts are packages
        yield Finding("copies", what, False, text, 1, code=code)
    called = {(delegate.bundle, delegate.program_function) for delegate in calls}
    for number, bundle in enumerate(artifact.bundles):
        names = sorted(bundle.package.functions)
        wrong = [name for name in names if (bundle, name) not in called]
        text = f"no method calls its functions {wrong}; leave them out"
        left_out = not set(wrong).isdisjoint(artifact.methods)
        code = "S10" if left_out else "S07"
        yield Finding("copies", f"package {number}", not wrong, text, len(names), code=code)


def _holds_package(data: memoryview) -> bool:
    """Return whether named data is a payload of a Core ML delegate."""
    try:
        return bool(Bundle(data, "named data").files)
    except ArtifactError:
        return False


@check("sharing-size", needs=(language_model, multifunction, weight_sharing, unshared_export))
def check_sharing_size(subject: Subject) -> Iterator[Finding]:
    """Compare the artifact's bytes with the same export's with sharing off.

    The sizes of the weights give the ratio that is possible.
    """
    assert subject.unshared is not None
    unshared = open_artifact(subject.unshared)
    packages = [bundle.package for bundle in subject.artifact.bundles]
    together = sum(_model_bytes(package) for package in packages)
    apart = sum(_model_bytes(bundle.package) for bundle in unshared.bundles)
    programs = sum(len(package.files[package.spec_path]) for package in packages)
    weights, functions = together - programs, len(subject.artifact.methods)
    assert subject.artifact.pte is not None
    assert unshared.pte is not None
    # Without sharing, each function has its own program and a copy of the weights.
    possible = together / (functions * weights + programs)
    yield Finding(
        "sharing-size",
        "all packages",
        ok=len(unshared.bundles) == functions * len(packages),
        message=f"{len(unshared.bundles)} packages without sharing, {len(packages)} with it",
        comparisons=len(unshared.bundles),
        code="S08",
        figures={
            "size over parts": Figure(
                together / apart, "", bound=round(possible + _SLACK, 4), floor=_SLACK
            )
        },
        facts={
            "multifunction bytes": subject.artifact.pte.size,
            "unshared bytes": unshared.pte.size,
        },
    )


def _model_bytes(package: Package) -> int:
    """Return the bytes of the specification and the weights, without manifest and debug files."""
    return sum(len(data) for name, data in package.files.items() if name.startswith("Data/"))


@check("weights", needs=(language_model, checkpoint), damaged="W05")
def check_weights(subject: Subject) -> Iterator[Finding]:
    """Check that every method's dequantized weights equal the quantized checkpoint's at 0 ULP.

    Both must have the same tensors: a layer that only one of them has is a difference.
    """
    expected = subject.expected_weights
    assert expected is not None
    methods = {
        method: read_model(subject.artifact, method)[1] for method in subject.artifact.methods
    }
    wrong: dict[str, dict[str, str]] = {method: {} for method in methods}
    counts = dict.fromkeys(methods, 0)
    for name in expected:
        want = expected[name]
        judged: dict[object, str] = {}  # by where a weight is stored: methods may share it
        for method, held in methods.items():
            if name in held:
                stored = held.makers[name]
                if stored not in judged:
                    judged[stored] = _difference(held[name], want)
                counts[method] += want.numel()
                wrong[method] |= {name: judged[stored]} if judged[stored] else {}
        expected.release()
    for method, held in methods.items():
        assert subject.checkpoint is not None
        names = checkpoint_names(subject.checkpoint, subject.held) if wrong[method] else {}
        different = [f"{_both(name, names)} ({text})" for name, text in wrong[method].items()]
        both = held.keys() & expected.keys()
        if len(different) > max(_MAX_NAMED, _MOST * len(both)):
            different = [_of_another(list(wrong[method]), len(both))]
        different = [*_on_one_side(held.keys(), expected.keys()), *different]
        yield Finding(
            "weights",
            f"method '{method}'",
            ok=not different,
            message=f"differ from the checkpoint's: {'; '.join(different[:_MAX_NAMED])}",
            comparisons=counts[method],
            facts={"tensors": len(expected)},
            code="W01",
        )


def _both(name: str, names: dict[str, str]) -> str:
    own = names.get(name, name)
    return name if own == name else f"{name}, {own} in the checkpoint"


def _of_another(wrong: Sequence[str], count: int) -> str:
    return (
        f"{listed(wrong, 3)}: {len(wrong)} of {count} weights differ, so this checkpoint is "
        "another than the exported one, or it was quantized in another way"
    )


def _on_one_side(held: Set[str], expected: Set[str]) -> Iterator[str]:
    """Say which weights only one side has, and of which architecture that is a sign."""
    for names, side in ((held - expected, "the artifact"), (expected - held, "the checkpoint")):
        if norms := sorted(name for name in names if "_norm_fn" in name):
            yield (
                f"{listed(norms, 3)}: only {side} has norms of queries and keys, as Qwen3 has and "
                "Llama lacks; the other is of another architecture"
            )
        yield from (f"{name} is in {side} only" for name in sorted(names - set(norms)))


def _difference(have: torch.Tensor, want: torch.Tensor) -> str:
    """Describe how a tensor differs from the expected one; "" when it does not."""
    if have.shape != want.shape:
        return f"shape {list(have.shape)}, not {list(want.shape)}"
    if same_values(have, want):
        return ""
    want = want.to(torch.float32)
    error = (have - want).abs()
    if not (wrong := int(error.count_nonzero())):  # NaN differs from everything
        return ""
    # Indices of all wrong values would take 16 bytes each: of an embedding, gigabytes.
    first = numpy.unravel_index(int((error != 0).numpy().argmax()), error.shape)
    at = tuple(map(int, first))
    return (
        f"{wrong:,} of {want.numel():,} values, by up to {error.max():.3g}; the first at "
        f"{list(at)} is {have[at]:.6g}, not {want[at]:.6g}"
    )


@check("tables", needs=(language_model, checkpoint), damaged="W05")
def check_tables(subject: Subject) -> Iterator[Finding]:
    """Check that the RoPE tables are within `table_error` of exact ones.

    The norms' epsilon must equal the checkpoint's, rounded.
    """
    assert subject.params is not None
    params = load_params(subject.params)
    cos, sin = subject.tables
    exact = rope_tables(params, cos.shape[0])
    allowed = table_error(cos)
    for name, table, want in (("cos", cos, exact[0]), ("sin", sin, exact[1])):
        over = ((table.double() - want).abs() / allowed).max()
        yield Finding(
            "tables",
            f"freqs_{name}",
            comparisons=table.numel(),
            figures={f"{name} error over allowed": Figure(float(over), "", bound=1.0)},
            code="W02",
        )
    held, rounded = subject.held.norm_eps, float(torch.tensor(params.norm_eps, dtype=cos.dtype))
    message = f"is {held}, not {rounded}"
    yield Finding("tables", "norm_eps", held == rounded, message, 1, code="W03")

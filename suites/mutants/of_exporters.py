"""Faults in our exporter: one line of its code is another while it exports a small model.

The artifact is a fresh one, of untrained weights. Where an export fails, `export` is the complaint.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness.errors import HarnessError
from harness.export import coreml, graph
from harness.export.options import ExportOptions
from harness.fixtures.varied import SEED, build
from harness.subject import Subject
from harness.suites.mutants.faults import (
    FOLDER,
    MULTI,
    NUMBERS,
    PTE,
    SINGLE,
    Complaints,
    Mutant,
    fault,
)
from harness.suites.mutants.judge import complaints
from harness.suites.runners.faults import Fault as Line
from harness.suites.runners.faults import broken

SIZES = {
    "dim": 64,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "hidden_dim": 96,
    "vocab_size": 320,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
OPTIONS = ExportOptions(input_len=8, max_context_len=32)


@functools.cache
def model(tied: bool) -> Path:
    """Return a folder with the checkpoint and the params of the model, made once."""
    folder = Path(tempfile.mkdtemp(prefix="harness-mutants-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build(folder, SIZES, "trained", tied, SEED)
    return folder


def judge_our_export(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Export by ours, with a line changed, and judge the folder."""
    with ExitStack() as stack:
        if mutant.mutate:
            stack.enter_context(changed(line_of(mutant)))
        return judge_exported(mutant, checks, coreml.export)


def judge_our_tied_export(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Export a model whose output layer is its embedding, quantized, by ours."""
    with ExitStack() as stack:
        if mutant.mutate:
            stack.enter_context(changed(line_of(mutant)))
        return judge_exported(mutant, checks, coreml.export, tied=True)


def line_of(mutant: Mutant) -> Line:
    """Return the line that a mutant changes."""
    assert mutant.mutate is not None
    line = mutant.mutate()
    assert isinstance(line, Line)
    return line


@contextmanager
def changed(line: Line) -> Iterator[None]:
    """Change a line of ours; a function of `graph` is changed in its table, too."""
    name = line.function.partition(":")[2]
    before = dict(graph.STEPS)
    with broken(line):
        if name in before and line.function.startswith(graph.__name__):
            graph.STEPS[name] = getattr(graph, name)
        try:
            yield
        finally:
            graph.STEPS.update(before)


def judge_exported(
    mutant: Mutant, checks: Collection[str], export: Callable[..., Path], tied: bool = False
) -> Complaints:
    """Export the model and judge the artifact."""
    options = replace(OPTIONS, mode=mutant.mode)
    files = model(tied) / "checkpoint.pth", model(tied) / "params.json"
    path = mutant.folder / f"broken{mutant.kind if mutant.kind in PTE else ''}"
    (working := mutant.folder / "working").mkdir()
    try:
        with chdir(working):
            export(*files, options, path)
    except HarnessError as error:
        return {"export": (str(error),)}
    judged = [name for name in checks if name not in ("export", "working folder")]
    found = dict(complaints(Subject(path, *files, options), judged))
    if left := sorted(one.name for one in working.iterdir()):
        found["working folder"] = (f"the export left {left} in the folder where it was started",)
    return found


def ours(function: str, old: str, new: str) -> Callable[[], Line]:
    """Return what makes a line of our exporter."""
    return lambda: Line("", f"harness.export.{function}", old, new)


CACHES = {"parity": "caches error is"}
row = partial(fault, room="exporter", judge=judge_our_export, kinds=FOLDER, tested=(), modes=SINGLE)
row("our RoPE turns the other way", NUMBERS | {"roles": "rotat"})(
    ours("graph:_rotate", "even * cos - odd * sin", "even * cos + odd * sin")
)
row("our RoPE of halves", NUMBERS, "ET 11808")(
    ours("graph:_rotate", "x[..., ::2], x[..., 1::2]", "x.chunk(2, -1)")
)
row(
    "our attention without its mask",
    {"roles": "input 1, a mask: cache position 0 moves outputs though its column is closed"},
)(ours("graph:_attend", " + mask)", ")"))
row("our attention's scale", NUMBERS)(ours("graph:_attend", "head_dim**-0.5", "head_dim**-0.4"))
row("our groups of heads crossed", NUMBERS)(
    ours(
        "graph:_attend",
        "q.reshape(1, n_kv_heads, -1, head_dim)",
        "q.roll(1, 1).reshape(1, n_kv_heads, -1, head_dim)",
    )
)
row("our new keys before cached ones", NUMBERS)(
    ours("graph:block", "torch.cat((k_cache, k), 2)", "torch.cat((k, k_cache), 2)")
)
row("our keys and values swapped in the outputs", CACHES)(
    ours("graph:block", '["feed_forward.w2.weight"]), k, v', '["feed_forward.w2.weight"]), v, k')
)
row("our GELU for SiLU", NUMBERS)(ours("graph:block", "F.silu(", "F.gelu("))
row("our residual left out", NUMBERS)(
    ours("graph:block", "x = x + _linear(_attend(", "x = _linear(_attend(")
)
row("our last norm left out", {"parity": "not recognised as a Llama or Qwen3: .* 6 norms"})(
    ours("graph:head", 'x = rms_norm(x, weights["norm.weight"][0], config.norm_eps)', "pass")
)
row("our embedding scaled", NUMBERS)(
    ours(
        "graph:embedding",
        "(F.embedding(tokens, table),)",
        "(F.embedding(tokens, table) * config.dim**0.5,)",
    )
)
row("our epsilon of another model", {"tables": "norm_eps: is"})(
    ours("graph:rms_norm", "torch.tensor(eps, ", "torch.tensor(1e-3, ")
)
row(
    "our logits of the padding",
    {"roles": "last_valid_token_pos: input 10: later tokens move the logits of position 0"},
    modes=MULTI,
)(ours("graph:head", "x = x.index_select(1, last_valid_token_pos)", "x = x[:, -1:]"))
row(
    "our sharing by another index",
    {"weight-sharing": "package 0: 2 functions; [0-9]+ bytes of weights are not shared by all"},
    "ET 18531",
    modes=MULTI,
    room="exporter",
)(
    ours(
        "coreml:plan_packages",
        "zip(*(method.partitions for method in methods), strict=True)",
        "zip(methods[0].partitions, methods[1].partitions[::-1], strict=True)",
    )
)
row("our option of sharing ignored", {"weight-sharing": "1 functions;"}, "ET 22352", modes=MULTI)(
    ours("coreml:plan_packages", 'if weight_sharing == "none":', "if True:")
)
row("our quantized weights rescaled", {"weights": "differ from the checkpoint's"}, "CT 2776")(
    ours("weight_store:WeightStore.add", "quantize(values, ", "quantize(1.02 * values, ")
)
row(
    "our tied output layer rescaled",
    {"weights": "output.weight"},
    "ET 21856",
    judge=judge_our_tied_export,
)(
    ours(
        "weight_store:WeightStore.add",
        "data, scale = quantize(values, bits, group)",
        "data, scale = quantize(values * (2 if 'output' in piece.weight else 1), bits, group)",
    )
)
row("our export that writes where it was started", {"working folder": "left"}, "ET 14632")(
    ours(
        "coreml:_write",
        "path.parent.mkdir(parents=True)",
        "path.parent.mkdir(parents=True); Path('weights.tmp').touch()",
    )
)
row("our pairs of 4 bits exchanged", {"weights": "differ from the checkpoint's"})(
    ours(
        "weight_store:pack_int4",
        "(flat[::2] & 0xF) | (flat[1::2] << 4)",
        "(flat[1::2] & 0xF) | (flat[::2] << 4)",
    )
)
row("our quantization left out", {"weights": "differ from the checkpoint's: tok_embeddings"})(
    ours("weight_store:WeightStore.add", "if scheme is None:", "if True:")
)
row(
    "our tables too short",
    {"owners": "freqs_cos has 24 positions, but caches and input hold 32"},
    "ET 14630",
)(
    lambda: Line(
        "",
        "harness.models.model:rope_tables",
        "torch.arange(length",
        "torch.arange(length - 8",
    )
)
row("our cache rows paired with the next layer's", {"cache-rows": "is the key cache of layer"})(
    ours("folder:_of_method", 'outputs[f"new_k_{layer}"]', 'outputs[f"new_k_{(layer + 1) % 3}"]')
)
row("our metadata sorted by name", {"metadata-names": "metadata.json's order is"})(
    ours(
        "folder:_names",
        "tuple(value.name for value in partition.inputs)",
        "tuple(sorted(value.name for value in partition.inputs))",
    )
)
row("our described shapes reversed", {"metadata-names": "the program passes shape"})(
    ours("folder:_describe", "extend(value.shape)", "extend(value.shape[::-1])")
)
row(
    "our methods of twice the tokens",
    {"parity": r"prefill: input 0 \(tokens\) is int32 \[1, 16\]"},
    modes=MULTI,
)(
    ours(
        "plan:_plan",
        "values = _values(config, options, input_len)",
        "values = _values(config, options, 2 * input_len)",
    )
)

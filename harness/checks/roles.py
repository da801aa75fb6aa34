"""Proves by execution what the constants of an artifact say about the inputs of its methods.

Each check changes one input of a method on the reference runtime and compares which outputs move.
Two inputs of one shape that are exchanged raise no error; only the execution shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy

from harness.checks.containers import findings_at
from harness.checks.contract import LAST_POSITION, cache_rows
from harness.checks.probe import KIND_COLUMNS, Probe, RowMoves, differ, is_rotation
from harness.checks.run import check
from harness.generate.layout import described_methods
from harness.generate.phase import TOKENS_INPUT, ConstantReader
from harness.results import Finding
from harness.runtimes import REFERENCE
from harness.subject import Subject, language_model


@check("roles", needs=(language_model,), damaged="N01")
def check_roles(subject: Subject) -> Iterator[Finding]:
    """Prove by execution what each input of a method is, apart from the caches of its layers.

    Tokens: a token moves its own position and later ones, so that padding moves nothing. Mask: a
    closed column hides one position of the caches or one token, up to the declared cache length.
    Cosines and sines: they rotate keys. `last_valid_token_pos`: it chooses the row of the logits.
    """
    for probe in _probes(subject):
        for what, problems, comparisons, code in (
            ("mask", _mask_problems(probe), 4, "M21"),
            ("tokens", _token_problems(probe), probe.length, "M20"),
            ("cosines and sines", _rope_problems(probe), 2 * len(probe.rows), "M22"),
            (LAST_POSITION, _last_problems(probe), 2, "M23"),
        ):
            if what == LAST_POSITION and probe.phase.last_valid_token_pos is None:
                continue
            where = f"method '{probe.phase.method}', {what}"
            yield from findings_at(where, problems, code, comparisons)


def _probes(subject: Subject) -> Iterator[Probe]:
    """Yield a probe of each method, with the rows of `kv_cache_specs` in their declared order."""
    session = subject.session(REFERENCE)
    phases = {p.method: p for p in (session.layout.prefill, session.layout.decode)}
    reader = ConstantReader(subject.artifact.constants)
    for prefix, name in described_methods(subject.artifact.constants).items():
        rows, masks = cache_rows(reader, prefix), reader.table(f"{prefix}mask_specs", 2)
        vocabulary = session.layout.vocab_size
        yield Probe(session.methods[name], phases[name], rows, masks, vocabulary)


def _token_problems(probe: Probe) -> Iterator[str]:
    """Change the tokens from each of three positions on: nothing before them may move."""
    base = probe()
    if not all(bool(output.isfinite().all()) for output in base):
        yield "seeded inputs give NaN or infinity"
        return
    for start in sorted({0, probe.length // 2, probe.length - 1}):
        # Two ids may have equal embeddings, such as those that pad a vocabulary.
        tried = [probe({TOKENS_INPUT: probe.other_tokens(start, by=by)}) for by in (1, 2)]
        moved = set.union(*(probe.positions_moved(now, base) for now in tried))
        if earlier := [at for at in moved if at < start]:
            yield f"the token at position {start} moves keys or values of position {earlier[0]}"
        if still := set(range(start, probe.length)) - moved:
            yield f"input {TOKENS_INPUT}: the token at position {min(still)} moves no key or value"
        if probe.phase.full_logits and differ(tried[0][0][:, :start], base[0][:, :start]):
            yield f"the token at position {start} moves logits before it"


def _mask_problems(probe: Probe) -> Iterator[str]:
    """Close single columns of the masks: the position of a closed column may move nothing."""
    for index, cache_len in probe.masks:
        for column in sorted({0, cache_len - 1}) if cache_len else ():
            closed = probe.causal_masks()
            closed[index][..., column] = -numpy.inf
            changed = probe.changed_caches(cache_len, column)
            if any(map(differ, probe(closed | changed), probe(closed))):
                yield (
                    f"input {index}, a mask: cache position {column} moves outputs though its "
                    "column is closed"
                )
    if probe.length > 1:
        closed = probe.causal_masks()
        for index, cache_len in probe.masks:
            closed[index][:, 1:, cache_len] = -numpy.inf
        now, before = probe(closed | {TOKENS_INPUT: probe.other_tokens(0, 1)}), probe(closed)
        later = probe.positions_moved(now, before) - {0}
        # The keys and values of a first layer depend on no mask: the logits of later tokens do.
        if probe.phase.full_logits:
            rows = range(1, probe.length)
            later |= {at for at in rows if differ(now[0][:, at], before[0][:, at])}
        if later:
            columns = " and ".join(str(cache_len) for _, cache_len in probe.masks)
            yield (
                f"the first token moves position {min(later)} of the input though its column of "
                f"the masks, {columns}, is closed"
            )


def _rope_problems(probe: Probe) -> Iterator[str]:
    """Rotate by seeded angles: each update that moves must be the rotation of the one before."""
    old, angles = probe.unrotated(), probe.angles()
    new = probe(angles | probe.alone())
    cos, sin = angles[probe.phase.cos], angles[probe.phase.sin]
    keys = [(now, before) for now, before in probe.updates(new, old) if differ(now, before)]
    if not keys:
        yield f"inputs {probe.phase.cos} (cosines) and {probe.phase.sin} (sines) move no key"
        return
    if any(not is_rotation(now, before, cos, sin) for now, before in keys):
        opposite = all(is_rotation(now, before, cos, -sin) for now, before in keys)
        why = "the two are exchanged" if opposite else "they have another layout, or are others"
        yield (
            f"inputs {probe.phase.cos} (cosines) and {probe.phase.sin} (sines) do not rotate keys "
            f"by pairs of columns: {why}"
        )


def _last_problems(probe: Probe) -> Iterator[str]:
    """Ask for the first and the last row: only the tokens up to it move the logits."""
    index, end = probe.phase.last_valid_token_pos, probe.length - 1
    assert index is not None, "without it, the logits are those of every row"
    for position in sorted({0, end}):
        asked = {index: probe.position(position)}
        base = probe(asked)[0]
        own = probe(asked | {TOKENS_INPUT: probe.other_tokens(position, position + 1)})[0]
        if not differ(own, base):
            yield f"input {index}: token {position} does not move the logits of position {position}"
        if position == end:
            continue
        later = probe(asked | {TOKENS_INPUT: probe.other_tokens(position + 1)})[0]
        if differ(later, base):
            yield f"input {index}: later tokens move the logits of position {position}"


@check("cache-rows", needs=(language_model,), damaged="N01")
def check_cache_rows(subject: Subject) -> Iterator[Finding]:
    """Check that each row of `kv_cache_specs` pairs inputs and outputs of one layer's caches.

    Inputs and outputs are in layer order, so the four numbers of a row must have the same rank in
    their columns. ExecuTorch 1.4 sorts rows by the cache's name as text ("l10,h0" before "l2,h0")
    but numbers the outputs in layer order: with eleven or more layers, a runner that trusts the
    rows stores one layer's keys in another layer's cache.

    The layers are also proved by execution: a layer's cache moves the updates of later layers and
    of no other; keys depend on the rotation and values do not. Row i is one layer in all methods.
    """
    reader = ConstantReader(subject.artifact.constants)
    for prefix in described_methods(subject.artifact.constants):
        rows = cache_rows(reader, prefix)
        columns = list(zip(*rows, strict=True))[:4]
        ranks = zip(*(_ranks(column) for column in columns), strict=True)
        crossed = sum(len(set(row)) > 1 for row in ranks)
        yield Finding(
            "cache-rows",
            f"{prefix}kv_cache_specs",
            ok=crossed == 0,
            message=f"{crossed} of {len(rows)} rows pair one layer's input with another layer's "
            "output",
            comparisons=len(rows),
            facts={"crossed rows": crossed},
            code="M24",
        )
    yield from _proved_rows(subject)


def _ranks(column: tuple[int, ...]) -> list[int]:
    """Return the rank of each number in its column."""
    ranks = {number: rank for rank, number in enumerate(sorted(column))}
    return [ranks[number] for number in column]


def _proved_rows(subject: Subject) -> Iterator[Finding]:
    layers: list[Sequence[int | None]] = []
    for probe in _probes(subject):
        moves = {kind: probe.row_moves(kind) for kind in KIND_COLUMNS}
        problems = [*_kind_problems(probe), *_layer_problems(probe, moves)]
        compared = sum(found.compared for found in moves.values())
        where = f"method '{probe.phase.method}', executed"
        yield from findings_at(where, problems, "M25", compared)
        layers.append(moves["key"].layers)
    first = layers[0]
    for other in layers[1:]:
        pairs = [(a, b) for a, b in zip(first, other, strict=False) if None not in (a, b)]
        wrong = [number for number, (a, b) in enumerate(pairs) if a != b]
        yield Finding(
            "cache-rows",
            "rows of both methods",
            ok=not wrong,
            message=f"{len(wrong)} rows are one layer in one method and another in the other, the "
            f"first is row {wrong[0] if wrong else 0}: the methods share caches by row",
            comparisons=len(pairs),
            code="M26",
        )


def _kind_problems(probe: Probe) -> Iterator[str]:
    """Check that keys are keys: alone in view they do not matter, and the rotation moves them."""
    alone = probe.alone()
    turned = probe(alone)
    keys = {row[0]: probe.changed_cache(row[0]) for row in probe.rows}
    if any(map(differ, probe(alone | keys), turned)):
        for number, row in enumerate(probe.rows):
            if any(map(differ, probe(alone | {row[0]: keys[row[0]]}), turned)):
                yield f"row {number}: input {row[0]}, its key cache, acts as a value cache"
    plain = probe.unrotated()
    for number, row in enumerate(probe.rows):
        if differ(turned[row[3]], plain[row[3]]):
            yield f"row {number}: the rotation moves output {row[3]}, its update of values"
        elif not differ(turned[row[1]], plain[row[1]]) and bool(plain[row[1]].any()):
            yield f"row {number}: the rotation does not move output {row[1]}, its update of keys"


def _layer_problems(probe: Probe, moves: Mapping[str, RowMoves]) -> Iterator[str]:
    for kind, found in moves.items():
        column = KIND_COLUMNS[kind]
        for number, row in enumerate(probe.rows):
            layer, (low, high) = found.layers[number], found.update_layers(number)
            if layer is not None and not low <= layer <= high:
                span = f"{low}" if low == high else f"{low} to {high}"
                yield (
                    f"row {number}: input {row[column]} is the {kind} cache of layer {layer}, but "
                    f"output {row[column + 1]} is the update of layer {span}"
                )
    pairs = zip(moves["key"].layers, moves["value"].layers, strict=True)
    for number, (key, value) in enumerate(pairs):
        if None not in (key, value) and key != value:
            yield f"row {number}: the key cache is of layer {key}, the value cache of layer {value}"

"""Checks what an artifact's constants tell a runner: who fills each input, and what is missing.

The static runner finds a method's inputs and outputs by index; constants hold the indices.
`roles.py` proves them by execution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy

from harness.checks.run import check
from harness.generate.layout import described_methods
from harness.generate.phase import INTEGERS, LOGITS_OUTPUT, TOKENS_INPUT, ConstantReader
from harness.pte import Specs, method_signature
from harness.results import Finding
from harness.subject import Subject, language_model

NOT_IN_FILE = "not in the file"
NOTHING = "nothing"
LAST_POSITION = "last_valid_token_pos"
_LENGTHS = ("get_max_context_len", "get_max_seq_len")
_IDS = {"BOS": ("get_bos_id",), "EOS": ("get_eos_ids", "get_eos_id")}
_Owners = list[tuple[str, int]]  # who fills an input or reads an output, and its index


@check("owners", needs=(language_model,))
def check_owners(subject: Subject) -> Iterator[Finding]:
    """Check that each input and output of a method has exactly one owner.

    The constants own what they hold the index of. The runner owns the tokens, input 0, and the
    logits, output 0; and `last_valid_token_pos`, the one input without a constant.
    """
    reader = ConstantReader(subject.artifact.constants)
    unnamed = {}
    for prefix, name in described_methods(subject.artifact.constants).items():
        inputs, outputs = method_signature(subject.artifact, name)
        owners = _input_owners(reader, prefix)
        last = _last_position(owners, inputs)
        if last is not None:
            owners.append((f"the runner's {LAST_POSITION}", last))
            unnamed[name] = last
        for side, specs, owned in (
            ("input", inputs, owners),
            ("output", outputs, _output_owners(reader, prefix)),
        ):
            problems = list(_ownership(side, specs, owned))
            yield Finding(
                "owners",
                f"method '{name}', {side}s",
                ok=not problems,
                message="; ".join(problems),
                comparisons=len(specs),
                code="M10",
            )
        yield _cache_lengths(reader, prefix, name)
    yield from _sizes(subject, reader, unnamed)


def _input_owners(reader: ConstantReader, prefix: str) -> _Owners:
    owners = [("the runner's tokens", TOKENS_INPUT)]
    owners += [(f"{prefix}mask_specs", row[0]) for row in reader.table(f"{prefix}mask_specs", 2)]
    for name in (f"{prefix}freqs_{kind}_input_index" for kind in ("cos", "sin")):
        owners += [(name, row[0]) for row in reader.table(name, 1)]
    for number, row in enumerate(cache_rows(reader, prefix)):
        owners.append((f"{prefix}kv_cache_specs, row {number}, key", row[0]))
        owners.append((f"{prefix}kv_cache_specs, row {number}, value", row[2]))
    return owners


def _output_owners(reader: ConstantReader, prefix: str) -> _Owners:
    owners = [("the runner's logits", LOGITS_OUTPUT)]
    for number, row in enumerate(cache_rows(reader, prefix)):
        owners.append((f"{prefix}kv_cache_specs, row {number}, key", row[1]))
        owners.append((f"{prefix}kv_cache_specs, row {number}, value", row[3]))
    return owners


def cache_rows(reader: ConstantReader, prefix: str) -> tuple[tuple[int, ...], ...]:
    """Return the rows of `kv_cache_specs`: key in, key out, value in, value out, cache length."""
    return reader.table(f"{prefix}kv_cache_specs", 5)


def _last_position(owners: _Owners, inputs: Specs) -> int | None:
    """Return the index of `last_valid_token_pos`: the only input without an owner, if it fits."""
    owned = {index for _, index in owners}
    left = [index for index in range(len(inputs)) if index not in owned]
    if len(left) != 1 or inputs[left[0]].dtype not in INTEGERS or inputs[left[0]].shape != (1,):
        return None
    return left[0]


def _ownership(side: str, specs: Specs, owners: _Owners) -> Iterator[str]:
    """Yield a sentence for each index that has no owner, several owners, or does not exist."""
    for owner, index in owners:
        if not 0 <= index < len(specs):
            yield f"{owner} names {side} {index}, but there are {len(specs)}, numbered from 0"
    for index, spec in enumerate(specs):
        own = [owner for owner, owned in owners if owned == index]
        if not own:
            yield f"{side} {index} ('{spec.name}') has no owner: no constant names it"
        elif len(own) > 1:
            yield f"{side} {index} ('{spec.name}') has {len(own)} owners: {', '.join(own)}"


def _cache_lengths(reader: ConstantReader, prefix: str, method: str) -> Finding:
    """Check that there is a mask for the cache length of each row."""
    masks = [row[1] for row in reader.table(f"{prefix}mask_specs", 2)]
    rows = cache_rows(reader, prefix)
    wrong = [number for number, row in enumerate(rows) if row[4] not in masks]
    message = ""
    if wrong:
        message = (
            f"row {wrong[0]} of {prefix}kv_cache_specs has a cache of {rows[wrong[0]][4]} "
            f"positions, but {prefix}mask_specs has masks for {masks} only"
        )
    where = f"method '{method}', caches"
    return Finding("owners", where, not wrong, message, len(rows), code="M11")


def _sizes(
    subject: Subject, reader: ConstantReader, unnamed: Mapping[str, int]
) -> Iterator[Finding]:
    """Check lengths and ids that the file has, and report what it leaves to the runner's caller.

    Source of the names: ExecuTorch's `extension/llm/runner/constants.h`.
    """
    constants, positions = subject.artifact.constants, len(reader.frequencies("freqs_cos"))
    held = min(
        max((row[1] for row in reader.table(f"{prefix}mask_specs", 2)), default=0)
        + reader.integer(f"{prefix or 'forward_'}input_len")
        for prefix in described_methods(constants)
    )
    yield Finding(
        "owners",
        "the RoPE tables",
        ok=positions >= held,
        message=f"freqs_cos has {positions} positions, but caches and input hold {held}: a runner "
        "reads beyond the table",
        comparisons=1,
        code="M12",
    )
    vocabulary = reader.integer("vocab_size")
    problems = [
        f"{name} is {value}, but tables, caches and input hold {min(held, positions)} positions"
        for name in _LENGTHS
        for value in _integers(constants.get(name))
        if value != min(held, positions)
    ]
    problems += [
        f"{name} is {value}, outside the vocabulary of {vocabulary}"
        for names in _IDS.values()
        for name in names
        for value in _integers(constants.get(name))
        if not 0 <= value < vocabulary
    ]
    missing = [f"the context length ({min(held, positions)})"]
    missing = [] if any(name in constants for name in _LENGTHS) else missing
    missing += [what for what, names in _IDS.items() if not any(n in constants for n in names)]
    missing += [f"the index of {LAST_POSITION} in '{name}' ({at})" for name, at in unnamed.items()]
    yield Finding(
        "owners",
        "what else a runner needs",
        ok=not problems,
        message="; ".join(problems),
        comparisons=len(_LENGTHS) + len(_IDS),
        facts={NOT_IN_FILE: ", ".join(missing) or NOTHING},
        code="M13",
    )


def _integers(value: object) -> list[int]:
    """Return the integers of a constant: a number, several, or an array; [] of anything else."""
    if isinstance(value, tuple):
        return [number for item in value for number in _integers(item)]
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "iu":
        return [int(number) for number in value.flatten().tolist()]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []

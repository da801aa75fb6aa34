"""Mutations of the constant methods: tables, and the positions of caches and masks."""

from __future__ import annotations

from functools import partial

import numpy as np

from harness.suites.mutants.edit import Export, Mutation
from harness.suites.mutants.faults import NUMBERS, fault
from harness.suites.mutants.judge import judge_export

row = partial(fault, room="constants", judge=judge_export)
PREFIXES = {"single": ("",), "multifunction": ("decode_", "prefill_")}


def tensors(export: Export, name: str) -> list[np.ndarray]:
    """Return a constant of every phase; once when the phases share it."""
    mode = "single" if len(export.functions) == 1 else "multifunction"
    found = [export.constant(prefix + name) for prefix in PREFIXES[mode]]
    return list({array.ctypes.data: array for array in found}.values())


@row(
    "one row of a table",
    {"tables": "sin error over allowed is"},
    gate=r"constant freqs_sin: .*8 of 1,024 values differ.*\[20, 0\]: 0.913",
)
def one_table_row(export: Export) -> None:
    """Replace one row of the sines by the next."""
    sines = export.constant("freqs_sin")
    sines[20] = sines[21]


@row(
    "a table for another layout",
    {"tables": "cos error over allowed is"},
    gate=r"constant freqs_cos: .*889 of 1,024 values differ.*\[1, 1\]",
)
def interleaved_table(export: Export) -> None:
    """Repeat every value of the cosines, as for rotated neighbours: half of the angles are lost."""
    cosines = export.constant("freqs_cos")
    cosines[:] = np.repeat(cosines[:, : cosines.shape[1] // 2], 2, axis=1)


@row(
    "the tables' inputs swapped",
    NUMBERS | {"roles": "do not rotate keys .*exchanged"},
    gate=r"freqs_cos_input_index: .*\[0\]: 2 -> 3",
)
def cosines_for_sines(export: Export) -> None:
    """Swap the input positions of the cosines and the sines."""
    cosines, sines = (tensors(export, f"freqs_{name}_input_index") for name in ("cos", "sin"))
    for cos, sin in zip(cosines, sines, strict=True):
        cos[0], sin[0] = sin[0], cos[0]


def swap_in_rows(column: int) -> Mutation:
    """Swap a column of the first two rows of `kv_cache_specs`."""

    def mutate(export: Export) -> None:
        for rows in tensors(export, "kv_cache_specs"):
            rows[0, column], rows[1, column] = rows[1, column], rows[0, column]

    return mutate


def exchange_columns(one: int, other: int, rows: slice = slice(None)) -> Mutation:
    """Exchange two columns of `kv_cache_specs`, in some of its rows."""

    def mutate(export: Export) -> None:
        for table in tensors(export, "kv_cache_specs"):
            table[rows, [one, other]] = table[rows, [other, one]]

    return mutate


@row(
    "an index of two tables",
    {"owners": "input 2 .*has 2 owners: .*freqs_cos.*freqs_sin.*input 3 .*has no owner"},
    gate=r"freqs_sin_input_index: .*\[0\]: 3 -> 2",
)
def name_the_sines_twice(export: Export) -> None:
    """Give the sines' index the value of the cosines'."""
    for prefix in PREFIXES["single" if len(export.functions) == 1 else "multifunction"]:
        sines = export.constant(f"{prefix}freqs_sin_input_index")
        sines[:] = export.constant(f"{prefix}freqs_cos_input_index")


@row(
    "a longer mask",
    {"parity": "they must agree"},
    gate=r"mask_specs: .*1 of 2 values differ.*\[0, 1\]: \d+ -> \d+",
)
def longer_mask(export: Export) -> None:
    """Declare a mask that covers one position more than the cache has."""
    for rows in tensors(export, "mask_specs"):
        rows[0, 1] += 1


@row(
    "longer caches",
    {"parity": "mask_specs.* makes it"},
    gate=r"kv_cache_specs: .*4 of 20 values differ.*\[0, 4\]: \d+ -> \d+",
)
def longer_everything(export: Export) -> None:
    """Declare mask and caches with one position more than the program has."""
    longer_mask(export)
    for rows in tensors(export, "kv_cache_specs"):
        rows[:, 4] += 1


row(
    "a row's key and value inputs swapped",
    NUMBERS | {"cache-rows": "row 0: input 8, its key cache, acts as a value cache"},
    gate=r"kv_cache_specs: .*2 of 20 .*\[0, 0\]: 4 -> 8",
)(exchange_columns(0, 2, slice(1)))


row(
    "key and value inputs swapped",
    NUMBERS | {"cache-rows": "row 3: input 11, its key cache, acts as a value cache"},
    gate=r"kv_cache_specs: .*8 of 20 .*\[0, 0\]: 4 -> 8",
)(exchange_columns(0, 2))


row(
    "key and value updates swapped",
    NUMBERS | {"cache-rows": "row 0: the rotation moves output 1, its update of values"},
    gate=r"kv_cache_specs: .*8 of 20 .*\[0, 1\]: 1 -> 5",
)(exchange_columns(1, 3))


row(
    "two rows' key inputs swapped",
    NUMBERS | {"cache-rows": "row 0: input 5 is the key cache of layer 1, but output 1 is"},
    gate=r"kv_cache_specs: .*2 of 20 values differ.*\[0, 0\]: 4 -> 5",
)(swap_in_rows(0))


row(
    "two rows' key outputs swapped",
    NUMBERS | {"cache-rows": "input 4 is the key cache of layer 0.* the update of layer 1"},
    gate=r"kv_cache_specs: .*2 of 20 values differ.*\[0, 1\]: 1 -> 2",
)(swap_in_rows(1))


row(
    "two rows' value outputs swapped",
    NUMBERS | {"cache-rows": "input 8 is the value cache of layer 0.* the update of layer 1"},
    gate=r"kv_cache_specs: .*2 of 20 values differ.*\[0, 3\]: 5 -> 6",
)(swap_in_rows(3))

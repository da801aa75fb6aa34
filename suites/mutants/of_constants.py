"""Mutations of the constant methods: tables, and the positions of caches and masks."""

from __future__ import annotations

import numpy as np

from harness.suites.mutants.edit import Export, Mutation

PREFIXES = {"single": ("",), "multifunction": ("decode_", "prefill_")}


def tensors(export: Export, name: str) -> list[np.ndarray]:
    """Return a constant of every phase; once when the phases share it."""
    mode = "single" if len(export.functions) == 1 else "multifunction"
    found = [export.constant(prefix + name) for prefix in PREFIXES[mode]]
    return list({array.ctypes.data: array for array in found}.values())


def one_table_row(export: Export) -> None:
    """Replace one row of the sines by the next."""
    sines = export.constant("freqs_sin")
    sines[20] = sines[21]


def interleaved_table(export: Export) -> None:
    """Repeat every value of the cosines, as for rotated neighbours: half of the angles are lost."""
    cosines = export.constant("freqs_cos")
    cosines[:] = np.repeat(cosines[:, : cosines.shape[1] // 2], 2, axis=1)


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


def name_the_sines_twice(export: Export) -> None:
    """Give the sines' index the value of the cosines'."""
    for prefix in PREFIXES["single" if len(export.functions) == 1 else "multifunction"]:
        sines = export.constant(f"{prefix}freqs_sin_input_index")
        sines[:] = export.constant(f"{prefix}freqs_cos_input_index")


def longer_mask(export: Export) -> None:
    """Declare a mask that covers one position more than the cache has."""
    for rows in tensors(export, "mask_specs"):
        rows[0, 1] += 1


def longer_everything(export: Export) -> None:
    """Declare mask and caches with one position more than the program has."""
    longer_mask(export)
    for rows in tensors(export, "kv_cache_specs"):
        rows[:, 4] += 1

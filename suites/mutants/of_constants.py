"""Mutations of the constant methods: tables, and where caches and masks go."""

from __future__ import annotations

import numpy as np

from harness.suites.mutants.edit import Export, Mutation

PREFIXES = {"single": ("",), "multifunction": ("decode_", "prefill_")}


def tensors(export: Export, name: str) -> list[np.ndarray]:
    """A constant of a phase, of every phase that the artifact has; once where they share one."""
    mode = "single" if len(export.functions) == 1 else "multifunction"
    found = [export.constant(prefix + name) for prefix in PREFIXES[mode]]
    return list({array.ctypes.data: array for array in found}.values())


def one_table_row(export: Export) -> None:
    """One row of the sines is the next one's."""
    sines = export.constant("freqs_sin")
    sines[20] = sines[21]


def interleaved_table(export: Export) -> None:
    """Each row of the cosines has every value twice, as for rotated neighbours: too few angles."""
    cosines = export.constant("freqs_cos")
    cosines[:] = np.repeat(cosines[:, : cosines.shape[1] // 2], 2, axis=1)


def cosines_for_sines(export: Export) -> None:
    """The constants say that the sines' input takes the cosines, and the other way round."""
    cosines, sines = (tensors(export, f"freqs_{name}_input_index") for name in ("cos", "sin"))
    for cos, sin in zip(cosines, sines, strict=True):
        cos[0], sin[0] = sin[0], cos[0]


def swap_in_rows(column: int) -> Mutation:
    """Swap a column of the first two rows of `kv_cache_specs`."""

    def mutate(export: Export) -> None:
        for rows in tensors(export, "kv_cache_specs"):
            rows[0, column], rows[1, column] = rows[1, column], rows[0, column]

    return mutate


def longer_mask(export: Export) -> None:
    """The mask is said to cover one position more than the cache has."""
    for rows in tensors(export, "mask_specs"):
        rows[0, 1] += 1


def longer_everything(export: Export) -> None:
    """Mask and caches are said to have one position more than the program gives them."""
    longer_mask(export)
    for rows in tensors(export, "kv_cache_specs"):
        rows[:, 4] += 1

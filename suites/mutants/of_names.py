"""Mutations of names: in `metadata.json`, in references to packages, of functions."""

from __future__ import annotations

from typing import Any

from harness.suites.mutants.edit import Export, Mutation, Payload
from harness.suites.mutants.of_programs import blocks


def methods(payload: Payload) -> list[dict[str, list[str]]]:
    """Return the name lists of every method in a payload's metadata."""
    described = payload.metadata.get("methods")
    return list(described.values()) if described else [payload.metadata]


def swap_inputs(first: str, second: str) -> Mutation:
    """Swap two inputs in every method's metadata, by the ends of their names."""

    def mutate(export: Export) -> None:
        for names in methods(blocks(export)):
            inputs = names["inputNames"]
            one, other = (
                next(i for i, name in enumerate(inputs) if name.endswith(end))
                for end in (first, second)
            )
            inputs[one], inputs[other] = inputs[other], inputs[one]

    return mutate


def swap_mask_and_cache(export: Export) -> None:
    """Swap a mask and a cache, whose shapes differ."""
    for names in methods(blocks(export)):
        inputs = names["inputNames"]
        mask, cache = (
            next(i for i, name in enumerate(inputs) if part in name)
            for part in ("_masks_", "_cache_state_0_l0_")
        )
        inputs[mask], inputs[cache] = inputs[cache], inputs[mask]


def swap_outputs(export: Export) -> None:
    """Swap the new keys of two layers."""
    for names in methods(blocks(export)):
        outputs = names["outputNames"]
        outputs[0], outputs[2] = outputs[2], outputs[0]


def name_an_input_twice(export: Export) -> None:
    """Give a second cache the first one's name."""
    for names in methods(blocks(export)):
        names["inputNames"][-1] = names["inputNames"][-2]


def drop_an_input(export: Export) -> None:
    """Remove the last input's name."""
    for names in methods(blocks(export)):
        del names["inputNames"][-1]


def drop_a_method(export: Export) -> None:
    """Remove a method from metadata.json."""
    del blocks(export).metadata["methods"][export.functions[-1]]


def add_a_method(export: Export) -> None:
    """Describe a method in metadata.json for which the package has no function."""
    described = blocks(export).metadata["methods"]
    described["verify"] = described[export.functions[0]]


def unknown_default_method(export: Export) -> None:
    """Name a method that is not described as the draft dialect's default."""
    blocks(export).metadata["default_method"] = "verify"


def other_default_function(export: Export) -> None:
    """Give one package another default function than the rest."""
    blocks(export).model.description.defaultFunctionName = export.functions[-1]


def unknown_default_function(export: Export) -> None:
    """Name a default function that the package does not have."""
    for payload in export.payloads:
        payload.model.description.defaultFunctionName = "verify"


def change_first_reference(**changed: Any) -> Mutation:
    """Change the reference of decode's first delegate; None removes a key."""

    def mutate(export: Export) -> None:
        references = export.references
        references[0] = {k: v for k, v in (references[0] | changed).items() if v is not None}
        export.references = references

    return mutate


def package_of_another_partition(export: Export) -> None:
    """Let the first delegates refer to the second partition's package."""
    references = export.references
    keys = list(dict.fromkeys(reference["key"] for reference in references))
    for reference in references:
        if reference["key"] == keys[0]:
            reference["key"] = keys[1]
    export.references = references


def rename_a_function(export: Export) -> None:
    """Rename a function that delegates ask for."""
    functions = blocks(export).model.mlProgram.functions
    functions["renamed"].CopyFrom(functions[export.functions[-1]])
    del functions[export.functions[-1]]


def describe_functions(export: Export) -> None:
    """Describe functions in a single-function package: Core ML then needs a name."""
    blocks(export).model.description.functions.add(name="main")


def call_it_single(export: Export) -> None:
    """Rename the constants to those of a single method, though the delegates name functions."""
    export.rename_method("prefill_input_len", "forward_input_len")

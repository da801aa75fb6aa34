"""Mutations of what parts are called: `metadata.json`, references to packages, functions."""

from __future__ import annotations

from typing import Any

from harness.suites.mutants.edit import Export, Mutation, Payload
from harness.suites.mutants.of_programs import blocks


def methods(payload: Payload) -> list[dict[str, list[str]]]:
    """The name lists of every method in a payload's metadata."""
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
    """A mask is passed as a cache and a cache as the mask: their shapes differ."""
    for names in methods(blocks(export)):
        inputs = names["inputNames"]
        mask, cache = (
            next(i for i, name in enumerate(inputs) if part in name)
            for part in ("_masks_", "_cache_state_0_l0_")
        )
        inputs[mask], inputs[cache] = inputs[cache], inputs[mask]


def swap_outputs(export: Export) -> None:
    """The new keys of one layer are handed out as another's."""
    for names in methods(blocks(export)):
        outputs = names["outputNames"]
        outputs[0], outputs[2] = outputs[2], outputs[0]


def name_an_input_twice(export: Export) -> None:
    """A second cache has the first one's name."""
    for names in methods(blocks(export)):
        names["inputNames"][-1] = names["inputNames"][-2]


def drop_an_input(export: Export) -> None:
    """The last input has no name."""
    for names in methods(blocks(export)):
        del names["inputNames"][-1]


def drop_a_method(export: Export) -> None:
    """metadata.json forgets a method."""
    del blocks(export).metadata["methods"][export.functions[-1]]


def add_a_method(export: Export) -> None:
    """metadata.json describes a method that the package has no function for."""
    described = blocks(export).metadata["methods"]
    described["verify"] = described[export.functions[0]]


def unknown_default_method(export: Export) -> None:
    """The draft dialect's default is a method that is not described."""
    blocks(export).metadata["default_method"] = "verify"


def other_default_function(export: Export) -> None:
    """One package answers with another function than the rest when none is asked for."""
    blocks(export).model.description.defaultFunctionName = export.functions[-1]


def unknown_default_function(export: Export) -> None:
    """A package's default function is not one of its functions."""
    for payload in export.payloads:
        payload.model.description.defaultFunctionName = "verify"


def change_first_reference(**changed: Any) -> Mutation:
    """Change what the first delegate of decode refers to; None takes a key away."""

    def mutate(export: Export) -> None:
        references = export.references
        references[0] = {k: v for k, v in (references[0] | changed).items() if v is not None}
        export.references = references

    return mutate


def package_of_another_partition(export: Export) -> None:
    """The first delegates refer to the second partition's package."""
    references = export.references
    keys = list(dict.fromkeys(reference["key"] for reference in references))
    for reference in references:
        if reference["key"] == keys[0]:
            reference["key"] = keys[1]
    export.references = references


def rename_a_function(export: Export) -> None:
    """A package's function is not called what its delegates ask for."""
    functions = blocks(export).model.mlProgram.functions
    functions["renamed"].CopyFrom(functions[export.functions[-1]])
    del functions[export.functions[-1]]


def describe_functions(export: Export) -> None:
    """A single-function package describes functions: Core ML then wants a name."""
    blocks(export).model.description.functions.add(name="main")


def call_it_single(export: Export) -> None:
    """The constants are those of a single-method artifact, but its delegates name functions."""
    export.rename_method("prefill_input_len", "forward_input_len")

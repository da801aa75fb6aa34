"""Mutations of names: in `metadata.json`, in references to packages, of functions."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.suites.mutants.edit import Export, Mutation, Payload
from harness.suites.mutants.faults import MULTI, PTE, SINGLE, WRONG, fault
from harness.suites.mutants.judge import judge_export
from harness.suites.mutants.of_programs import blocks

ORDER = "metadata.json's order is"
SWAPPED = {"metadata-names": ORDER, "parity": WRONG}  # arguments are passed by these names
NAMES = r"method 'forward', delegate 1: delegate (in|out)put names, the first at \d+: \w+ -> \w+"
row = partial(fault, room="metadata", judge=judge_export)


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


@row(
    "a mask and a cache swapped",
    {"metadata-names": ORDER, "parity": r"h0' has shape .* not the declared"},
    kinds=PTE,
    gate=NAMES,
)
def swap_mask_and_cache(export: Export) -> None:
    """Swap a mask and a cache, whose shapes differ."""
    for names in methods(blocks(export)):
        inputs = names["inputNames"]
        mask, cache = (
            next(i for i, name in enumerate(inputs) if part in name)
            for part in ("_masks_", "_cache_state_0_l0_")
        )
        inputs[mask], inputs[cache] = inputs[cache], inputs[mask]


# A folder passes values by these names, too, so that its numbers stay right.
@row(
    "two outputs swapped",
    SWAPPED,
    in_folder={"metadata-names": ORDER},
    gate=rf"{NAMES}|calls, the first at 1",
)
def swap_outputs(export: Export) -> None:
    """Swap the new keys of two layers."""
    for names in methods(blocks(export)):
        outputs = names["outputNames"]
        outputs[0], outputs[2] = outputs[2], outputs[0]


@row(
    "an input named twice",
    {"metadata-names": "h0 twice"},
    in_folder={"metadata-names": "k_cache_3 twice"},
    gate="metadata.json's inputNames names .* twice",
)
def name_an_input_twice(export: Export) -> None:
    """Give a second cache the first one's name."""
    for names in methods(blocks(export)):
        names["inputNames"][-1] = names["inputNames"][-2]


@row(
    "an input without a name",
    {"metadata-names": ORDER},
    gate=r"method 'forward': input .*: \w+\[.*\] -> \(none\)",
)
def drop_an_input(export: Export) -> None:
    """Remove the last input's name."""
    for names in methods(blocks(export)):
        del names["inputNames"][-1]


@row(
    "a method without metadata",
    {"metadata-names": "has no method 'prefill'"},
    modes=MULTI,
    gate="method 'prefill'.*: metadata.json has no method 'prefill'",
)
def drop_a_method(export: Export) -> None:
    """Remove a method from metadata.json."""
    del blocks(export).metadata["methods"][export.functions[-1]]


@row(
    "metadata of no function",
    {"metadata-names": "describes .*'verify'"},
    modes=MULTI,
    gate="delegate 1: metadata.json methods: .*prefill.* -> .*verify",
)
def add_a_method(export: Export) -> None:
    """Describe a method in metadata.json for which the package has no function."""
    described = blocks(export).metadata["methods"]
    described["verify"] = described[export.functions[0]]


@row(
    "an unknown default method",
    {"metadata-round-trip": "default_method is 'verify'"},
    modes=MULTI,
    gate="metadata.json's default_method is 'verify'",
)
def unknown_default_method(export: Export) -> None:
    """Name a method that is not described as the draft dialect's default."""
    blocks(export).metadata["default_method"] = "verify"


@row(
    "another default function",
    {"function-names": "default function is 'prefill'"},
    modes=MULTI,
    gate="delegate 1, package: package default function: forward -> prefill",
    room="references",
)
def other_default_function(export: Export) -> None:
    """Give one package another default function than the rest."""
    blocks(export).model.description.defaultFunctionName = export.functions[-1]


@row(
    "an unknown default function",
    {"function-names": "default function is 'verify'"},
    gate="default function: forward -> verify|no function 'verify'",
    room="references",
)
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


@row(
    "another partition's package",
    {
        "copies": "no delegate refers to this named data",
        "metadata-names": "the program passes shape",
    },
    in_folder={"copies": "package 'embedding': nothing uses these [0-9]+ bytes"},
    modes=MULTI,
    gate=r"method 'forward': operations: \d+ -> \d+",
    room="references",
)
def package_of_another_partition(export: Export) -> None:
    """Let the first delegates refer to the second partition's package."""
    references = export.references
    keys = list(dict.fromkeys(reference["key"] for reference in references))
    for reference in references:
        if reference["key"] == keys[0]:
            reference["key"] = keys[1]
    export.references = references


@row(
    "a function renamed",
    {
        "references": "'prefill' is not in its package",
        "metadata-names": "the package holds .*'renamed'",
    },
    modes=MULTI,
    gate="no function 'prefill'; its functions: forward, renamed",
    room="references",
)
def rename_a_function(export: Export) -> None:
    """Rename a function that delegates ask for."""
    functions = blocks(export).model.mlProgram.functions
    functions["renamed"].CopyFrom(functions[export.functions[-1]])
    del functions[export.functions[-1]]


@row(
    "a single package describes functions",
    {"function-names": "the package is multifunction"},
    modes=SINGLE,
    gate=r"delegate 1, package: .* functions: \[\] -> .*main",
)
def describe_functions(export: Export) -> None:
    """Describe functions in a single-function package: Core ML then needs a name."""
    blocks(export).model.description.functions.add(name="main")


@row(
    "a single payload names a function",
    {"function-names": "needs no function name"},
    modes=MULTI,
    kinds=PTE,
    gate=r"constant prefill_input_len: 16 -> \(none\)",
    room="references",
)
def call_it_single(export: Export) -> None:
    """Rename the constants to those of a single method, though the delegates name functions."""
    export.rename_method("prefill_input_len", "forward_input_len")


row("two key caches swapped", SWAPPED, kinds=PTE, gate=NAMES)(swap_inputs("_0_l0_h0", "_0_l1_h0"))


row("keys and values swapped", SWAPPED, kinds=PTE, gate=NAMES)(swap_inputs("_0_l0_h0", "_1_l0_h0"))


row("cosines and sines swapped", SWAPPED, kinds=PTE, gate=NAMES)(
    swap_inputs("cos_override", "sin_override")
)


row(
    "another method's function",
    {"function-names": "it has function 'prefill'", "parity": "'tokens' has shape"},
    modes=MULTI,
    gate="'forward', delegate 0: delegate function: forward -> prefill",
    room="references",
)(change_first_reference(functionName="prefill"))


row(
    "no function named",
    {"function-names": "it has no function name"},
    modes=MULTI,
    gate=r"'forward', delegate 0: delegate function: forward -> \(none\)",
    room="references",
)(change_first_reference(functionName=None))


row(
    "an unknown function",
    {"references": "'verify' is not in its package", "function-names": "'verify'"},
    "ET 21951",
    modes=MULTI,
    gate="no function 'verify'; its functions: forward, prefill",
    room="references",
)(change_first_reference(functionName="verify"))


row(
    "data that is not there",
    {"references": "method 'forward', delegate 0: refers to named data 'coreml_executorch_of"},
    "ET 21951",
    in_folder={"references": "method 'forward': calls package 'coreml_executorch_of"},
    modes=MULTI,
    gate="method 'forward'.*coreml_executorch_of_another_export",
    room="references",
)(change_first_reference(key="coreml_executorch_of_another_export"))


row(
    "a reference of another version",
    {"references": "a reference of version 2"},
    "ET 16635",
    modes=MULTI,
    kinds=PTE,
    gate="method 'forward', delegate 0: a reference of version 2",
    room="references",
)(change_first_reference(version=2))

"""Runs a judge's methods: a language model on a prompt, any other artifact once for each method.

The prompt is fed in chunks, which fill the caches, then token by token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from harness.divergence.recording import Part
from harness.errors import HarnessError
from harness.generate.session import Session
from harness.golden.inputs import seeded_inputs
from harness.golden.language import token_sequences
from harness.pte import TensorSpec
from harness.runtimes.base import Runtime
from harness.subject import Subject

DECODED = 3
_SEED = 20_27


def drive(subject: Subject, judge: Runtime) -> None:
    """Feed seeded tokens to a judge's methods: two and a half chunks, then some decode steps.

    The last chunk is therefore padded and reads a filled cache. Raises HarnessError when the
    artifact is not a language model or cannot be executed.
    """
    session = Session.open(subject.artifact, judge)
    layout = session.layout
    count = max(1, min(5 * layout.prefill.input_len // 2, layout.context - DECODED))
    generator = torch.Generator().manual_seed(_SEED)
    size = min(count + DECODED, layout.context)
    tokens: list[int] = torch.randint(layout.vocab_size, (size,), generator=generator).tolist()
    if not tokens:
        raise HarnessError(f"{subject.artifact.path}: its context has no room for a token")
    session.prefill(tokens[:count])
    for token in tokens[count:]:
        session.decode(token)


def drive_calls(subject: Subject, judge: Runtime) -> None:
    """Call each method of another make's language model with tokens that follow one another."""
    for name, sequences in token_sequences(subject.artifact, _SEED).items():
        method = judge.load(subject.artifact, name)
        for inputs in next(iter(sequences.values()))[: DECODED + 1]:
            method(*inputs)


def call(subject: Subject, judge: Runtime, part: Part, given: Mapping[str, Any] | None) -> None:
    """Call each method of a part once, with the tensors that are given or with seeded ones.

    `given` holds a tensor for each name of an input; see `golden.inputs` for seeded ones, of which
    the largest shape is taken. Raises HarnessError for an input that is missing or unknown, or
    differs from its declaration.
    """
    artifact = subject.artifact
    names = part.methods(artifact)
    if given is not None and len(names) > 1:
        raise HarnessError(
            f"{artifact.path}: the tensors of --inputs belong to one method; choose it with "
            f"--method: {', '.join(names)}"
        )
    for name in names:
        method = judge.load(artifact, name)
        where = f"{artifact.path}, '{name}'"
        if given is not None:
            method(*_in_order(method.inputs, given, where))
            continue
        seeded = seeded_inputs(artifact, name, _SEED)
        method(*list(seeded.values())[-1][0])


def _in_order(
    specs: tuple[TensorSpec, ...], given: Mapping[str, Any], where: str
) -> list[torch.Tensor]:
    names = {spec.name for spec in specs}
    if wrong := sorted(names ^ {str(name) for name in given}):
        said = "no tensor is given for" if wrong[0] in names else "has no input"
        raise HarnessError(
            f"{where}: {said} '{wrong[0]}'; its inputs are {', '.join(sorted(names))}"
        )
    for name, tensor in given.items():
        if not isinstance(tensor, torch.Tensor) or not _is_plain(tensor):
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise HarnessError(
                f"{where}: input '{name}' must be a dense tensor of real numbers, not {kind}"
            )
    return [given[spec.name] for spec in specs]


def _is_plain(tensor: torch.Tensor) -> bool:
    on_cpu = tensor.device.type == "cpu" and tensor.layout == torch.strided
    return on_cpu and not tensor.is_quantized and not tensor.is_complex()

"""How to call a language model that no constants of the static runner describe.

The names, shapes and dtypes of a method's inputs and outputs say it:

| exporter | inputs | caches |
|---|---|---|
| ExecuTorch's `export_llama` | tokens [1, T] | none: each call computes all T tokens |
| `export_llama -kv` | tokens [1, T], input_pos [1] | buffers or states |
| optimum-executorch | input_ids [1, T], cache_position [T] | buffers or states |
| Apple's stateful recipe | inputIds [1, T], causalMask [1, 1, T, end] | states |

Instead of buffers, caches may be float inputs of rank 4 or 5, each with an output of its shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from harness.artifact import Artifact, Package
from harness.artifact.pte import KernelCall, TensorValue
from harness.errors import HarnessError
from harness.generate.phase import FLOATS, INTEGERS, ConstantReader
from harness.mil.types import AllowedShapes, allowed_shapes, check_shapes
from harness.pte import Specs, TensorSpec
from harness.pte.kernels import writes_in_place
from harness.runtimes import REFERENCE, get_runtime

_LENGTHS = ("get_max_context_len", "get_max_seq_len")  # constants of ExecuTorch's exporters
_USUAL_METHODS = ("forward", "main")


@dataclass(frozen=True)
class Interface:
    """The roles of a method's inputs and outputs, by position, and the sizes of its model.

    `context` is the number of positions; `start` is the first one that a call can have, above 0
    only where the mask has a fixed size. `caches` holds pairs of an input and the output that
    replaces it. With `full_logits`, the logits are [1, T, vocab], else the last token's only.
    Without `remembers`, each call computes a whole sequence.
    """

    method: str
    inputs: Specs
    allowed: Mapping[str, AllowedShapes]
    tokens: int
    positions: int | None
    mask: int | None
    caches: tuple[tuple[int, int], ...]
    logits: int
    full_logits: bool
    remembers: bool
    vocab_size: int
    context: int
    start: int = 0

    mode = "one method"
    crossed_rows = 0

    @property
    def can_pad(self) -> bool:
        """Whether tokens after the last one change nothing: their positions are written again."""
        is_placed = self.positions is not None or self.mask is not None or not self.remembers
        return self.full_logits and is_placed

    def lengths(self, position: int) -> list[int]:
        """Return how many tokens a call at a position may have, in ascending order."""
        last = self.context - position if self.remembers else self.context
        spec = self.inputs[self.tokens]
        allowed = self.allowed.get(spec.name, AllowedShapes())
        lengths = sorted({shape[-1] for shape in allowed.listed}) or range(1, last + 1)
        if spec.shape[-1] != -1:
            lengths = [spec.shape[-1]]
        return [n for n in lengths if n <= last and self._fits(n, position)]

    def _fits(self, length: int, position: int) -> bool:
        shapes = self._shapes(length, position)
        for index, shape in shapes.items():
            declared = self.inputs[index].shape
            if any(size not in (-1, have) for size, have in zip(declared, shape, strict=True)):
                return False
        try:
            names = {self.inputs[index].name: shape for index, shape in shapes.items()}
            check_shapes(self.allowed, names, self.method)
        except HarnessError:
            return False
        return True

    def _shapes(self, length: int, position: int) -> dict[int, tuple[int, ...]]:
        """Return the shapes of tokens, positions and mask for a call, by input."""
        shapes: dict[int, tuple[int, ...]] = {self.tokens: (1, length)}
        if self.positions is not None:
            declared = self.inputs[self.positions].shape
            count = 1 if declared == (1,) else length
            shapes[self.positions] = (*(1,) * (len(declared) - 1), count)
        if self.mask is not None:
            rank = len(self.inputs[self.mask].shape)
            shapes[self.mask] = (*(1,) * (rank - 2), length, position + length)
        return shapes

    def arguments(
        self, tokens: Sequence[int], position: int, caches: Mapping[int, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return the inputs of a call with tokens at `position` and after, in declared order.

        `caches` holds the caches by input; without them, they are zeros.
        """
        given = dict(caches or {})
        shapes = self._shapes(len(tokens), position)
        given[self.tokens] = self._filled(self.tokens, torch.tensor([list(tokens)]))
        if self.positions is not None:
            places = torch.arange(position, position + len(tokens))
            shape = shapes[self.positions]
            given[self.positions] = self._filled(
                self.positions, places[: math.prod(shape)].reshape(shape)
            )
        if self.mask is not None:
            rows = torch.arange(position, position + len(tokens))[:, None]
            columns = torch.arange(position + len(tokens))
            visible = (columns <= rows) & (columns >= self.start)
            given[self.mask] = self._mask(visible).reshape(shapes[self.mask])
        return tuple(
            given[i] if i in given else torch.zeros(spec.shape, dtype=_dtype(spec))
            for i, spec in enumerate(self.inputs)
        )

    def _filled(self, index: int, values: torch.Tensor) -> torch.Tensor:
        return values.to(_dtype(self.inputs[index]))

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        assert self.mask is not None
        dtype = _dtype(self.inputs[self.mask])
        if dtype == torch.bool:
            return visible
        return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, -torch.inf)

    def position_of(self, inputs: Sequence[torch.Tensor]) -> int | None:
        """Return the position of a call's first token; None where only the calls before say it."""
        if self.positions is not None:
            return int(inputs[self.positions].flatten()[0])
        if self.mask is not None:
            return int(inputs[self.mask].shape[-1] - inputs[self.tokens].shape[-1])
        return None if self.remembers else 0


def _dtype(spec: TensorSpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return dtype


def read_interface(artifact: Artifact, method: str | None = None) -> Interface:
    """Return how to call a method as a language model; without a name, the artifact's usual one.

    Raises HarnessError that names the method and the input or output without a role.
    """
    method = method or _usual_method(artifact)
    where = (
        f"{artifact.path}: no constants describe a language model, and method '{method}' is not "
        "called like one"
    )
    inputs, _ = signature(artifact, method)
    loaded = get_runtime(REFERENCE).load(artifact, method)
    allowed = flexible_shapes(artifact, method)
    roles = _roles(inputs, where)
    caches, logits = _outputs(loaded.inputs, roles["caches"], loaded.outputs, where)
    (tokens,) = roles["tokens"]
    mask = next(iter(roles["mask"]), None)
    longest = _largest(loaded.inputs[tokens], allowed)
    remembers = bool(caches) or keeps_state(artifact, method)
    shape = loaded.outputs[logits].shape
    found = Interface(
        method=method,
        inputs=inputs,
        allowed=allowed,
        tokens=tokens,
        positions=next(iter(roles["positions"]), None),
        mask=mask,
        caches=caches,
        logits=logits,
        full_logits=len(shape) == 3 and (shape[1] != 1 or longest == 1),
        remembers=remembers,
        vocab_size=shape[-1],
        context=longest,
    )
    if remembers:
        end = 0 if mask is None else _largest(loaded.inputs[mask], allowed)
        end = end or next((inputs[index].shape[-2] for index, _ in caches), 0)
        found = replace(found, context=_context(artifact, end, where))
    start = next((p for p in range(found.context) if found.lengths(p)), None)
    if start is None:
        raise HarnessError(f"{where}: no number of tokens fits the shapes of its inputs")
    return replace(found, start=start)


def _usual_method(artifact: Artifact) -> str:
    methods = artifact.methods
    usual = [name for name in _USUAL_METHODS if name in methods] or list(methods)
    if len(methods) > 1 and len(usual) > 1:
        raise HarnessError(
            f"{artifact.path}: its methods are {', '.join(methods)}; one is expected"
        )
    return usual[0]


def _roles(inputs: Specs, where: str) -> dict[str, list[int]]:
    roles: dict[str, list[int]] = {"tokens": [], "positions": [], "mask": [], "caches": []}
    for index, spec in enumerate(inputs):
        role = _role(spec)
        if role is None or (roles[role] and role != "caches"):
            shape = f"{spec.dtype} {list(spec.shape)}"
            raise HarnessError(f"{where}: input '{spec.name}' ({shape}) has no role in one")
        roles[role].append(index)
    if not roles["tokens"]:
        raise HarnessError(f"{where}: it has no input of tokens, integers [1, T]")
    return roles


def _role(spec: TensorSpec) -> str | None:
    """Return the role of an input: its name decides where shape and dtype leave two."""
    name, rank = spec.name.lower(), len(spec.shape)
    if "mask" in name and rank >= 2 and spec.dtype in FLOATS | {"bool"}:
        return "mask"
    if spec.dtype in INTEGERS:
        return "positions" if rank == 1 or "pos" in name else "tokens" if rank == 2 else None
    return "caches" if rank in (4, 5) and spec.dtype in FLOATS else None


def _outputs(
    inputs: Specs, caches: Sequence[int], outputs: Specs, where: str
) -> tuple[tuple[tuple[int, int], ...], int]:
    """Return the pairs of cache inputs and outputs, which have one order, and the logits."""
    shapes = [inputs[index].shape for index in caches]
    updates = [i for i, spec in enumerate(outputs) if spec.shape in shapes]
    others = [i for i in range(len(outputs)) if i not in updates]
    if [outputs[i].shape for i in updates] != shapes:
        raise HarnessError(f"{where}: it does not return a cache for each of {len(caches)} caches")
    if len(others) != 1 or outputs[others[0]].dtype not in FLOATS:
        names = ", ".join(f"'{outputs[i].name}'" for i in others)
        raise HarnessError(f"{where}: it must return logits beside its caches, and returns {names}")
    if len(outputs[others[0]].shape) not in (2, 3):
        shape = list(outputs[others[0]].shape)
        raise HarnessError(
            f"{where}: its logits have shape {shape}; [1, T, vocabulary] is expected"
        )
    return tuple(zip(caches, updates, strict=True)), others[0]


def _largest(spec: TensorSpec, allowed: Mapping[str, AllowedShapes]) -> int:
    """Return the largest size of an input's last axis; 0 where it is not bounded."""
    shapes = allowed.get(spec.name)
    if shapes is not None and shapes.listed:
        return max(shape[-1] for shape in shapes.listed)
    if shapes is not None and shapes.ranges:
        return shapes.ranges[-1][1] or 0
    return max(0, spec.shape[-1])


def _context(artifact: Artifact, end: int, where: str) -> int:
    """Return the value of a constant, else the `end` of the longest mask or of a cache."""
    reader = ConstantReader(artifact.constants)
    given = next((name for name in _LENGTHS if name in artifact.constants), None)
    if given is None and not end:
        names = " nor ".join(_LENGTHS)
        raise HarnessError(f"{where}: neither {names} nor a mask says how long its context is")
    return reader.integer(given) if given else end


def signature(artifact: Artifact, method: str) -> tuple[Specs, Specs]:
    """Return a method's inputs and outputs; -1 is a size that may differ from call to call."""
    loaded = get_runtime(REFERENCE).load(artifact, method)
    if artifact.pte is None:
        return tuple(loaded.inputs), tuple(loaded.outputs)
    plan = artifact.pte.methods[method]

    def spec(given: TensorSpec, index: int) -> TensorSpec:
        value = plan.values[index]
        if isinstance(value, TensorValue) and value.resizable:
            return replace(given, shape=(-1,) * len(given.shape))
        return given

    return (
        tuple(map(spec, loaded.inputs, plan.inputs)),
        tuple(map(spec, loaded.outputs, plan.outputs)),
    )


def keeps_state(artifact: Artifact, method: str) -> bool:
    """Return whether a method has states, or buffers that it writes to."""
    if artifact.package is not None:
        return bool(artifact.package.states(method))
    assert artifact.pte is not None
    plan = artifact.pte.methods[method]
    if any(isinstance(v, TensorValue) and v.initial is not None for v in plan.values):
        return True
    for call in plan.instructions:
        if isinstance(call, KernelCall) and writes_in_place(call.operator):
            return True
    return any(d.bundle.package.states(d.program_function) for d in artifact.delegates[method])


def functions_of(artifact: Artifact, method: str) -> Iterator[tuple[Package, str]]:
    """Yield the Core ML functions of a method, each with its package."""
    if artifact.package is not None:
        yield artifact.package, method
    else:
        for delegate in artifact.delegates[method]:
            yield delegate.bundle.package, delegate.program_function


def flexible_shapes(artifact: Artifact, method: str) -> dict[str, AllowedShapes]:
    """Return the shapes that inputs of flexible shape may have, by name."""
    found: dict[str, AllowedShapes] = {}
    for package, function in functions_of(artifact, method):
        found = allowed_shapes(package, function) | found
    return found

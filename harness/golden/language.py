"""A checkpoint as the reference of an artifact that no constants of the static runner describe.

The oracle computes each call over the whole sequence, without caches. RoPE rotates halves of a head
in Hugging Face's models and pairs in Meta's: the parameters have the rows in the artifact's order.
RoPE's constants are the artifact's own, unless they differ from the model's by more than rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from harness.artifact import Artifact
from harness.errors import HarnessError
from harness.generate.interface import Interface, read_interface
from harness.golden import Steps
from harness.golden.eager import Reference
from harness.golden.inputs import float_dtype
from harness.golden.weights import adopted, every_weight
from harness.models import ModelConfig
from harness.models.checkpoint import halves_of_pairs, load_checkpoint, pairs_of_halves
from harness.models.config import load_params
from harness.models.model import Operations, evaluate, rope_tables, whole_sequence

STEPS = 8  # of a sequence that caches remember
_SEQUENCES = 3  # without caches
_TABLE_ERROR = 2.0**-10  # of a cosine in fp16: a step
_ANGLE_ERROR = 2.0**-22  # per position: a frequency in fp32


def checkpoint_reference(artifact: Artifact, checkpoint: Path, params: Path) -> Reference:
    """Return the model of a checkpoint as the reference of each method.

    Raises HarnessError for a method that is not called like a language model, and for a checkpoint
    that is not the artifact's, with the sizes that differ.
    """
    config = load_params(params)
    weights = load_checkpoint(checkpoint, config)
    held = dict(every_weight(artifact))
    interfaces = {method: read_interface(artifact, method) for method in artifact.methods}
    _check_sizes(artifact, config, interfaces, list(held.values()), checkpoint)
    modules = {
        method: LanguageModule(config, weights, interface, list(held.values())).eval()
        for method, interface in interfaces.items()
    }
    return Reference(f"--checkpoint {checkpoint}", modules)


def token_sequences(artifact: Artifact, seed: int) -> dict[str, dict[str, Steps]]:
    """Return calls with seeded tokens at consecutive positions, by method and sequence.

    Raises HarnessError for a method that is not called like a language model.
    """
    interfaces = [read_interface(artifact, method) for method in artifact.methods]
    return {one.method: dict(_sequences(one, seed)) for one in interfaces}


def _sequences(interface: Interface, seed: int) -> Iterator[tuple[str, Steps]]:
    """Yield sequences of the fewest tokens a call and of the most; caches are filled from empty."""
    generator = torch.Generator().manual_seed(seed)

    def call(length: int, position: int) -> tuple[torch.Tensor, ...]:
        tokens = torch.randint(interface.vocab_size, (length,), generator=generator)
        return interface.arguments(tokens.tolist(), position)

    if not interface.remembers:
        lengths = interface.lengths(0)
        for number, index in enumerate((-1, 0, len(lengths) // 2)[:_SEQUENCES]):
            yield f"sequence{number}", (call(lengths[index], 0),)
        return
    if interface.caches:
        raise HarnessError(
            f"method '{interface.method}' takes and returns its caches, which a checkpoint does "
            "not give: give --reference module:function, or --golden FILE"
        )
    for name, which in (("chunks", -1), ("tokens", 0)):
        steps: list[tuple[torch.Tensor, ...]] = []
        position = interface.start
        while len(steps) < STEPS and (lengths := interface.lengths(position)):
            # A chunk takes half of the context at most, so that steps follow it.
            half = [n for n in lengths if 2 * n <= interface.context] or lengths[:1]
            length = half[which] if not steps else lengths[0]
            steps.append(call(length, position))
            position += length
        yield name, tuple(steps)


def held_modules(artifact: Artifact, checkpoint: Path, params: Path) -> dict[str, LanguageModule]:
    """Return the module of each method in fp64, with numbers as the artifact holds them.

    They are rounded to its dtype, and those of quantized weights are its own; raises what
    `checkpoint_reference` raises.
    """
    reference = checkpoint_reference(artifact, checkpoint, params)
    quantized = adopted(artifact, reference.parameters(artifact.methods))
    half, found = float_dtype(artifact) == "fp16", {}
    for method in artifact.methods:
        module = reference.module(method)
        assert isinstance(module, LanguageModule)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            held = tensor.half() if half else tensor
            tensor.data = quantized.get((method, name), held).double()
        found[method] = module
    return found


class LanguageModule(torch.nn.Module):
    """A model that takes the inputs of an artifact's method, and remembers the tokens it was given.

    Parameters have Meta's names. `held` has the artifact's weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, torch.Tensor],
        interface: Interface,
        held: Sequence[torch.Tensor],
    ) -> None:
        super().__init__()
        self.config, self.interface = config, interface
        self._tokens: dict[int, int] = {}  # by position
        rotated = config.rotated_weights
        self._halves = {
            name: _nearer(halves_of_pairs(weights[name], config.head_dim), weights[name], held)
            for name in rotated
        }
        for name, weight in weights.items():
            halves = self._halves.get(name, False)
            own = halves_of_pairs(weight, config.head_dim) if halves else weight
            # A clone: a tied layer may be quantized in another way than the embedding.
            register_parameter(self, name, own.float().clone())
        self._add_rope(held)

    def _add_rope(self, held: Sequence[torch.Tensor]) -> None:
        length, half = self.interface.context, self.config.head_dim // 2
        cos, sin = rope_tables(self.config, length)
        tables = [_near_table(table, held) for table in (cos, sin)]
        frequencies = torch.atan2(sin[1], cos[1]) if length > 1 else torch.zeros(half)
        found = next((t for t in held if _are_frequencies(t, frequencies)), None)
        if found is not None and None in tables:
            self.register_buffer("inv_freq", found.reshape(half).clone())
            return
        for name, own, exact in zip(("cos", "sin"), tables, (cos, sin), strict=True):
            self.register_buffer(f"freqs_{name}", exact.float() if own is None else own)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of a call, in the shape of the method's output."""
        interface = self.interface
        tokens = inputs[interface.tokens][0].tolist()
        position = interface.position_of(inputs)
        if position is None:
            position = len(self._tokens)
        if not interface.remembers:
            self._tokens.clear()
        self._tokens |= dict(enumerate(tokens, position))
        known = [p for p in sorted(self._tokens) if p < position + len(tokens)]
        around = whole_sequence(self.config, self.rope(known), len(known), self._dtype)
        ops = _Ordered(self.config, self.weights(), self._dtype)
        given = torch.tensor([self._tokens[p] for p in known])
        logits = evaluate(ops, given, around)[0][-len(tokens) :]
        return logits[None] if interface.full_logits else logits[-1:]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def has_halves(self) -> bool:
        """Whether the artifact rotates halves of a head, as Hugging Face's models do."""
        return any(self._halves.values())

    def rope(self, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of positions, each [positions, D/2]."""
        buffers = dict(self.named_buffers())
        if "inv_freq" in buffers:
            places = torch.tensor(positions, dtype=self._dtype)
            angles = places[:, None] * buffers["inv_freq"]
            return angles.cos(), angles.sin()
        return buffers["freqs_cos"][positions], buffers["freqs_sin"][positions]

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the parameters with rows in Meta's order."""
        return {
            name: pairs_of_halves(weight, self.config.head_dim)
            if self._halves.get(name)
            else weight
            for name, weight in self.named_parameters()
        }


class _Ordered(Operations):
    """Operations whose scale is a Python number, which `eager` rounds where the artifact may."""

    def attention_scale(self, dtype: torch.dtype) -> float:
        return self.config.scale


def register_parameter(module: torch.nn.Module, name: str, weight: torch.Tensor) -> None:
    """Add a parameter under a name with dots, as modules in modules."""
    *path, last = name.split(".")
    for part in path:
        if part not in dict(module.named_children()):
            module.add_module(part, torch.nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, torch.nn.Parameter(weight, requires_grad=False))


def _nearer(one: torch.Tensor, other: torch.Tensor, held: Sequence[torch.Tensor]) -> bool:
    """Return whether a weight of the artifact is nearer to `one` than any is to `other`."""

    def least(wanted: torch.Tensor) -> float:
        same = [t for t in held if t.numel() == wanted.numel()]
        flat = (wanted.float().flatten(), wanted.float().T.flatten())
        distances = [float((t.flatten() - w).square().sum()) for t in same for w in flat]
        return min(distances, default=torch.inf)

    return least(one) < least(other)


def _near_table(table: torch.Tensor, held: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return the artifact's own RoPE table [positions, D/2], which may be held twice a row."""
    length, half = table.shape
    positions = torch.arange(length)[:, None]
    allowed = _TABLE_ERROR + _ANGLE_ERROR * positions
    for own in held:
        if own.numel() in (length * half, 2 * length * half):
            rows = own.reshape(length, -1)
            if ((rows.double() - table.repeat(1, rows.shape[1] // half)).abs() <= allowed).all():
                return rows[:, :half].clone()
    return None


def _are_frequencies(held: torch.Tensor, frequencies: torch.Tensor) -> bool:
    if held.numel() != frequencies.numel():
        return False
    error = (held.flatten().double() - frequencies).abs()
    return bool((error <= _TABLE_ERROR * frequencies + 2.0**-24).all())


def _check_sizes(
    artifact: Artifact,
    config: ModelConfig,
    interfaces: dict[str, Interface],
    held: Sequence[torch.Tensor],
    checkpoint: Path,
) -> None:
    wrong = [
        f"method '{name}' has a vocabulary of {interface.vocab_size}, not {config.vocab_size}"
        for name, interface in interfaces.items()
        if interface.vocab_size != config.vocab_size
    ]
    layers = artifact.constants.get("get_n_layers")
    if isinstance(layers, int) and layers != config.n_layers:
        wrong.append(f"its n_layers is {layers}, not {config.n_layers}")
    axes = {size for weight in held if weight.dim() > 1 for size in weight.shape}
    wrong += [
        f"no weight has an axis of its {name}, {size}"
        for name in ("dim", "q_size", "hidden_dim")  # columns, which no pass joins or cuts
        if (size := getattr(config, name)) not in axes
    ]
    if wrong:
        raise HarnessError(
            f"{artifact.path} was not exported from {checkpoint}: {'; '.join(wrong)}; give its own "
            "checkpoint"
        )

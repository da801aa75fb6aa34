"""Artifacts of many makes, small: what `harness check` must judge beside our exporters' own.

Each eager module is a function without parameters, as `--reference` names one:
`tests.subject.material:NAME`. A seed decides its weights.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

VOCABULARY, WIDTH, CONTEXT = 64, 32, 16
LENGTHS = (1, 4, 8)


class _Stateful(nn.Module):
    """A two-layer decoder in the form of Apple's recipe: it writes its keys and values to states.

    The end of the causal mask says where it writes, as in that recipe.
    """

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        torch.manual_seed(7)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH, bias=False) for name in "qkvo"})
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("keyCache", torch.zeros(2, 1, CONTEXT, WIDTH))
        self.register_buffer("valueCache", torch.zeros(2, 1, CONTEXT, WIDTH))

    def forward(self, inputIds: torch.Tensor, causalMask: torch.Tensor) -> torch.Tensor:
        """Logits [1, T, vocabulary] of tokens [1, T], with a mask [1, 1, T, end]."""
        x = self.embed(inputIds)
        end = causalMask.shape[-1]
        begin = end - inputIds.shape[-1]
        if self.fixed:  # coremltools 9.0 cannot cast a constant size with numpy 2.4
            begin, end = int(begin), int(end)
        for number, layer in enumerate(self.layers):
            q, k, v = (layer[name](x) for name in "qkv")
            self.keyCache[number, :, begin:end] = k
            self.valueCache[number, :, begin:end] = v
            keys = self.keyCache[number, :, :end]
            values = self.valueCache[number, :, :end]
            scores = q @ keys.transpose(-1, -2) / WIDTH**0.5 + causalMask[:, 0]
            x = x + layer["o"](torch.softmax(scores, -1) @ values)
        return self.head(x)


def stateful(fixed: bool = False) -> nn.Module:
    """Return the stateful decoder; with `fixed` a trace of it has the sizes of its example."""
    return _Stateful(fixed).eval()


def mlp() -> nn.Module:
    """Return a multilayer perceptron that takes [2, 8]."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()


def classifier() -> nn.Module:
    """Return a small convolutional net that takes an image [1, 3, 16, 16]."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 5),
    ).eval()


class _Counter(nn.Module):
    """Adds what it is given to a buffer, and returns a projection of the sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("total", torch.zeros(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [1, 4] of [1, 4]."""
        self.total.add_(x)
        return self.linear(self.total) * 1.0


def counter() -> nn.Module:
    """Return a module with a mutable buffer."""
    return _Counter().eval()


class _Partly(nn.Module):
    """Something that Core ML takes, something that it is told to leave, something that it takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [2, 8] of [2, 8]."""
        return self.second(torch.relu(self.first(x)))


def partly() -> nn.Module:
    """Return a module of which a part is not delegated."""
    return _Partly().eval()


class _Branch(nn.Module):
    """Adds a branch that hardly changes the outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.c = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [2, 4] of [2, 8]."""
        y = torch.tanh(self.a(x))
        return self.c(y + 1e-4 * self.b(y))


def wide() -> nn.Module:
    """Return a layer with enough weights for some to be rounded by half a step."""
    torch.manual_seed(8)
    return nn.Sequential(nn.Linear(64, 64)).eval()


def branch() -> nn.Module:
    """Return a module with a weight that hardly counts."""
    return _Branch().eval()


def _random(module: nn.Module) -> nn.Module:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape) + 0.1
    return module.eval()


def batch_norm() -> nn.Module:
    """Return convolutions, one without and one with a bias, before batch norms."""
    torch.manual_seed(6)
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)]
    return _random(nn.Sequential(*layers, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(576, 5)))


class _Lora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.base, self.gain = nn.Linear(8, 8), nn.Parameter(torch.randn(8) / 4)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.base.weight + self.up.weight @ self.down.weight
        return torch.relu(nn.functional.linear(x, weight, self.base.bias) * (1 + self.gain))


def lora() -> nn.Module:
    """Return a module that adds a low-rank update to its weight, and scales what it gives."""
    return _Lora().eval()


class _Computed(nn.Module):
    """Multiplies by functions of one parameter each: monotone, and not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.a, self.b = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(x @ torch.exp(self.a) / 9) @ torch.cos(3 * self.b))


def computed() -> nn.Module:
    """Return a module that computes its weights."""
    return _Computed().eval()


def normed() -> nn.Module:
    """Return a layer whose weight is a direction and a length."""
    torch.manual_seed(10)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 4)).eval()


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0])


def recurrent() -> nn.Module:
    """Return an LSTM, whose gates Core ML has in another order."""
    return _Recurrent().eval()


class _Scaled(nn.Module):
    def __init__(self, shared: nn.Linear, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = shared, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(x)) * self.scale


def two_methods() -> dict[str, nn.Module]:
    """Return modules of two methods that share a layer."""
    torch.manual_seed(5)
    shared = nn.Linear(8, 8)
    return {"encode": _Scaled(shared, 1.0).eval(), "decode": _Scaled(shared, 2.0).eval()}


def _quietly(write: Callable[..., Path]) -> Callable[..., Path]:
    """Let a converter warn: of buffers, of traces, of other versions."""

    @functools.wraps(write)
    def call(*arguments: Any, **options: Any) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return write(*arguments, **options)

    return call


@_quietly
def write_pte(
    path: Path,
    modules: dict[str, nn.Module],
    inputs: Sequence[Any],
    constants: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Path:
    """Export modules, a method each, by ExecuTorch's Core ML partitioner in fp16."""
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import to_edge_transform_and_lower

    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT16
    )
    lowered = to_edge_transform_and_lower(
        {name: torch.export.export(module, tuple(inputs)) for name, module in modules.items()},
        partitioner=[CoreMLPartitioner(compile_specs=specs, **kwargs)],
        constant_methods=constants,
    )
    path.write_bytes(lowered.to_executorch().buffer)
    return path


@_quietly
def write_package(
    path: Path, module: nn.Module, example: Sequence[torch.Tensor], **kwargs: Any
) -> Path:
    """Convert a module by coremltools, in fp16 for iOS 18."""
    import coremltools as ct

    traced = torch.jit.trace(module, tuple(example))
    model = ct.convert(
        traced,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
        **kwargs,
    )
    model.save(str(path))
    return path


def write_recipe(path: Path, lengths: str) -> Path:
    """Convert the stateful decoder for `fixed`, `enumerated` or `ranged` lengths."""
    import coremltools as ct
    import numpy as np

    length, end = ct.RangeDim(1, 8, default=1), ct.RangeDim(1, CONTEXT, default=1)
    tokens, mask = {
        "fixed": ((1, 4), (1, 1, 4, 8)),
        "enumerated": (
            ct.EnumeratedShapes([[1, n] for n in LENGTHS], default=[1, 1]),
            ct.EnumeratedShapes([[1, 1, n, n + 8] for n in LENGTHS], default=[1, 1, 1, 9]),
        ),
        "ranged": ((1, length), (1, 1, length, end)),
    }[lengths]
    cache = ct.TensorType(shape=(2, 1, CONTEXT, WIDTH), dtype=np.float16)
    return write_package(
        path,
        stateful(fixed=lengths == "fixed"),
        (torch.zeros(1, 4, dtype=torch.int32), torch.zeros(1, 1, 4, 8)),
        inputs=[
            ct.TensorType(name="inputIds", shape=tokens, dtype=np.int32),
            ct.TensorType(name="causalMask", shape=mask, dtype=np.float16),
        ],
        outputs=[ct.TensorType(name="logits", dtype=np.float16)],
        states=[ct.StateType(wrapped_type=cache, name=n) for n in ("keyCache", "valueCache")],
    )


@_quietly
def write_multifunction(path: Path) -> Path:
    """Convert the modules of `two_methods` and join them in one package."""
    import coremltools as ct

    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, module in two_methods().items():
        part = path.parent / f"{name}.mlpackage"
        write_package(
            part, module, (torch.zeros(2, 8),), inputs=[ct.TensorType(name="x", shape=(2, 8))]
        )
        descriptor.add_function(str(part), "main", name)
    descriptor.default_function_name = "encode"
    ct.utils.save_multifunction(descriptor, str(path))
    return path


class _Llama(nn.Module):
    """ExecuTorch's own eager Llama with the weights of `tiny`, as `export_llama` builds it."""

    def __init__(self, caches: bool) -> None:
        super().__init__()
        import json

        from executorch.examples.models.llama.llama_transformer import construct_transformer
        from executorch.examples.models.llama.model_args import ModelArgs

        from harness.fixtures.cache import fixture

        source, self.caches = fixture("tiny"), caches
        arguments = ModelArgs(
            max_seq_len=32,
            max_context_len=32,
            use_kv_cache=caches,
            generate_full_logits=False,
            **json.loads(source.params.read_text()),
        )
        self.transformer = construct_transformer(arguments)
        weights = torch.load(source.checkpoint, weights_only=True)
        self.transformer.load_state_dict(weights, strict=False)

    def forward(self, tokens: torch.Tensor, position: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [1, vocabulary] of the last of tokens [1, T], which is at `position`."""
        if position is None:
            return self.transformer(tokens)
        return self.transformer(tokens, {"input_pos": position})


def llama_plain() -> nn.Module:
    """Return `tiny` without caches."""
    return _Llama(caches=False).eval()


def llama_with_caches() -> nn.Module:
    """Return `tiny` with caches in buffers."""
    return _Llama(caches=True).eval()


def export_llama(path: Path, *options: str) -> Path:
    """Export `tiny` by ExecuTorch's `export_llama --coreml`, 32 tokens long."""
    import subprocess
    import sys

    from harness.fixtures.cache import fixture

    source = fixture("tiny")
    module = "executorch.examples.models.llama.export_llama"
    sizes = ("--max_seq_length", "32", "--max_context_length", "32")
    command = [sys.executable, "-m", module, "-c", source.checkpoint, "-p", source.params]
    command += ["--coreml", "--coreml-ios", "18", "--disable_dynamic_shape", *sizes]
    command += ["--output_name", path.name, *options]
    subprocess.run(command, check=True, capture_output=True, cwd=path.parent)
    return path


class _Optimum(nn.Module):
    """Transformers' Llama with a static cache in buffers, as optimum-executorch exports it.

    The caches are written here: the buffer of the cache of transformers 5.24 that counts tokens
    becomes a state of integers, which coremltools 9.0 cannot convert.
    """

    def __init__(self) -> None:
        super().__init__()
        import transformers

        torch.manual_seed(11)
        self.config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        self.llama = transformers.LlamaForCausalLM(self.config).eval()
        for weight in self.llama.parameters():
            weight.data += torch.randn(weight.shape) / 10
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, 16, 2) / 16))
        for number in range(2):
            self.register_buffer(f"key_cache_{number}", torch.zeros(1, 2, 32, 16))
            self.register_buffer(f"value_cache_{number}", torch.zeros(1, 2, 32, 16))

    def forward(self, input_ids: torch.Tensor, cache_position: torch.Tensor) -> torch.Tensor:
        """Logits [1, T, vocabulary] of tokens [1, T] at positions [T]."""
        x = self.llama.model.embed_tokens(input_ids)
        angles = (cache_position[:, None].to(self.inv_freq) * self.inv_freq).repeat(1, 2)
        visible = torch.arange(32) <= cache_position[:, None]
        for number, block in enumerate(self.llama.model.layers):
            h, attention = block.input_layernorm(x), block.self_attn
            q, k, v = (
                project(h).view(1, -1, heads, 16).transpose(1, 2)
                for project, heads in (
                    (attention.q_proj, 4),
                    (attention.k_proj, 2),
                    (attention.v_proj, 2),
                )
            )
            q, k = (
                t * angles.cos() + torch.cat((-t[..., 8:], t[..., :8]), -1) * angles.sin()
                for t in (q, k)
            )
            keys, values = (
                getattr(self, f"key_cache_{number}"),
                getattr(self, f"value_cache_{number}"),
            )
            keys[:, :, cache_position] = k
            values[:, :, cache_position] = v
            all_keys, all_values = (t.repeat_interleave(2, 1) for t in (keys, values))
            mixed = nn.functional.scaled_dot_product_attention(q, all_keys, all_values, visible)
            x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.post_attention_layernorm(x))
        return self.llama.lm_head(self.llama.model.norm(x))


def optimum() -> nn.Module:
    """Return the Llama that `export_optimum` exports."""
    return _Optimum().eval()


def export_optimum(path: Path) -> Path:
    """Export that Llama for one token a call, its caches as states; save its checkpoint beside it.

    Inputs, states and constants are those of optimum-executorch 1.1's recipe `coreml_fp16`.
    """
    module = optimum()
    module.llama.save_pretrained(path.with_suffix(".hf"))
    return write_pte(
        path,
        {"forward": module},
        (torch.tensor([[1]]), torch.tensor([0])),
        take_over_mutable_buffer=True,
        constants={"get_max_seq_len": 32, "get_n_layers": 2, "use_kv_cache": True},
    )

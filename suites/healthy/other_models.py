"""Models that are no language models, as users of coremltools and of ExecuTorch make them.

Each eager module is a function without parameters, as `--reference` names one; a seed decides its
weights. To add a make, write its module and a row of `OTHERS`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    import coremltools as ct

IMAGE = (1, 3, 15, 21)
VOCABULARY, WIDTH = 48, 32
LENGTHS = (3, 8, 13)
SCALE, BIAS = 1 / 255, -0.5


@dataclass(frozen=True)
class Other:
    """A make of an artifact.

    `write` writes it to a path; `reference` names the function of its module here. Each warning of
    the codes is true of this model.
    """

    write: Callable[[Path], None]
    reference: str
    warnings: frozenset[str] = frozenset()


class _Function(nn.Module):
    """A module whose result is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Return what the function returns."""
        return self.function(self, *tensors)


def perceptron() -> nn.Module:
    """Return a multilayer perceptron that takes [5, 24]; its sizes are odd."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(24, 37), nn.GELU(), nn.Linear(37, 11)).eval()


def convolutions() -> nn.Module:
    """Return convolutions with a batch norm and a skip connection, for any height and width."""
    torch.manual_seed(2)

    def forward(self: Any, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(image)))
        result: torch.Tensor = self.last(x + torch.relu(self.second(x)))
        return result

    norm = nn.BatchNorm2d(8)
    norm.running_mean, norm.running_var = torch.rand(8) - 0.5, torch.rand(8) + 0.5
    module = _Function(
        forward,
        first=nn.Conv2d(3, 8, 3, padding=1),
        norm=norm,
        second=nn.Conv2d(8, 8, 5, padding=2, groups=4),
        last=nn.Conv2d(8, 2, 1),
    )
    return module.eval()


def classifier() -> nn.Module:
    """Return a net that takes an image [1, 3, 15, 21] and gives probabilities [5] of classes."""
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, 8, 3, stride=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(0))
    return nn.Sequential(*layers, nn.Linear(8, 5), nn.Softmax(-1)).eval()


def upsampler() -> nn.Module:
    """Return a net that doubles an image's height and width."""
    torch.manual_seed(4)
    layers = (nn.ConvTranspose2d(3, 6, 2, stride=2), nn.LeakyReLU(0.1), nn.Conv2d(6, 3, 3))
    return nn.Sequential(*layers).eval()


def of_pixels() -> nn.Module:
    """Return the upsampler with what Core ML does to the pixels of its image input first."""
    return _Function(lambda self, x: self.net(x * SCALE + BIAS), net=upsampler()).eval()


def encoder() -> nn.Module:
    """Return a text encoder: tokens [1, T] to a vector of each [1, T, 32]; attention by hand."""
    torch.manual_seed(5)

    def forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) * WIDTH**-0.5
        x = x + self.out(torch.softmax(scores, -1) @ v)
        result: torch.Tensor = x + self.down(nn.functional.gelu(self.up(x)))
        return result

    parts = {
        "embed": nn.Embedding(VOCABULARY, WIDTH),
        "norm": nn.LayerNorm(WIDTH),
        "qkv": nn.Linear(WIDTH, 3 * WIDTH),
        "out": nn.Linear(WIDTH, WIDTH),
        "up": nn.Linear(WIDTH, 3 * WIDTH),
        "down": nn.Linear(3 * WIDTH, WIDTH),
    }
    return _Function(forward, **parts).eval()


def statistics() -> nn.Module:
    """Return a module with three outputs of [5, 24]: a mean of rank 0, extremes, a sum of rows."""
    return _Function(lambda _, x: (x.mean(), torch.stack([x.amin(-1), x.amax(-1)]), x.sum(0)))


def masked() -> nn.Module:
    """Return a softmax of [5, 24] over the values above -1, which a mask with a scalar chooses."""
    return _Function(lambda _, x: x.masked_fill(x <= -1, -1e4).softmax(-1))


class _Average(nn.Module):
    """Keeps a moving average in a state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.linear = nn.Linear(WIDTH, 7)
        self.average: torch.Tensor
        self.register_buffer("average", torch.zeros(1, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [1, 7] of [1, 32]."""
        self.average.mul_(0.5).add_(x * 0.5)
        result: torch.Tensor = self.linear(self.average)
        return result


def average() -> nn.Module:
    """Return a module with a state."""
    return _Average().eval()


def recurrent() -> nn.Module:
    """Return an LSTM of two directions and a projection, for [2, 6, 8]."""
    torch.manual_seed(7)
    parts = {"lstm": nn.LSTM(8, 12, batch_first=True, bidirectional=True), "head": nn.Linear(24, 3)}
    return _Function(lambda self, x: self.head(self.lstm(x)[0]), **parts).eval()


def activations() -> nn.Module:
    """Return a perceptron whose activations are rounded to 8 bits, for [5, 24]."""
    torch.manual_seed(8)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = torch.quantize_per_tensor(x, 1 / 32, 0, torch.qint8).dequantize()
        x = torch.relu(self.first(x))
        x = torch.quantize_per_tensor(x, 1 / 64, 0, torch.quint8).dequantize()
        result: torch.Tensor = self.second(x)
        return result

    return _Function(forward, first=nn.Linear(24, 40), second=nn.Linear(40, 8)).eval()


def methods() -> dict[str, nn.Module]:
    """Return the modules of two functions that share a layer, for [5, 24]."""
    torch.manual_seed(9)
    shared = nn.Linear(24, 64)
    return {
        "encode": _Function(lambda self, x: torch.tanh(self.shared(x)), shared=shared).eval(),
        "score": _Function(
            lambda self, x: self.head(torch.sigmoid(self.shared(x))),
            shared=shared,
            head=nn.Linear(64, 3),
        ).eval(),
    }


def _trace(module: nn.Module, example: torch.Tensor, target: str, **options: Any) -> Any:
    """Convert a module; the precision is FLOAT16 unless the options say otherwise."""
    import coremltools as ct

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of buffers, of traces, of other versions of torch
        return ct.convert(
            torch.jit.trace(module, example),
            minimum_deployment_target=ct.target[target],
            skip_model_load=True,
            **options,
        )


def _package(
    module: Callable[[], nn.Module],
    example: torch.Tensor,
    target: str = "iOS18",
    then: Callable[[Any], Any] = lambda model: model,
    **options: Callable[[Any], Any],
) -> Callable[[Path], None]:
    """Return what converts a module; `then` changes the model. Options are made by coremltools."""

    def write(path: Path) -> None:
        import coremltools as ct

        given = {name: make(ct) for name, make in options.items()}
        then(_trace(module(), example, target, **given)).save(str(path))

    return write


def _tensor(shape: Sequence[int], name: str = "x") -> Callable[[Any], Any]:
    return lambda ct: [ct.TensorType(name, shape)]


def _optimized(name: str, **options: Any) -> Callable[[Any], Any]:
    """Return what compresses a model's weights by a configuration of `coremltools.optimize`."""

    def compress(model: Any) -> Any:
        import coremltools.optimize.coreml as cto

        kind, _, _ = name.partition("_")
        configs = {
            "palettize": cto.OpPalettizerConfig,
            "linear": cto.OpLinearQuantizerConfig,
            "prune": cto.OpMagnitudePrunerConfig,
        }
        config = cto.OptimizationConfig(global_config=configs[kind](weight_threshold=0, **options))
        return getattr(cto, name)(model, config)

    return compress


def _write_multifunction(path: Path) -> None:
    import coremltools as ct

    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, module in methods().items():
        part = path.with_name(f"{name}-{path.name}")
        inputs = [ct.TensorType("x", (5, 24))]
        _trace(module, torch.zeros(5, 24), "iOS18", inputs=inputs).save(str(part))
        descriptor.add_function(str(part), "main", name)
    descriptor.default_function_name = "encode"
    ct.utils.save_multifunction(descriptor, str(path))


def _pte(
    modules: Callable[[], nn.Module | Mapping[str, nn.Module]],
    example: torch.Tensor,
    precision: str = "FLOAT16",
    dynamic: Mapping[int, Any] | None = None,
    **options: Any,
) -> Callable[[Path], None]:
    """Return what exports modules, a method each, by ExecuTorch's Core ML partitioner."""

    def write(path: Path) -> None:
        import coremltools as ct
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner
        from executorch.exir import to_edge_transform_and_lower

        made = modules()
        of_methods = {"forward": made} if isinstance(made, nn.Module) else made
        shapes = None if dynamic is None else ((dict(dynamic),),)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            specs = CoreMLBackend.generate_compile_specs(
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=ct.precision[precision],
            )
            programs = {
                name: torch.export.export(module, (example,), dynamic_shapes=shapes)
                for name, module in of_methods.items()
            }
            partitioner = CoreMLPartitioner(compile_specs=specs, **options)
            lowered = to_edge_transform_and_lower(programs, partitioner=[partitioner])
            path.write_bytes(lowered.to_executorch().buffer)

    return write


def _sizes(ct: Any) -> list[ct.TensorType]:
    height, width = ct.RangeDim(8, 40, default=15), ct.RangeDim(8, 40, default=21)
    return [ct.TensorType("image", (1, 3, height, width))]


def _lengths(ct: Any) -> list[ct.TensorType]:
    import numpy as np

    shapes = ct.EnumeratedShapes([[1, length] for length in LENGTHS], default=[1, LENGTHS[0]])
    return [ct.TensorType("tokens", shapes, np.int32)]


def _state(ct: Any) -> list[ct.StateType]:
    import numpy as np

    return [ct.StateType(ct.TensorType(shape=(1, WIDTH), dtype=np.float16), name="average")]


_X, _PIXELS = torch.zeros(5, 24), torch.zeros(IMAGE)
_TOKENS = torch.zeros(1, LENGTHS[0], dtype=torch.int32)
_ROWS = _tensor((5, 24))
_IMAGE = _tensor(IMAGE, "image")


def _weights_of(name: str, target: str = "iOS18", **options: Any) -> Callable[[Path], None]:
    return _package(perceptron, _X, target, _optimized(name, **options), inputs=_ROWS)


OTHERS = {
    "perceptron.mlpackage": Other(_package(perceptron, _X, inputs=_ROWS), "perceptron"),
    "fp32.mlpackage": Other(
        _package(
            perceptron,
            _X,
            "iOS15",
            inputs=_ROWS,
            compute_precision=lambda ct: ct.precision.FLOAT32,
        ),
        "perceptron",
    ),
    "ranges.mlpackage": Other(
        _package(convolutions, _PIXELS, "iOS16", inputs=_sizes), "convolutions"
    ),
    "listed.mlpackage": Other(
        _package(encoder, _TOKENS, inputs=_lengths), "encoder", frozenset({"H47"})
    ),
    "state.mlpackage": Other(
        _package(average, torch.zeros(1, WIDTH), inputs=_tensor((1, WIDTH)), states=_state),
        "average",
    ),
    "image.mlpackage": Other(
        _package(
            upsampler,
            _PIXELS,
            "iOS17",
            inputs=lambda ct: [ct.ImageType("image", IMAGE, scale=SCALE, bias=[BIAS] * 3)],
        ),
        "of_pixels",
    ),
    "classifier.mlpackage": Other(
        _package(
            classifier,
            _PIXELS,
            "iOS16",
            inputs=_IMAGE,
            classifier_config=lambda ct: ct.ClassifierConfig(["a", "b", "c", "d", "e"]),
        ),
        "classifier",
    ),
    "multifunction.mlpackage": Other(_write_multifunction, "methods"),
    "palettes-4.mlpackage": Other(_weights_of("palettize_weights", nbits=4), "perceptron"),
    "palettes-6.mlpackage": Other(_weights_of("palettize_weights", "iOS16", nbits=6), "perceptron"),
    "int8.mlpackage": Other(
        _weights_of("linear_quantize_weights", mode="linear_symmetric"), "perceptron"
    ),
    "uint8.mlpackage": Other(
        _weights_of("linear_quantize_weights", "iOS16", mode="linear", dtype="uint8"), "perceptron"
    ),
    "blocks-4.mlpackage": Other(
        _weights_of("linear_quantize_weights", dtype="int4", granularity="per_block", block_size=8),
        "perceptron",
    ),
    "sparse.mlpackage": Other(_weights_of("prune_weights", target_sparsity=0.3), "perceptron"),
    "w8a8.mlpackage": Other(
        _package(
            activations,
            _X,
            "iOS17",
            _optimized("linear_quantize_weights", mode="linear_symmetric"),
            inputs=_ROWS,
        ),
        "activations",
        frozenset({"H35"}),  # a real W8A8 model of iOS 17 has signed weights
    ),
    "outputs.mlpackage": Other(_package(statistics, _X, "iOS17", inputs=_ROWS), "statistics"),
    "masked.mlpackage": Other(
        _package(masked, _X, "iOS17", inputs=_ROWS),
        "masked",
        frozenset({"H31"}),  # the report is of `where` with scalars
    ),
    "lstm.mlpackage": Other(
        _package(recurrent, torch.zeros(2, 6, 8), "iOS17", inputs=_tensor((2, 6, 8))),
        "recurrent",
        frozenset({"H42"}),
    ),
    "perceptron.pte": Other(_pte(perceptron, _X), "perceptron"),
    "fp32.pte": Other(_pte(convolutions, _PIXELS, "FLOAT32"), "convolutions"),
    "ranges.pte": Other(
        _pte(
            convolutions,
            _PIXELS,
            dynamic={2: torch.export.Dim("height", min=8, max=40)},
        ),
        "convolutions",
    ),
    "tokens.pte": Other(_pte(encoder, _TOKENS), "encoder"),
    "state.pte": Other(_pte(average, torch.zeros(1, WIDTH)), "average"),
    "buffer.pte": Other(
        _pte(average, torch.zeros(1, WIDTH), take_over_mutable_buffer=False), "average"
    ),
    "partly.pte": Other(
        _pte(perceptron, _X, skip_ops_for_coreml_delegation=["aten.gelu.default"]), "perceptron"
    ),
    "methods.pte": Other(_pte(methods, _X), "methods"),
    "outputs.pte": Other(_pte(statistics, _X), "statistics", frozenset({"H49"})),
    "lstm.pte": Other(_pte(recurrent, torch.zeros(2, 6, 8)), "recurrent", frozenset({"H42"})),
}

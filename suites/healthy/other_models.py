"""Artifacts of models that are no language models, as coremltools and ExecuTorch make them.

To add a make, write its module in `other_modules` and a row of `OTHERS`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.results import Case
from harness.suites.healthy.other_modules import (
    BIAS,
    IMAGE,
    LENGTHS,
    SCALE,
    WIDTH,
    activations,
    average,
    classifier,
    convolutions,
    encoder,
    masked,
    methods,
    perceptron,
    recurrent,
    statistics,
    upsampler,
)

if TYPE_CHECKING:
    import coremltools as ct


@dataclass(frozen=True)
class Other:
    """A make of an artifact.

    `write` writes it to a path; `reference` names its function in `other_modules`. Each warning of
    the codes is true of this model.
    """

    write: Callable[[Path], None]
    reference: str
    warnings: frozenset[str] = frozenset()


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

OF_LANGUAGE_MODELS = frozenset({"H07", "H41"})
"""Codes of warnings that are true of language models.

Rows of the matrix have heads of over 16384 rows, and PyTorch's `rms_norm`, in fp16, is scaled by
the largest magnitude.
"""


def complaints(cases: Iterable[Case]) -> Iterator[str]:
    """Yield each complaint about sound models: a failure, or a warning not known as true."""
    for case in cases:
        if not case.passes:
            yield f"{case.check} on {case.runtime}: {case.summary}"
        other = OTHERS.get(case.fixture)
        true = OF_LANGUAGE_MODELS if other is None else other.warnings
        for found in case.findings:
            if found.warning and found.code not in true:
                yield f"nobody has found this warning true here: {found.sentence}"

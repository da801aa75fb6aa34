"""These tests run in a child, under `harness shim --policy widen`.

Most export a module twice, with Core ML and without: what ExecuTorch's own runtime then does with
the second is what is expected of the first.
"""

import gc

import coremltools as ct
import pytest
import torch
from executorch.backends.apple.coreml.compiler import CoreMLBackend
from executorch.backends.apple.coreml.partition import CoreMLPartitioner
from executorch.exir import to_edge, to_edge_transform_and_lower
from executorch.runtime import Runtime

from harness.shim.executorch import MethodProxy

gc.freeze()  # coremltools collects garbage per conversion: see tests/mil/programs.py


def portable(module, inputs, config=None, **options):
    """The bytes of a program of ExecuTorch's own kernels."""
    program = to_edge(torch.export.export(module.eval(), inputs, **options))
    return bytes(program.to_executorch(config).buffer)


def delegated(module, inputs, config=None, precision="FLOAT32", constants=None, skip=(), **options):
    """The bytes of a program whose operations, but for those to skip, are Core ML's."""
    state = options.pop("take_over", True)
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=getattr(ct.precision, precision),
    )
    partitioner = CoreMLPartitioner(
        compile_specs=specs,
        skip_ops_for_coreml_delegation=list(skip),
        take_over_mutable_buffer=state,
    )
    exported = torch.export.export(module.eval(), inputs, **options)
    program = to_edge_transform_and_lower(
        exported, partitioner=[partitioner], constant_methods=constants
    )
    return bytes(program.to_executorch(config).buffer)


def load(data, method="forward"):
    """A method, and with it the program: the runtime's own points into its bytes."""
    program = Runtime.get().load_program(data)
    loaded = program.load_method(method)
    loaded.program = program
    return loaded


def is_ours(method):
    return isinstance(method._method, MethodProxy)


class Affine(torch.nn.Module):
    """Two outputs, the second a scalar: x [2, 3], y [2, 3]."""

    def forward(self, x, y):
        return x * 2 + y, (x - y).sum()


class Counter(torch.nn.Module):
    """Adds up what it is given; how far it has come is a buffer."""

    def __init__(self, start=0.0):
        super().__init__()
        self.register_buffer("total", torch.full((4,), start))

    def forward(self, x):
        self.total.add_(x)
        return self.total * 2


X, Y = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3) / 3


@pytest.fixture(scope="session")
def affine():
    """(delegated, portable): the two programs of `Affine`."""
    constants = {"answer": 42, "name": "affine"}
    return delegated(Affine(), (X, Y), constants=constants), portable(Affine(), (X, Y))

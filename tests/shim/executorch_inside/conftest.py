"""These tests run in a child, under `harness shim --policy widen`.

Most export a module twice, with Core ML and without. The first program must do the same as the
second does on ExecuTorch's own runtime.
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
    """Return the bytes of a program of ExecuTorch's own kernels."""
    program = to_edge(torch.export.export(module.eval(), inputs, **options))
    return bytes(program.to_executorch(config).buffer)


def delegated(module, inputs, config=None, precision="FLOAT32", constants=None, skip=(), **options):
    """Return the bytes of a program that delegates all operations, but those to skip."""
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
    """Return a method and its program, because the runtime's own method points into its bytes."""
    program = Runtime.get().load_program(data)
    loaded = program.load_method(method)
    loaded.program = program
    return loaded


def is_ours(method):
    return isinstance(method._method, MethodProxy)


class Affine(torch.nn.Module):
    """Takes x [2, 3] and y [2, 3]; the second of its two outputs is a scalar."""

    def forward(self, x, y):
        return x * 2 + y, (x - y).sum()


class Counter(torch.nn.Module):
    """Adds its inputs up in a buffer."""

    def __init__(self, start=0.0):
        super().__init__()
        self.register_buffer("total", torch.full((4,), start))

    def forward(self, x):
        self.total.add_(x)
        return self.total * 2


X, Y = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3) / 3


@pytest.fixture(scope="session")
def affine():
    """Return the two programs of `Affine`: (delegated, portable)."""
    constants = {"answer": 42, "name": "affine"}
    return delegated(Affine(), (X, Y), constants=constants), portable(Affine(), (X, Y))

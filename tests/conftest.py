"""A small real program with a Core ML delegate, exported once; a full disk; and interrupts."""

import platform
import resource
import signal

import pytest


def pytest_runtest_setup(item):
    """Skip a test of Linux elsewhere."""
    if item.get_closest_marker("linux") and platform.system() != "Linux":
        pytest.skip("of Linux alone")


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    """Print as to a file: pytest-xdist's workers have a width, by which tables wrap."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _silent_progress(monkeypatch):
    """Show no progress, however slow the machine: tests compare standard error."""
    for name in ("_PATIENCE", "_REMINDER"):
        monkeypatch.setattr(f"harness.cli.progress.{name}", float("inf"))


@pytest.fixture(autouse=True)
def _usual_terminal(monkeypatch):
    """Let a stand-in for a terminal be one that redraws: a CI's own TERM may be dumb."""
    monkeypatch.setenv("TERM", "xterm")


class Mixed:
    """An operation for Core ML, an operation that is kept from it, and a constant."""

    @staticmethod
    def module():
        import torch

        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(8, 8)
                self.register_buffer("offset", torch.arange(8.0))

            def forward(self, x, y):
                hidden = torch.sigmoid(self.linear(x)) * 3
                return torch.relu(hidden - y) + self.offset, hidden

        torch.manual_seed(0)
        return Module().eval()


@pytest.fixture(scope="session")
def mixed_program(tmp_path_factory):
    """Return (path, eager module, inputs) of a .pte with Core ML delegates and kernel calls."""
    import coremltools as ct
    import torch
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import to_edge_transform_and_lower

    module = Mixed.module()
    inputs = (torch.randn(2, 8), torch.randn(2, 8))
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT32
    )
    partitioner = CoreMLPartitioner(
        compile_specs=specs, skip_ops_for_coreml_delegation=["aten.relu.default"]
    )
    lowered = to_edge_transform_and_lower(
        torch.export.export(module, inputs),
        partitioner=[partitioner],
        constant_methods={
            "answer": 42,
            "table": torch.arange(5, dtype=torch.int16),
            "name": "mixed",
        },
    )
    path = tmp_path_factory.mktemp("program") / "mixed.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    return path, module, inputs


@pytest.fixture
def fill_disk():
    """fill_disk(): no file can grow beyond 16 kB until the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def heeds_interrupts():
    """SIGINT interrupts this process and its children: those of a background job ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

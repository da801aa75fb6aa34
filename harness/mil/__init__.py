"""Executes an ML Program on PyTorch, on any machine: the exported bytes, not their model."""

from harness.mil.function import Function, load_function, observed
from harness.mil.policy import POLICIES, Policy, get_policy
from harness.mil.values import TensorType

__all__ = [
    "POLICIES",
    "Function",
    "Policy",
    "TensorType",
    "get_policy",
    "load_function",
    "observed",
]

"""Executes an ML Program on PyTorch, on any machine: the exported bytes, not their model."""

from harness.mil.block import observed
from harness.mil.function import Function, load_function
from harness.mil.policy import POLICIES, Policy, get_policy
from harness.mil.state import State
from harness.mil.types import TensorType

__all__ = [
    "POLICIES",
    "Function",
    "Policy",
    "State",
    "TensorType",
    "get_policy",
    "load_function",
    "observed",
]

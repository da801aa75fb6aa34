"""Executes an exported ML Program on PyTorch, on any machine.

*Data model.* `types` has the declared types, `values` the constants, `storage` the tensors that the
functions of one package share and those that persist from call to call; a `policy` sets the dtypes
of numbers.

*Plan.* A function is compiled once, at load, to a list of steps over numbered slots:

    load_function                          function.py
        compile_function                   compile.py: one Compiler for each block
            check_known                    operation.py: is the operation in this opset?
            read_constant                  values.py
            SharedTensors.constexpr        storage.py: constexpr operations run at load
            built                          block.py: calls the operation's builder in ops/
            Plan, Step                     block.py

*Evaluation.* A call fills the slots of the inputs and runs the steps:

    Function.__call__                      function.py: checks inputs and shapes (types.py)
        Block.run                          block.py: one generated Python function, checked step by
            Step.run                       step before the first call; step by step when observed
                fused                      fusion.py: of fewer steps, many of them by rows/
        Repeats.run                        function.py: what has changed since the last call

An operation is one builder in `ops/`; `operation` explains how to add one. `packed/` multiplies by
quantized weights without expanding them. `ranges` measures the ranges of FLOAT16 values.
"""

from harness.mil.block import observed
from harness.mil.function import Function, load_function, repeated
from harness.mil.storage import State
from harness.mil.types import POLICIES, Policy, TensorType, get_policy

__all__ = [
    "POLICIES",
    "Function",
    "Policy",
    "State",
    "TensorType",
    "get_policy",
    "load_function",
    "observed",
    "repeated",
]

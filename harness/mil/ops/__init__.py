"""Implementations of MIL operations; importing this package registers them all.

Each module has the name of the module in which coremltools defines the same operations. The source
of each rule is the operation's page in coremltools' MIL reference, opsets iOS 15 to iOS 18.
"""

from harness.mil.ops import (  # noqa: F401
    activation,
    classify,
    compression,
    constexpr_ops,
    control_flow,
    conv,
    elementwise_binary,
    elementwise_unary,
    image_resizing,
    linear,
    normalization,
    pool,
    quantization_ops,
    random,
    recurrent,
    reduction,
    scatter_gather,
    states,
    tensor_operation,
    tensor_transformation,
    transformers,
)

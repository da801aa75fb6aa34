"""Failures of converters and exporters that people have reported, and what to do about each."""

import re

_REPORTED = (
    (
        r"query, key, value must have a same batch dimension|"
        r"Incompatible dim 1 in shapes \((\d+), \d+\) vs\. \(\1, \d+\)",
        "coremltools before 9.1 does not convert attention with `enable_gqa` (coremltools 2855): "
        "repeat keys and values by `repeat_interleave`, and leave the option out",
    ),
    (
        r"TypeError: only 0-dimensional arrays can be converted",
        "coremltools 9.0 does not convert sizes with numpy 2.4 (coremltools 2633): "
        "pip install 'numpy<2.4'",
    ),
    (
        r"Incompatible dim 3 in shapes \(1, 3, \d+, \d+\) vs\. \(1, 1, 1, 3\)",
        "the scale of an ImageType must be one number (coremltools 2461): scale each channel "
        "inside the model",
    ),
    (
        r"KeyError: torch\.\w+",
        "Core ML has no inputs of this dtype, and ExecuTorch's partitioner does not leave them out "
        "(executorch 11686): cast them to int32 or a float dtype before the model",
    ),
    (
        r"Rank-0 \(input .*\) is unsupported",
        "Core ML has no inputs of rank 0 (executorch 2769): give the tensor the shape [1]",
    ),
    (
        r"not enough values to unpack \(expected 5, got 1\)",
        "coremltools does not convert `torch.rand` (executorch 11722): pass random numbers as an "
        "input",
    ),
    (
        r"Flexible shape model states are not supported",
        "a state has one shape (coremltools 2537): give it the longest one, and slice it",
    ),
)
"""What a failure looks like, as `kind: reason`, and what people found to do about it."""


def conversion_remedy(kind: str, reason: str) -> str:
    """Return what to do about a reported failure of a converter or exporter, "" for another one."""
    text = f"{kind}: {reason[:4000]}"
    return next((remedy for sign, remedy in _REPORTED if re.search(sign, text)), "")


def with_remedy(kind: str, reason: str) -> str:
    """Return a failure as a sentence, with its remedy when it is a reported one."""
    known = conversion_remedy(kind, reason)
    return f"{kind}: {reason}{f'; known: {known}' if known else ''}"

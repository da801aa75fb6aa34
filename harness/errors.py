"""Errors that are sentences for the person who has to act.

The command line prints the sentence and exits with the error's status, without a traceback.
"""

import re


class HarnessError(Exception):
    """The input or the call was bad: what was wrong, where, and what to do."""

    exit_status = 2


class ArtifactError(HarnessError):
    """An artifact is truncated, damaged or contradicts itself; the message says where."""


class IndexRangeError(ArtifactError):
    """An operation was given an index that its tensor does not have."""


class NoReferenceError(HarnessError):
    """There is nothing to compare a result with, or no tolerance to judge it by."""


class ExecutionError(HarnessError):
    """An operation cannot be executed on the values and shapes that it was given.

    `where` names the file, the function and the operation.
    """

    def __init__(self, where: str, kind: str, reason: str) -> None:
        super().__init__(f"{where}: {kind}: {reason}")
        self.where = where
        self.reason = reason


class NotInstalledError(HarnessError):
    """This call needs a part that is not installed, or that does not exist on this machine."""

    exit_status = 3


class ConversionError(HarnessError):
    """A converter or an exporter failed: an exception of the class named `kind`, for `reason`.

    A failure that people have reported comes with its remedy.
    """

    def __init__(self, where: str, kind: str, reason: str) -> None:
        known = conversion_remedy(kind, reason)
        super().__init__(f"{where}: {kind}: {reason}{f'; known: {known}' if known else ''}")


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


class CrashError(HarnessError):
    """A child process died; `signal` says how ("SIGSEGV", "exit status 3")."""

    def __init__(self, message: str, signal: str) -> None:
        super().__init__(message)
        self.signal = signal


class ChildError(HarnessError):
    """Code in a child process raised an exception of the class named `kind`, for `reason`."""

    def __init__(self, where: str, kind: str, reason: str) -> None:
        super().__init__(f"{where}: {kind}: {reason}")
        self.kind = kind
        self.reason = reason


class CallTimeoutError(HarnessError):
    """A child process did not answer in time and was ended."""

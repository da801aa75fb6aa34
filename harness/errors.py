"""Errors that are sentences for the person who has to act.

The command line prints the sentence and exits with the error's status, without a traceback.
"""

from harness.remedies import with_remedy


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
        super().__init__(f"{where}: {with_remedy(kind, reason)}")


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

"""Errors that are sentences for the person who has to act.

The command line prints the sentence and exits with the error's status, without a traceback.
"""


class HarnessError(Exception):
    """The input or the call was bad: what was wrong, where, and what to do."""

    exit_status = 2


class ArtifactError(HarnessError):
    """An artifact is truncated, damaged or contradicts itself; the message says where."""


class NotInstalledError(HarnessError):
    """This call needs a part that is not installed, or that does not exist on this machine."""

    exit_status = 3


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

"""Errors that are sentences for the person who has to act.

The command line prints the sentence and exits with the error's status: no traceback.
"""


class HarnessError(Exception):
    """The input or the call was bad: what was wrong, where, and what to do."""

    exit_status = 2


class NotInstalledError(HarnessError):
    """A part that this call needs is not installed, or not to be had on this machine."""

    exit_status = 3

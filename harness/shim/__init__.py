"""Stands in for Core ML where there is none: scripts that predict run unchanged, on our executor.

coremltools reaches Core ML through a native module, `coremltools.libcoremlpython`, which exists on
macOS only. `install` provides a module of that name, and coremltools' own Python works as it is:

    import harness.shim
    harness.shim.install()
    import coremltools as ct            # predicts, makes states, compiles, loads from memory

`harness shim -- COMMAND ...` does the same for a command, before its first line runs.
"""

from harness.shim.install import install, is_installed
from harness.shim.launch import POLICY_VARIABLE, SITE

__all__ = ["POLICY_VARIABLE", "SITE", "install", "is_installed"]

"""An asv plugin: the environment `installed`, a Python in which all is installed already.

asv's own environment `existing` names a series by the path of its Python. A fresh machine, or a
fresh folder, would then begin another series. This module is not among the benchmarks, because asv
imports all of those in environments that have no asv.
"""

from __future__ import annotations

import sys
from typing import Any

from asv.environment import ExistingEnvironment


class InstalledEnvironment(ExistingEnvironment):  # type: ignore[misc]  # asv has no types
    """The Python that runs asv, by its path, which no result contains: a series has its version.

    `parameters` of the configuration names what a session measures, so that sessions of other
    subjects at the same commit have files of their own.
    """

    tool_name = "installed"

    def __init__(self, conf: Any, *arguments: Any) -> None:
        self._version = ".".join(map(str, sys.version_info[:2]))
        self._parameters = str(getattr(conf, "parameters", "all"))
        super().__init__(conf, *arguments)
        self._python = self._version

    @property
    def name(self) -> str:
        """The name of its results' files."""
        return f"py{self._version}-{self._parameters}"

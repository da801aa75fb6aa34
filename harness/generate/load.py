"""From an artifact and a runtime to a session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.errors import HarnessError, NotInstalledError
from harness.generate.layout import method_names, parse_layout
from harness.generate.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from harness.artifact import Artifact
    from harness.models.model import Freqs
    from harness.runtimes.base import Runtime


def open_session(artifact: Artifact, runtime: Runtime, tables: Freqs | None = None) -> Session:
    """Load an artifact's methods on a runtime, parse its layout, and start a session.

    `tables`, cosines and sines as long as the artifact's own, are used instead of those.
    Raises NotInstalledError if the runtime cannot be used here, HarnessError if the artifact does
    not describe a language model.
    """
    reason = runtime.unavailable()
    if reason is not None:
        raise NotInstalledError(f"runtime {runtime.name} cannot be used here: {reason}")
    with _naming(artifact.path):
        names = method_names(artifact.constants)
        missing = [name for name in names if name not in artifact.methods]
        if missing:
            raise HarnessError(
                f"its constants describe a method '{missing[0]}' that is not among its methods "
                f"({', '.join(artifact.methods)})"
            )
    methods = {name: runtime.load(artifact, name) for name in names}
    with _naming(artifact.path):
        layout = parse_layout(artifact.constants, methods)
    if tables is not None:
        layout = replace(layout, freqs_cos=tables[0], freqs_sin=tables[1])
    return Session(methods, layout)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except HarnessError as error:
        raise HarnessError(f"{path}: {error}") from error

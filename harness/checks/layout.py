"""The constant methods that tell a runner where caches, masks and tables go."""

from __future__ import annotations

from collections.abc import Iterator

from harness.checks.finding import Finding
from harness.checks.subject import Subject


def check_cache_rows(subject: Subject) -> Iterator[Finding]:
    """Each row of `kv_cache_specs` pairs a layer's cache inputs with the same layer's outputs.

    ExecuTorch 1.4 sorts rows by the cache's name as text ("l10,h0" before "l2,h0") but numbers the
    outputs in layer order: from eleven layers on, a runner that believes the rows stores one
    layer's keys in another layer's cache.
    """
    layout = subject.session("mil:widen").layout
    yield Finding(
        "cache-rows",
        "kv_cache_specs",
        ok=layout.crossed_rows == 0,
        message=f"{layout.crossed_rows} rows pair one layer's input with another layer's output",
        comparisons=layout.n_layers,
        facts={"crossed rows": layout.crossed_rows},
    )

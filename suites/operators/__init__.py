"""Runs coremltools' own operator tests against the stand-in for Core ML.

    harness shim --policy widen -- python -m harness.suites.operators [--everything] [-n 2]

The tests, their expected values and their tolerances are coremltools'; nothing here says what an
operation should give. `selection` chooses among them, `impossible.toml` lists those that cannot
apply, `watch` sees which really predicted, `tally` adds up, `plugin` tells pytest.
"""

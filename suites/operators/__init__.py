"""Runs coremltools' own operator tests against the stand-in for Core ML.

    harness shim --policy widen -- python -m suites.operators [--everything] [-n 2]

The tests, their expected values and their tolerances are coremltools'; nothing here says what an
operation should give. `selection` chooses among them, `impossible` lists those that cannot apply,
`watch` sees which really predicted, `half` states when fp16 resolution is enough, `tally` adds up.
"""

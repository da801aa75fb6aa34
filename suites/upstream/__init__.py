"""Runs ExecuTorch's own Core ML tests, unmodified, against the stand-in for its runtime.

    harness shim -- python -m harness.suites.upstream [--source DIR] [--file NAME] [PYTEST OPTIONS]

The tests execute their exports only on a Mac: gates in their source ask whether Core ML is there.
`gates` opens these, and reads from a test's source which assertions they guard; `watch` sees which
assertions ran. A test that passes without all of its own has not passed.
"""

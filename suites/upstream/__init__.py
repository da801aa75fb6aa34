"""Runs ExecuTorch's own Core ML tests, unmodified, against the stand-in for its runtime.

    harness shim -- python -m suites.upstream [--source DIR] [--file NAME] [options of pytest]

The tests execute what they export where their own gates say that there is a Core ML: on a Mac.
`gates` opens these, and reads from a test's source which assertions stand behind them; `watch` sees
which of them ran. A test that passes without all of its own has not passed.
"""

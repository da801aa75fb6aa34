"""The miniature suite runs in a child, under `harness shim`: `test_operators_run.py` starts it."""

collect_ignore = ["miniature"]

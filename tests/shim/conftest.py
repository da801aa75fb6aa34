"""The tests in `inside` run in a child, under `harness shim`: `test_inside.py` starts them."""

collect_ignore = ["inside", "scripts"]

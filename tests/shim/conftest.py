"""What is inside runs in a child, under `harness shim`: `test_inside.py` names its files."""

collect_ignore = ["inside", "scripts"]

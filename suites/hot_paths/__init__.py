"""Times the harness's own hot paths with pytest-benchmark."""

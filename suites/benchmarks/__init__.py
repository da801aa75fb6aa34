"""asv benchmarks: latency of prefill and decode, load time, and size, per runtime and mode.

`asv run` makes an environment for each commit; `nox -s bench` uses the one that nox has. Set
HARNESS_BENCH_PROFILE=large to time SmolLM2 beside `tiny`.
"""

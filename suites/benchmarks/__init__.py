"""asv benchmarks: latency of prefill and decode, load time, memory and size; see README.md."""

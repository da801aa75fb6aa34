"""Judges exports: pytest suites, mutants, benchmarks, fuzzing and other projects' tests."""

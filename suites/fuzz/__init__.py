"""Loads and calls mutated artifacts: each must be executed or refused, in bounded time and memory.

`python -m harness.suites.fuzz` runs 10,000 cases and prints their outcomes. The seed and its number
make a case, so `--case N` runs any one again. To add a mutation, write a function in `of_programs`
or `of_bytes` and put it into the table at the module's end. With names of families, readers alone
are fuzzed, guided by coverage: to add one, write a row in `readers` and its sound files in
`corpora`.
"""

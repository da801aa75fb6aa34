"""Mutated artifacts are loaded and called: each is executed or refused, in bounded time and memory.

`python -m harness.suites.fuzz` runs 10,000 cases and prints what became of them; a case is made of
the seed and its number alone, so `--case N` shows any one again. To add a mutation: write a
function in `of_programs` or `of_bytes` and put it into the table at the module's end.
"""

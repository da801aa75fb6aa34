"""Times, memory and sizes of artifacts over the commits of a repository, by asv; see README.md.

`language_models` has the benchmarks that asv finds, `figures` measures, `installed` is the
environment that asv runs them in, and `history` keeps the results of each repository.
"""

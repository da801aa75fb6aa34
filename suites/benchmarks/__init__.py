"""Times, memory and sizes of artifacts over the commits of a repository, by asv; see README.md.

`language_models` has the benchmarks that asv finds, `figures` measures, and `history` keeps the
results of each repository. The environment in which asv runs them is `harness.suites.asv_plugin`.
"""

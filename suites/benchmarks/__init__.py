"""Times, memory and sizes of artifacts over the commits of a repository, by asv; see README.md.

`language_models` has the benchmarks that asv finds, `figures` measures, `repository` keeps the
results, and `history` judges them. asv runs them in the environment of `harness.suites.asv_plugin`.
"""

"""Runs every step of the Mac job on Linux, with the platform and Core ML's module stood in for.

    python -m harness.suites.rehearsal --nox PYTHON_WITH_NOX [STEP ...]

`steps` reads the job from `.github/workflows/ci.yml`. A step's processes start with `site` in
PYTHONPATH, whose `sitecustomize` calls `stand_in.install`: the project, its tests, coremltools and
ExecuTorch then see macOS, and `programs` in PATH answer as a Mac's commands do. A call that macOS
does not have fails, so that a test which must not run on a Mac does too. `lines` counts which lines
of the Mac's runtimes ran.
"""

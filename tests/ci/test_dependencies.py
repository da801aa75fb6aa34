"""`pyproject.toml` declares every package that the code imports, and no other."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMED_OTHERWISE = {"google": "protobuf", "coreai": "coreai-core"}  # and not installed everywhere
OURS = {"harness", "fixtures", "suites", "tests"}
NOT_IMPORTED = {
    "ruamel-yaml",  # ExecuTorch imports it
    "pytest-timeout",  # a plugin of pytest
}


def imported():
    """Return the top-level packages that the code imports, at any depth of a file."""
    found = set()
    for folder in ("harness", "fixtures", "suites"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module)
    return {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - OURS


def normal(name):
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~ \[;]", name)[0]).lower()


def distributions():
    """Return the distributions of the imported packages."""
    known = packages_distributions()
    return {normal(NAMED_OTHERWISE.get(name) or known.get(name, [name])[0]) for name in imported()}


def test_every_import_is_declared():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert distributions() - {normal(row) for group in groups for row in group} == set()


def test_every_dependency_is_imported():
    declared = {normal(row) for row in PROJECT["dependencies"]}
    assert declared - distributions() - NOT_IMPORTED == set()


def test_the_citation_has_the_version_and_licence_of_the_project():
    cited = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["title"], cited["version"]) == (PROJECT["name"], PROJECT["version"])
    assert cited["license"] == PROJECT["license"]

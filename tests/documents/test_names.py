"""What pages name exists: commands and their options, sessions of nox, files and headings."""

import argparse
import ast
import re
from functools import cache
from pathlib import Path

import pytest

import harness
from harness.cli import COMMANDS
from tests.documents.pages import PAGES, ROOT

ALL = [*PAGES, "ARCHITECTURE.md", "CONTRIBUTING.md", "results/README.md"]
ALL += ["suites/benchmarks/README.md"]
_PASSED_ON = ("conformance", "shim")  # their options are another program's


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def commands(text):
    """Yield the words of each command of the harness, in code of a line or in a block."""
    for code in re.findall(r"`(?:\$ )?(harness [^`]+)`", text):
        yield code.split()
    for line in re.findall(r"^\$ (harness (?:.*\\\n)*.*)$", text, re.MULTILINE):
        yield line.replace("\\\n", " ").split()


@cache
def options_of(command):
    parser = argparse.ArgumentParser()
    COMMANDS[command].add_arguments(parser)
    common = {"-q", "--quiet", "-v", "--verbose"}
    return common | {name for action in parser._actions for name in action.option_strings}


def unknown(text):
    """Return the commands and options that do not exist."""
    found = []
    for _, command, *words in commands(text):
        if command.startswith("-") or not re.fullmatch("[a-z]+", command):
            continue
        if command not in COMMANDS:
            found.append(command)
        elif command not in _PASSED_ON:
            given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            found += [f"{command} {name}" for name in sorted(given - options_of(command))]
    return found


@pytest.mark.parametrize("page", ALL)
def test_commands_and_options_exist(page):
    assert unknown(text_of(page)) == []


def test_a_command_or_an_option_that_does_not_exist_is_found():
    text = "`harness chekc x` and `harness check x --goldn G`\n$ harness run x \\\n    --nope\n"
    assert unknown(text) == ["chekc", "check --goldn", "run --nope"]


def sessions():
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {_session(function) for function in functions}


def _session(function):
    """Return the name that a decorator gives, as `@nox.session(name="a-b")`, or the function's."""
    decorators = [one for one in function.decorator_list if isinstance(one, ast.Call)]
    given = [key.value.value for one in decorators for key in one.keywords if key.arg == "name"]
    return given[0] if given else function.name


@pytest.mark.parametrize("page", ALL)
def test_sessions_of_nox_exist(page):
    named = re.findall(r"nox (?:-R )?-s ([a-z_-]+(?: [a-z_]+)*)", text_of(page).replace("\n", ";"))
    assert {name for names in named for name in names.split()} <= sessions()


def headings(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("page", [*ALL, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_of(page)):
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in headings(Path(file)), target


def test_the_page_of_python_names_has_the_whole_interface():
    named = re.findall(r"^::: harness\.(\w+)$", text_of("docs/api.md"), re.MULTILINE)
    assert sorted(named) == harness.__all__

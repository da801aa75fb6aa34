"""The size and shape of the code: few files, short functions, no circle of imports."""

import ast
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("harness", "fixtures", "suites")  # harness/fixtures and harness/suites are links to these

MAX_FILES = 219
MAX_FILE_LINES = 350
SMALL_FILE_LINES = 40
MAX_SMALL_FILES = 12
MAX_FUNCTION_LINES = 60


def python_files(room):
    """Return the Python files of a folder; those of a folder that is only linked are left out."""
    files = sorted((ROOT / room).rglob("*.py"))
    return [file for file in files if file.resolve() == file]


def lines(file):
    return len(file.read_text(encoding="utf-8").splitlines())


def functions(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_harness_has_few_files_and_few_small_ones():
    files = python_files("harness")
    small = [str(file.relative_to(ROOT)) for file in files if lines(file) < SMALL_FILE_LINES]
    assert 0 < len(files) <= MAX_FILES
    assert len(small) <= MAX_SMALL_FILES, small


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_is_long(room):
    long = {str(f.relative_to(ROOT)): lines(f) for f in python_files(room)}
    assert {name: n for name, n in long.items() if n > MAX_FILE_LINES} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_no_function_is_long(room):
    long = [
        f"{file.relative_to(ROOT)}:{function.lineno} {function.name}"
        for file in python_files(room)
        for function in functions(file)
        if function.end_lineno - function.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def in_circles(imports):
    """Return the modules that are in a circle of imports, or between two circles.

    `imports` has the modules that each module imports.
    """
    left = dict(imports)
    for edges in (imports, inverted(imports)):
        while leaves := [module for module in left if not edges[module] & left.keys()]:
            for module in leaves:
                del left[module]
    return sorted(left)


def inverted(imports):
    return {m: {other for other, targets in imports.items() if m in targets} for m in imports}


def test_no_files_import_each_other_in_a_circle():
    """Imports within functions, and those for type checkers alone, count too."""
    graph = grimp.build_graph("harness", cache_dir=None)
    assert {"harness.suites", "harness.fixtures"} <= graph.modules
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 150
    assert in_circles(imports) == []


def test_a_circle_is_found():
    """A module that only leads to a circle, or that a circle leads to, is not in it."""
    imports = {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b", "e"}, "e": set()}
    assert in_circles(imports) == ["b", "c", "d"]
    assert in_circles(imports | {"d": {"e"}}) == []

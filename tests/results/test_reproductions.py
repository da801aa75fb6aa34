"""Each row of `suites/known.toml` has one command, and the command selects the row's cases."""

import shlex
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from harness.fixtures import all_models
from harness.suites.runners.older import OLDER
from harness.suites.runners.scenarios import SCENARIOS
from harness.suites.runners.tools import TOOLS
from harness.suites.runners.vocabularies import VOCABULARIES

ROOT = Path(__file__).parents[2]
ROWS = tomllib.loads((ROOT / "suites" / "known.toml").read_text())["known"]
SCRIPTS = [
    (one.check.name, one.fixture, mode)
    for one in (*SCENARIOS, *VOCABULARIES, *TOOLS, *OLDER)
    for mode in one.modes
]


def name_of(row):
    return "-".join(row.get(key, "") for key in ("check", "fixture", "mode", "runtime"))


def command_of(row):
    line = row["reproduction"].strip().splitlines()[-1]
    session, dashes, *words = shlex.split(line.removeprefix("One command: nox -s "))
    assert line.startswith("One command: ") and dashes == "--"
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert {"--exporter", "-k"} <= options.keys()
    return session, options


def selects(expression, name):
    parts = expression.split(" and ")
    return all(p[4:] not in name if p.startswith("not ") else p in name for p in parts)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_the_command_of_a_row_selects_its_cases(row):
    session, options = command_of(row)
    check, mode = row.get("check", "*"), row.get("mode", "*")
    assert options["--exporter"].partition("@")[0] == row["exporter"].split()[0]
    if session == "runners":
        given = [one for one in SCRIPTS if selects(options["-k"], "x-" + "-".join(one))]
        assert given and {name for name, _, _ in given} == {check}
        assert all(fnmatchcase(of, mode) for _, _, of in given)
        assert all(fnmatchcase(fixture, row.get("fixture", "*")) for _, fixture, _ in given)
    elif session == "installation":
        assert selects(options["-k"], check)
    else:
        assert options["--fixture"] in all_models()
        assert fnmatchcase(options["--fixture"], row.get("fixture", "*"))
        assert fnmatchcase(options.get("--mode", mode), mode)
        assert options.get("--runtime", "*") == row.get("runtime", "*")
        assert check in ("*", options["-k"])

"""The Python interface: its page runs as it is, its names exist, and importing it is quick."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import harness
from harness.results import Figure
from tests.results.runs import PARITY, write_run

PAGE = Path(__file__).resolve().parents[1] / "docs/python.md"


def blocks(text):
    """Yield the code of each fenced block, moved down to the line that it has on the page."""
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield "\n" * text[: found.start(1)].count("\n") + found[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_block_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(Path("base.jsonl"), PARITY)
    slower = {**PARITY.figures, "decode": Figure(4.0, "ms/token")}
    write_run(Path("head.jsonl"), replace(PARITY, figures=slower))
    code = list(blocks(PAGE.read_text(encoding="utf-8")))
    names = {}
    for block in code:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(code) == 12
    printed = capsys.readouterr().out
    assert "Saturday" in printed and "PASSED: " in printed
    assert {case.outcome for case in names["cases"]} <= {"pass", "skip"}
    assert [case.outcome for case in names["same"]] == ["pass"]
    assert names["figures"]["mil:widen"]["decode_ms_per_token"] > 0
    assert names["combined"].stored < names["combined"].used


def test_the_page_names_the_whole_interface():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in harness.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_each_name_is_what_a_type_checker_takes_it_for():
    source = Path(harness.__file__).read_text(encoding="utf-8")
    typed = {}
    for module, names in re.findall(r"^    from (harness\.[\w.]+) import (.+)$", source, re.M):
        typed |= dict.fromkeys(names.split(", "), module)
    assert sorted(typed) == harness.__all__
    for name, module in typed.items():
        assert getattr(harness, name) is getattr(sys.modules[module], name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'harness' has no attribute 'chekc'"):
        _ = harness.chekc
    assert set(harness.__all__) <= set(dir(harness))


def test_the_import_loads_no_other_library():
    code = (
        "import sys; before = set(sys.modules); import harness; new = set(sys.modules) - before;"
        "print(sorted(m for m in new if m.partition('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['harness']\n"

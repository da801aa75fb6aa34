"""What `examples/` holds runs: the notebook cell by cell, and prints what it shows."""

import contextlib
import io
import json

import pytest

from tests.documents.pages import ROOT, difference

NOTEBOOK = ROOT / "examples" / "judge.ipynb"


def cells(notebook):
    """Return the code and the shown output of each cell of code."""
    read = json.loads(notebook.read_text(encoding="utf-8"))
    assert (read["nbformat"], read["metadata"]["language_info"]["name"]) == (4, "python")
    return [
        ("".join(cell["source"]), "".join(t for o in cell["outputs"] for t in o["text"]))
        for cell in read["cells"]
        if cell["cell_type"] == "code"
    ]


def test_the_notebook_is_small_and_its_cells_compile():
    assert NOTEBOOK.stat().st_size < 20_000
    found = cells(NOTEBOOK)
    for code, _ in found:
        compile(code, str(NOTEBOOK), "exec")
    assert len(found) == 5 and sum(bool(shown) for _, shown in found) == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_notebook_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code, shown in cells(NOTEBOOK):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(NOTEBOOK), "exec"), names)
        assert difference(shown, printed.getvalue()) == "", code
    page = (tmp_path / "judged" / "index.html").read_text(encoding="utf-8")
    assert 'id="operations"' in page and 'id="logits"' in page

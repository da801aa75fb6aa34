"""An output may only replace files that the harness wrote itself."""

from pathlib import Path

import pytest

from harness.artifact.pte_reader import FILE_IDENTIFIER
from harness.errors import HarnessError
from harness.files import Kind, partial_file, partial_folder

KIND = Kind("list.json", ("*/model/*",))


def write_pte(output):
    with partial_file(output, FILE_IDENTIFIER) as partial:
        partial.write_bytes(b"new")


def write_folder(output):
    with partial_folder(output, KIND, replace=True) as folder:
        (folder / "list.json").write_text("new")


@pytest.mark.parametrize("old", [None, b"", b"\x30\0\0\0" + FILE_IDENTIFIER + bytes(40)])
def test_a_pte_replaces_an_older_one(tmp_path, old):
    output = tmp_path / "m.pte"
    if old is not None:
        output.write_bytes(old)
    write_pte(output)
    assert output.read_bytes() == b"new" and list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("old", [b"PK\3\4 a checkpoint", b'{"dim": 64}', b"abc", b"1234ET"])
def test_a_pte_replaces_no_other_file(tmp_path, old):
    output = tmp_path / "m.pte"
    output.write_bytes(old)
    with pytest.raises(HarnessError, match="m.pte: exists, and is not a .pte; name another"):
        write_pte(output)
    assert output.read_bytes() == old and list(tmp_path.iterdir()) == [output]


def test_a_pte_replaces_no_device():
    with pytest.raises(HarnessError, match="/dev/null: exists, and is not a .pte"):
        write_pte(Path("/dev/null"))


@pytest.mark.parametrize("kept", ["", "a/model/b/c.bin", "a/model/.DS_Store", ".DS_Store"])
def test_a_folder_replaces_an_older_one_of_its_kind(tmp_path, kept):
    output = tmp_path / "out"
    for name in filter(None, ("list.json", kept)):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("old")
    write_folder(output)
    assert [path.name for path in output.rglob("*")] == ["list.json"]


@pytest.mark.parametrize("name", ["notes.txt", "a/notes.txt", "in/list.json"])
def test_a_folder_that_holds_more_is_kept(tmp_path, name):
    output = tmp_path / "out"
    for each in ("list.json", name):
        (output / each).parent.mkdir(parents=True, exist_ok=True)
        (output / each).write_text("old")
    with pytest.raises(HarnessError, match=f"holds '{name}', which is not of this kind"):
        write_folder(output)
    assert (output / name).read_text() == "old" and list(tmp_path.iterdir()) == [output]

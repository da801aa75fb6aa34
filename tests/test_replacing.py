"""An output may only replace files that the harness wrote itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.artifact.pte_reader import FILE_IDENTIFIER
from harness.errors import HarnessError
from harness.files import Kind, partial_file, partial_folder, private_folder
from harness.results import Writer
from tests.results.runs import HEADER, PARITY

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


@pytest.mark.parametrize("old", [False, True])
def test_a_folder_that_was_removed_meanwhile_is_an_error(tmp_path, old):
    output = tmp_path / "out"
    if old:
        write_folder(output)
    with (
        pytest.raises(HarnessError, match="was removed while it was written"),
        partial_folder(output, KIND, replace=True) as folder,
    ):
        folder.rmdir()
    assert list(tmp_path.iterdir()) == [output] * old


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
    with pytest.raises(HarnessError, match=f"holds '{name}', which would be lost"):
        write_folder(output)
    assert (output / name).read_text() == "old" and list(tmp_path.iterdir()) == [output]


KILLED = """
import os, sys
from pathlib import Path
from harness.files import Kind, partial_file, partial_folder, private_folder
from harness.results import Writer
from tests.results.runs import HEADER, PARITY
from tests.test_replacing import opened

with opened(*sys.argv[1:]):
    os.kill(os.getpid(), 9)
"""


def opened(kind, place):
    """Return a context that writes an output of a kind."""
    output = Path(place, "out")
    match kind:
        case "file":
            return partial_file(output)
        case "pte":
            return partial_file(output, FILE_IDENTIFIER)
        case "folder":
            return partial_folder(output, KIND)
        case "stream":
            return Writer(output, HEADER)
        case "private":
            return private_folder(f"{place}/out")
    raise AssertionError(kind)


KINDS = ("file", "pte", "folder", "stream", "private")


def kill_while_writing(kind, place):
    words = [sys.executable, "-c", KILLED, kind, str(place)]
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run(words, cwd=root).returncode == -9


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_process_has_left_goes_with_the_next(tmp_path, kind):
    for _ in range(2):
        kill_while_writing(kind, tmp_path)
    (left,) = tmp_path.iterdir()  # the second has removed that of the first
    (tmp_path / "mine.partial").touch()
    with opened(kind, tmp_path):
        pass
    assert not left.exists() and (tmp_path / "mine.partial").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_living_process_writes_stays(tmp_path, kind):
    with opened(kind, tmp_path):
        (first,) = tmp_path.iterdir()
        with opened(kind, tmp_path):
            assert first.exists()
        kill_while_writing(kind, tmp_path)
        assert first.exists()


def test_an_older_folder_under_its_other_name_goes_with_the_next(tmp_path):
    write_folder(tmp_path / "out")
    (tmp_path / f".out.{'0' * 24}.old").mkdir()
    write_folder(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_finished_stream_that_could_not_be_put_in_place_stays(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(HarnessError, match="the results are in"),
        Writer(tmp_path / "out", HEADER) as w,
    ):
        w.add(PARITY)
    (tmp_path / "out").rmdir()
    (kept,) = tmp_path.iterdir()
    with Writer(tmp_path / "out", HEADER) as writer:
        writer.add(PARITY)
    assert kept.exists() and (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["file", "pte"])
def test_a_file_replaces_no_pipe(tmp_path, kind):
    os.mkfifo(tmp_path / "out")
    with pytest.raises(HarnessError, match="exists, and is not a"), opened(kind, tmp_path):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_no_file_can_have_is_one_error(tmp_path, kind):
    with pytest.raises(HarnessError), opened(kind, f"{tmp_path}/a\0b"):
        pass

"""Files appear whole or not at all, and a path that cannot be written is one clear error."""

import pytest

from harness.errors import HarnessError
from harness.files import partial_file
from harness.results import InvalidStream, Writer, read_run
from tests.results.runs import HEADER, PARITY, write_run


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with (
        pytest.raises(HarnessError, match="cannot write .*taken: it is a folder"),
        partial_file(tmp_path / "taken"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_file_is_replaced_whole(tmp_path):
    for text in (b"first, and longer", b"second"):
        with partial_file(tmp_path / "page") as partial:
            partial.write_bytes(text)
    assert (tmp_path / "page").read_bytes() == b"second"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stream_under_a_file_is_refused_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match="file is a file, not a folder"):
        Writer(tmp_path / "file" / "run.jsonl", HEADER)


def test_a_run_that_cannot_be_put_in_place_says_where_its_results_are(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(HarnessError, match=r"the results are in .*\.partial"):
        write_run(tmp_path / "taken", PARITY)
    (partial,) = tmp_path.glob("*.partial")
    assert read_run(partial).cases == (PARITY,)


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(InvalidStream, match="cannot be read"):
        read_run(tmp_path / ("x" * 5000))

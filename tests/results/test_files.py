"""Files are whole or not there, and a place that cannot be written is one clear error."""

import pytest

from harness.errors import HarnessError
from harness.files import write_whole
from harness.results import InvalidStream, Writer, read_run
from tests.results.runs import HEADER, PARITY, write_run


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(HarnessError, match="taken cannot be written"):
        write_whole(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_file_is_replaced_whole(tmp_path):
    write_whole(tmp_path / "new" / "page", "first, and longer")
    write_whole(tmp_path / "new" / "page", "second\n")
    assert (tmp_path / "new" / "page").read_bytes() == b"second\n"
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_stream_under_a_file_is_refused_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match="cannot be written"):
        Writer(tmp_path / "file" / "run.jsonl", HEADER)


def test_a_run_that_cannot_be_put_in_place_says_where_its_results_are(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(HarnessError, match=r"The results are in .*\.partial"):
        write_run(tmp_path / "taken", PARITY)
    (partial,) = tmp_path.glob("*.partial")
    assert read_run(partial).cases == (PARITY,)


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(InvalidStream, match="cannot be read"):
        read_run(tmp_path / ("x" * 5000))

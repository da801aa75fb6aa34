"""Input files are regular and bounded, and their text can be written again."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.text import parse_json, parse_toml, read_file, require_outside

LONGEST = 60  # seconds
KINDS = ("pipe", "socket", "device", "folder")


def special(path, kind):
    """Make something at a path that is not a regular file; a link leads to a device."""
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(os.path.relpath(path))  # the whole path may be too long
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
    return path


@pytest.fixture
def soon():
    """End a test that hangs."""

    def end(*args):
        pytest.fail("it hangs")  # no `except` of the command takes it

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_regular_file_is_refused_and_not_waited_for(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = special(tmp_path / "x", kind)
    with pytest.raises(HarnessError, match=f"{path}: cannot be read .it is a {kind}, not a reg"):
        read_file(path, 100, "a file")


@pytest.mark.parametrize("name", ["absent", "x" * 300, "a\0b", "\ud800"])
def test_a_path_without_a_file_is_one_error(tmp_path, name):
    with pytest.raises(HarnessError, match="cannot be read"):
        read_file(tmp_path / name, 100, "a file")


def test_a_file_has_at_most_the_bytes_that_are_allowed(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_file(path, 5, "a word") == b"12345"
    assert read_file(path, 1 << 60, "a word") == b"12345"  # no memory is taken for the limit
    with pytest.raises(HarnessError, match=r"larger than 4 bytes: not a word"):
        read_file(path, 4, "a word")


@pytest.mark.linux
def test_a_file_that_tells_no_size_is_read_to_its_end_within_the_limit():
    path = Path("/proc/version")
    whole = path.read_bytes()
    assert path.stat().st_size == 0 < len(whole)
    for limit in (len(whole), 1 << 60):
        assert read_file(path, limit, "a text") == whole
    with pytest.raises(HarnessError, match="larger than 9 bytes: not a text"):
        read_file(path, 9, "a text")


@pytest.mark.parametrize(
    "value", ["ü", "\U0001f600", "\\ud800", "a\x1b", {"a": [1, "é"]}, "\ufeff"]
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_of_any_whole_text_is_read(value, ascii_only):
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"a": "\\ud800"}', "half of a character"),
        (b'{"\\uDFFFx": 1}', "half of a character"),
        (b'["\\ud83d \\ude00"]', "half of a character"),
        (b'"\xed\xa0\x80"', "codec can't decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 65 + b"]" * 65, "nested too deeply"),
        (b"{", "Expecting"),
    ],
)
def test_json_that_is_no_text_is_refused(data, problem):
    with pytest.raises(ValueError, match=problem):
        parse_json(memoryview(data))


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, f"a{'.a' * 9999} = 1", "[a" + ' . "a"' * 99 + "]"]
)
def test_toml_that_is_nested_too_deeply_is_refused(text):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_toml(text.encode())


def test_toml_may_have_dots_in_texts_and_comments():
    dots = "x." * 200
    text = f'a = \'{dots}\'\nb = "\\"{dots}"\n# {dots}\nc = """\n{dots}"""\na2.b.c = 1'
    found = parse_toml(text.encode())
    assert found["a"] == found["c"] == dots and found["a2"] == {"b": {"c": 1}}


def test_an_output_lies_beside_what_is_read(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    inputs = tmp_path / "in", tmp_path / "absent.pte"
    for place in ("out", "in2", "in", "in/..", "absent.pte.d"):
        require_outside(tmp_path / place, *inputs)
    for place in ("in/out", "in/deep/out", "link/out", "in/../in/out"):
        with pytest.raises(HarnessError, match="lies inside .*in, which is read"):
            require_outside(tmp_path / place, *inputs)
    require_outside(tmp_path, *inputs)
    with pytest.raises(HarnessError, match="holds .*in, which is read"):
        require_outside(tmp_path, *inputs, replaces=True)

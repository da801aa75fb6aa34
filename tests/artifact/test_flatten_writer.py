"""Our flattened folder equals the one of ExecuTorch's native module byte for byte."""

import random

import pytest

from harness.artifact.files import flatten, read_flattened, root_name
from harness.errors import ArtifactError

PACKAGE = {
    "metadata.json": b'{"identifier": "x"}',
    "model.mlpackage/Manifest.json": b"{}",
    "model.mlpackage/Data/com.apple.CoreML/model.mlmodel": bytes(range(256)),
    "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin": b"\0" * 1000,
}
AWKWARD = {
    "ü/\u2028.txt": b"content 1",
    'quo"te/tab\there': b"content 2",
    "control \x01\x7f": b"content 3",
    "B/b": b"content 4",
    "b/B": b"content 5",
    "b.c/x": b"content 6",
    "b/}]}": b"content 7",
    "emoji \N{SNOWMAN}\U0001f40d": b"content 8",
}


def in_the_order_of(data, files):
    """Return files in the order of their contents, which all differ, in a payload.

    The native module takes the order of a hash map of names, which differs between platforms.
    """
    return dict(sorted(files.items(), key=lambda item: data.index(item[1])))


def random_files(seed):
    rng = random.Random(seed)
    folders = ["", "a/", "a/b/", "c/", "c/d/e/", "a.b/"]
    names = rng.sample([f"{folder}{n}" for folder in folders for n in "pqrstuvwxyz"], 40)
    return {f"{name}.bin": rng.randbytes(rng.randint(8, 300)) for name in names}


@pytest.mark.parametrize(
    "files",
    [PACKAGE, AWKWARD, {"one": b"alone"}, *map(random_files, range(8))],
    ids=len,
)
def test_every_byte_is_the_native_modules(native, tmp_path, files, write):
    folder = write(tmp_path / "lowered_module", files)
    wanted = bytes(native.flatten_directory_contents(str(folder)))
    assert flatten(in_the_order_of(wanted, files), "lowered_module") == wanted


@pytest.mark.parametrize("files", [PACKAGE, AWKWARD, random_files(9)], ids=len)
def test_a_payload_of_the_native_module_is_read_and_written_without_a_change(
    native, tmp_path, files, write
):
    folder = write(tmp_path / "partition 0", files)
    data = memoryview(native.flatten_directory_contents(str(folder)))
    assert flatten(read_flattened(data, "payload"), root_name(data, "payload")) == data


def test_the_order_of_contents_is_kept():
    files = {"z": b"1", "b/y": b"2", "a": b"3", "b/x": b"4"}
    read = read_flattened(memoryview(flatten(files)), "payload")
    assert list(read) == ["z", "b/y", "b/x", "a"] and read == files


@pytest.mark.parametrize("name", ["..", "a/../b", "/a", "a//b", "a/", "", "a\\b", "a\0b"])
def test_a_path_that_could_leave_its_folder_is_not_written(name):
    with pytest.raises(ArtifactError, match="could leave its folder"):
        flatten({name: b""})


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_file_that_is_also_a_folder_is_not_written(names):
    with pytest.raises(ArtifactError, match="'a' cannot be a file and a folder"):
        flatten(dict.fromkeys(names, b"x"))


def test_a_root_without_a_name_is_refused():
    data = flatten({"a": b"x"}).replace(b'"toor":"eman"', b"7:" + b'"eman"')
    with pytest.raises(ArtifactError, match="has no name"):
        root_name(memoryview(data), "payload")

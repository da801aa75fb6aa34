"""Flattened folders are read as ExecuTorch's native module writes them."""

import json

import pytest

from harness.artifact.files import flatten, read_flattened
from harness.errors import ArtifactError

FILES = {"metadata.json": b"{}", "a/b/weights.bin": bytes(range(256)) * 9, "a/ü.txt": b"x"}


def read(data):
    found = read_flattened(memoryview(data), "payload")
    return {name: bytes(content) for name, content in found.items()}


def tree(*nodes, content=b""):
    return content + json.dumps({"nodes": list(nodes)}).encode()[::-1]


def node(kind, children=(), offset=0, size=0):
    region = {"offset": offset, "size": size}
    return {"kind": kind, "children": dict(children), "dataRegion": region, "name": "n"}


def test_it_reads_what_the_native_module_wrote(native, tmp_path, write):
    data = native.flatten_directory_contents(str(write(tmp_path / "folder", FILES)))
    assert read(data) == FILES


def test_many_files_make_a_tree_longer_than_the_first_look(native, tmp_path, write):
    files = {f"folder/{'n' * 100}{number}": b"%d" % number for number in range(800)}
    data = native.flatten_directory_contents(str(write(tmp_path / "folder", files)))
    assert read(data) == files


def test_the_native_module_reads_what_is_flattened_here(native, tmp_path):
    native.unflatten_directory_contents(flatten(FILES), str(tmp_path))
    root = tmp_path / "root"
    assert {
        p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()
    } == FILES


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\\b", "a\0b"])
def test_a_name_that_could_leave_its_folder_is_refused(name):
    with pytest.raises(ArtifactError, match="could leave its folder"):
        read(tree(node(0), node(1, {name: 0})))


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ([node(1, {"a": 0})], "not a tree"),
        ([node(0), node(1, {"a": 0, "b": 0})], "not a tree"),
        ([node(1, {"a": 7})], "names node 7 of 1"),
        ([node(1, {"a": -1})], "names node -1"),
        ([node(0, size=10_000), node(1, {"a": 0})], "only"),
        ([node(0, offset=-4, size=2), node(1, {"a": 0})], "claims"),
        ([{"kind": 1}], "damaged"),
        ([{"kind": 1, "children": [[7, 0]]}], "damaged"),
        ([{"kind": 1, "children": "ab"}], "damaged"),
        ([node(0)], "damaged"),
        ([node(2), node(1, {"a": 0})], "damaged"),
        ([node(0, offset=0.5), node(1, {"a": 0})], "damaged"),
        ([node(0, size=float("nan")), node(1, {"a": 0})], "damaged"),
        ([node(0, offset="0"), node(1, {"a": 0})], "damaged"),
        ([node(0), node(1, {"a": 0.0})], "names node 0.0"),
        ([node(1), *[node(1, {"a": n}) for n in range(100)]], "not a tree"),
        ([5], "damaged"),
    ],
)
def test_a_damaged_tree_is_refused(nodes, problem):
    with pytest.raises(ArtifactError, match=problem):
        read(tree(*nodes))


@pytest.mark.parametrize("data", [b"", b"junk", b'}]}"', tree()[3:], b"\0" * 100])
def test_bytes_that_are_not_a_payload_are_refused(data):
    with pytest.raises(ArtifactError, match="not a flattened package"):
        read(data)


def test_an_empty_file_is_read():  # the native module crashes on one
    assert read(tree(node(0), node(1, {"empty": 0}))) == {"empty": b""}


def test_a_tree_that_repeats_a_long_path_is_refused_before_it_fills_the_memory():
    files = [node(0) for _ in range(2000)]
    folder = node(1, {f"f{number}": number for number in range(2000)})
    with pytest.raises(ArtifactError, match="path of a file in it is longer than 1024"):
        read(tree(*files, folder, node(1, {"n" * 2000: 2000})))


def test_a_path_may_have_as_many_bytes_as_a_mac_opens():
    path = "/".join(["n" * 200] * 5)
    assert read(flatten({path: b"x"})) == {path: b"x"}


def test_more_files_than_a_package_has_are_refused():
    entries = {f"f{number}": number for number in range(10_001)}
    with pytest.raises(ArtifactError, match="more than 10000 files"):
        read(tree(*[node(0) for _ in entries], node(1, entries)))

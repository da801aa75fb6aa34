"""Any path may be given as FILE: a file, folder, pipe, device, link, or nothing at all."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from harness.artifact import open_artifact
from harness.artifact.files import FolderFiles
from harness.artifact.package import Package
from harness.errors import ArtifactError


def refused(path, problem):
    start = time.perf_counter()
    with pytest.raises(ArtifactError, match=problem):
        open_artifact(path)
    assert time.perf_counter() - start < 2


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pte")
    refused(tmp_path / "pipe.pte", "pipe.pte: not a regular file")


@pytest.mark.parametrize(
    "device", ["/dev/zero", pytest.param("/dev/full", marks=pytest.mark.linux)]
)
def test_a_device_is_refused_and_not_read(device):
    refused(device, f"{device}: not a regular file")


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", "cannot be opened")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    refused(tmp_path / name, "cannot be opened")


def test_a_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "below", "cannot be opened")


@pytest.mark.parametrize("name", ["missing.pte", ""])
def test_a_path_of_nothing_is_refused(tmp_path, name):
    refused(tmp_path / (name or "missing.mlpackage/"), "no such file")


def test_a_large_folder_that_is_not_a_package_is_not_walked(tmp_path):
    refused("/", "/: not an .mlpackage")
    refused(tmp_path, "an artifact is a .pte, an .mlpackage or an exported folder")
    (tmp_path / "Manifest.json").write_text("{}")
    for number in range(30):
        (tmp_path / f"{number}").mkdir()
    folder = FolderFiles(tmp_path)
    assert list(folder) == ["Manifest.json"]


def test_a_folder_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.artifact.files.MAX_PACKAGE_FILES", 3)
    for name in ("Manifest.json", "a", "b", "c"):
        (tmp_path / name).write_text("{}")
    refused(tmp_path, "more than 3 files; not a package")


@pytest.mark.parametrize("question", ["exists", "is_file"])
def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch, question):
    (tmp_path / "Manifest.json").write_text("{}")

    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, question, denied)
    refused(tmp_path, "cannot be read \\(Permission denied\\)")


def test_a_pipe_inside_a_package_is_ignored(tmp_path):
    (tmp_path / "Manifest.json").write_text("{}")
    os.mkfifo(tmp_path / "weight.bin")
    assert list(FolderFiles(tmp_path)) == ["Manifest.json"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside"])
def test_a_link_that_leaves_a_package_is_refused(tmp_path, target):
    (tmp_path / "outside").write_text("x")
    package = tmp_path / "a.mlpackage"
    package.mkdir()
    (package / "Manifest.json").write_text("{}")
    (package / "weight.bin").symlink_to(target)
    refused(package, "weight.bin: a link that leaves the package; remove it")


def test_a_link_to_a_folder_outside_is_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("x")
    package = tmp_path / "a.mlpackage"
    package.mkdir()
    (package / "Manifest.json").write_text("{}")
    (package / "Data").symlink_to(tmp_path / "outside")
    assert list(FolderFiles(package)) == ["Manifest.json"]


def test_a_link_inside_a_package_is_followed(tmp_path):
    (tmp_path / "Manifest.json").write_text("{}")
    (tmp_path / "again").symlink_to("Manifest.json")
    assert bytes(FolderFiles(tmp_path)["again"]) == b"{}"


def manifest(path="com.apple.CoreML/model.mlmodel"):
    return {"rootModelIdentifier": "id", "itemInfoEntries": {"id": {"path": path}}}


def package(content, spec=b""):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    files = {"Manifest.json": data, "Data/com.apple.CoreML/model.mlmodel": spec}
    return Package({name: memoryview(value) for name, value in files.items()}, "here")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "names no root model"),
        (b"{", "names no root model"),
        (b"[" * 100_000, "names no root model"),
        ([], "names no root model"),
        ({}, "names no root model"),
        ({**manifest(), "rootModelIdentifier": "other"}, "names no root model"),
        ({**manifest(), "rootModelIdentifier": []}, "names no root model"),
        ({**manifest(), "itemInfoEntries": "id"}, "names no root model"),
        (manifest("../../../etc/passwd"), "names '../../../etc/passwd', which does not exist"),
        (manifest(7), "names '7', which does not exist"),
    ],
)
def test_a_manifest_that_names_no_model_is_refused(content, problem):
    with pytest.raises(ArtifactError, match=f"here: Manifest.json {problem}"):
        _ = package(content).spec_path


@pytest.mark.parametrize("spec", [b"", b"\xff" * 40, b"\x08\x09", b"not protobuf at all"])
def test_a_specification_without_an_ml_program_is_refused(spec):
    with pytest.raises(ArtifactError, match="here: model.mlmodel"):
        _ = package(manifest(), spec).model


@pytest.mark.parametrize(
    "names", [("config.json", "model.safetensors"), ("params.json", "consolidated.00.pth")]
)
def test_a_checkpoint_is_refused_with_the_command_that_exports_it(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    says = f"a checkpoint ({names[0]}, {names[1]}), not an artifact: export it first"
    refused(tmp_path, re.escape(says))
    refused(tmp_path, f"`harness export --checkpoint {tmp_path} -o mine.pte`")
    file = tmp_path / names[1]
    refused(file, re.escape(says))
    refused(file, f"`harness export --checkpoint {file} -o mine.pte`")
    (tmp_path / names[0]).unlink()
    refused(file, "truncated|not an ExecuTorch program")  # golden files have such names, too
    (tmp_path / names[0]).touch()
    file.unlink()
    refused(tmp_path, r"not an .mlpackage \(no Manifest.json\)")


def test_what_extract_wrote_is_refused_with_a_package_of_it(tmp_path):
    (tmp_path / "extracted.json").touch()
    refused(tmp_path, f"give one of its packages, such as {tmp_path}/package_0/model.mlpackage")

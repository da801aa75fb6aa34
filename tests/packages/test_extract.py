"""`extract_packages` on programs with sound, broken and hostile references."""

import json
from pathlib import Path

import numpy as np
import pytest

from harness.artifact import Package, open_artifact
from harness.artifact.files import flatten, root_name
from harness.errors import HarnessError
from harness.packages import combine_packages, extract_packages
from tests.mil.programs import run, save
from tests.packages.payloads import edited, payload, program, reference, rename, with_tree

NAMES = (["a"], ["out"])


@pytest.fixture(scope="module")
def package():
    """Return a package of one function, `main`."""
    return save(lambda mb, a: mb.linear(x=a, weight=np.eye(64, dtype=np.float32)), [(1, 64)])


@pytest.fixture(scope="module")
def shared(package, tmp_path_factory):
    """Return a package of the functions `prefill` and `decode`."""
    output = tmp_path_factory.mktemp("shared") / "shared.mlpackage"
    source = Path(package.what)
    combine_packages([(source, "main", "prefill"), (source, "main", "decode")], output)
    return Package.from_folder(output)


@pytest.fixture
def both(shared, tmp_path):
    """Write a program of two methods that refer to one payload."""
    data = payload(shared, prefill=NAMES, decode=NAMES)
    delegates = {name: [reference("the key", name)] for name in ("prefill", "decode")}
    return program(tmp_path / "both.pte", delegates, {"the key": data, "other": b"xyz"})


@pytest.fixture
def single(package, tmp_path):
    """A program of one method with two delegates, each with its own package."""
    names = [NAMES, NAMES[::-1]]  # equal payloads would be one segment
    data = [payload(package, single=pair) for pair in names]
    return program(tmp_path / "single.pte", {"forward": data})


def extract(path, **options):
    output = path.parent / "out"
    return output, extract_packages(open_artifact(path), output, **options)


def listed(output):
    return json.loads((output / "extracted.json").read_text())


def files(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_payload_that_two_methods_share_is_written_once(both):
    output, _ = extract(both)
    (found,) = listed(output)["packages"]
    assert found["key"] == "the key" and found["functions"] == ["decode", "prefill"]
    assert found["used_by"] == [
        {"method": name, "delegate": 0, "function": name} for name in ("prefill", "decode")
    ]
    assert {path.name for path in output.iterdir()} == {"extracted.json", "package_0"}


def test_named_data_that_no_delegate_uses_is_listed(both):
    assert listed(extract(both)[0])["unused"] == {"other": 3}


def test_every_legacy_payload_is_written(single):
    output, _ = extract(single)
    used = [entry["used_by"] for entry in listed(output)["packages"]]
    assert used == [[{"method": "forward", "delegate": n, "function": "main"}] for n in (0, 1)]


def test_a_legacy_payload_of_two_delegates_is_written_once(package, tmp_path):
    data = payload(package, single=NAMES)
    output, _ = extract(program(tmp_path / "twice.pte", {"forward": [data, data]}))
    (found,) = listed(output)["packages"]
    assert [user["delegate"] for user in found["used_by"]] == [0, 1]


def test_what_is_written_flattens_to_the_payload(both):
    output, _ = extract(both)
    (bundle,) = open_artifact(both).bundles
    read = files(output / "package_0")
    assert read == {name: bytes(data) for name, data in bundle.files.items()}
    in_order = {name: read[name] for name in bundle.files}
    assert flatten(in_order, root_name(bundle.data, "payload")) == bundle.data


def test_coremltools_opens_it_and_it_computes_the_same(both, package):
    import coremltools as ct

    output, _ = extract(both)
    folder = output / listed(output)["packages"][0]["package"]
    spec = ct.models.MLModel(str(folder), skip_model_load=True).get_spec()
    assert sorted(spec.mlProgram.functions) == ["decode", "prefill"]
    values = np.arange(64, dtype=np.float32)[None]
    (result,) = run(Package.from_folder(folder), values, function="decode")
    np.testing.assert_array_equal(result, run(package, values)[0])


def test_a_package_is_copied(shared, tmp_path):
    output = tmp_path / "out"
    extract_packages(open_artifact(shared.what), output)
    (found,) = listed(output)["packages"]
    assert found["functions"] == ["decode", "prefill"] and found["metadata"] is None
    assert files(output / found["package"]) == files(Path(shared.what))


def test_its_digest_differs_with_its_content(both, shared, tmp_path):
    first = extract(both)[1].packages[0].sha256
    other = payload(shared, prefill=NAMES, decode=(["b"], ["out"]))
    changed = program(tmp_path / "x.pte", {"prefill": [reference("k", "prefill")]}, {"k": other})
    second = extract_packages(open_artifact(changed), tmp_path / "second").packages[0].sha256
    again = extract_packages(open_artifact(both), tmp_path / "third").packages[0].sha256
    assert first == again != second


def refused(path, problem, **options):
    with pytest.raises(HarnessError, match=problem) as caught:
        extract(path, **options)
    assert "\n" not in str(caught.value)
    assert not [p for p in path.parent.iterdir() if p.name.startswith((".out", "out"))]


REFERENCES = {
    "refers to named data 'lost', which the program does not hold": reference("lost", "prefill"),
    "asks for the function 'lost'; the package has decode, prefill": reference("key", "lost"),
    "a reference of version 2": reference("key", "prefill", version=2),
    "starts with CMJR but is not a reference": b"CMJR{",
    "not a flattened package": b"nothing of the kind",
}


@pytest.mark.parametrize("problem", REFERENCES)
def test_a_reference_that_does_not_resolve_is_an_error(shared, tmp_path, problem):
    data = payload(shared, prefill=NAMES, decode=NAMES)
    path = program(tmp_path / "bad.pte", {"prefill": [REFERENCES[problem]]}, {"key": data})
    refused(path, f"'prefill', delegate 0.*{problem}|{problem}")


def test_a_method_without_names_in_the_metadata_is_an_error(shared, tmp_path):
    data = payload(shared, decode=NAMES)
    path = program(tmp_path / "bad.pte", {"prefill": [reference("k", "prefill")]}, {"k": data})
    refused(path, "method 'prefill', delegate 0: metadata.json has no method 'prefill'")


def test_a_payload_that_asks_for_no_function_uses_the_default(shared, tmp_path):
    path = program(tmp_path / "good.pte", {"forward": [payload(shared, single=NAMES)]})
    assert extract(path)[1].packages[0].used_by[0].function == "prefill"


def test_a_missing_default_function_is_an_error(shared, tmp_path):
    broken = edited(shared, lambda m: setattr(m.description, "defaultFunctionName", "lost"))
    path = program(tmp_path / "bad.pte", {"forward": [payload(broken, single=NAMES)]})
    refused(path, "asks for the function 'lost'; the package has decode, prefill")


HOSTILE = {
    "../evil": "could leave its folder",
    "/etc/evil": "could leave its folder",
    "..": "could leave its folder",
    "a\\..\\evil": "could leave its folder",
    "\0": "could leave its folder",
    "": "could leave its folder",
    "x" * 300: "cannot be written \\(File name too long\\)",
    "\ud800": "cannot name a file",
}


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_is_refused(package, tmp_path, name):
    good = payload(package, single=NAMES)
    bad = with_tree(good, rename("weight.bin", name))
    refused(program(tmp_path / "bad.pte", {"forward": [bad]}), HOSTILE[name])


@pytest.mark.parametrize("other", ["weights/WEIGHT.BIN", "Weights/weight.bin", "MODEL.mlmodel"])
def test_files_that_are_one_on_a_mac_are_refused(package, tmp_path, other):
    files = {f"model.mlpackage/{name}": bytes(data) for name, data in package.files.items()}
    files[f"model.mlpackage/Data/com.apple.CoreML/{other}"] = b"other"
    path = program(tmp_path / "bad.pte", {"forward": [flatten({"metadata.json": b"", **files})]})
    refused(path, "differ in case or accents only: on a Mac, one replaces the other")


def test_a_hostile_key_names_no_file(shared, tmp_path):
    data, key = payload(shared, prefill=NAMES), "../../etc/\x1b[31m"
    path = program(tmp_path / "a.pte", {"prefill": [reference(key, "prefill")]}, {key: data})
    output, _ = extract(path)
    assert listed(output)["packages"][0]["key"] == key
    assert {p.name for p in output.iterdir()} == {"extracted.json", "package_0"}
    assert {p.name for p in tmp_path.iterdir()} == {"a.pte", "out"}


def test_files_that_overlap_cannot_fill_the_disk(package, tmp_path):
    def overlap(nodes):
        (contents,) = [n for n in nodes if n["name"] == "weight.bin"]
        for name in range(9):
            nodes[-1]["children"][str(name)] = len(nodes) - 1 + name
        root = nodes.pop()
        nodes.extend([contents] * 9)
        nodes.append(root)

    bad = with_tree(payload(package, single=NAMES), overlap)
    refused(program(tmp_path / "bad.pte", {"forward": [bad]}), "its files overlap")


def test_an_earlier_extraction_is_replaced_only_when_asked(both, single):
    output, _ = extract(both)
    with pytest.raises(HarnessError, match="exists; name another, or give --force"):
        extract(single)
    extract(single, replace=True)
    assert len(listed(output)["packages"]) == 2


def test_a_folder_of_the_users_is_never_replaced(both):
    (both.parent / "out").mkdir()
    (both.parent / "out" / "mine").write_text("x")
    with pytest.raises(HarnessError, match="not a folder of this kind"):
        extract(both, replace=True)
    assert (both.parent / "out" / "mine").read_text() == "x"


def test_an_interrupted_call_leaves_nothing(both, monkeypatch):
    import harness.packages.extract as module

    def interrupted(files, folder, what):
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(both)
    assert [path.name for path in both.parent.iterdir()] == [both.name]


def test_a_package_under_construction_is_not_a_package(both, monkeypatch):
    """The payload has its manifest before its weights; they are written the other way round."""
    opened, written = Path.open, []

    def killed(self, mode="r", *rest, **options):
        if mode == "xb":
            written.append(self.name)
            assert not (self.parent / "Manifest.json").exists()
            for parent in self.parents:
                assert not (parent / "Manifest.json").exists()
        return opened(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", killed)
    extract(both)
    assert sorted(written) == ["Manifest.json", "metadata.json", "model.mlmodel", "weight.bin"]
    assert written[-1] == "Manifest.json"

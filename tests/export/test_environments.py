"""Which ExecuTorch exports: versions out of small wheels, checkouts, and another Python."""

import json
import os
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from harness.cli import main
from harness.errors import HarnessError
from harness.export import environments, overlays
from harness.export._executorch_child import PATCHED
from harness.export.environments import environment
from harness.export.exporters import get_exporter

EXPORTER = "\n".join(f"{name} = None" for name in PATCHED)
FILES = {
    "version.py": "__version__ = 'of the wheel'\n",
    environments.EXPORTER_FILE: EXPORTER,
    "exir/__init__.py": "",
    "exir/removed_since.py": "",
    "exir/_serialize/program.fbs": "// of the wheel",
    "exir/native.so": "native",
    "backends/third-party/tool.py": "of the wheel",
    "data/bin/__init__.py": "generated",
}


def write_wheel(folder, version, requires=()):
    """Write a wheel as pip takes it, with the files of an ExecuTorch that matter here."""
    info = f"executorch-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        "Name: executorch",
        f"Version: {version}",
        *(f"Requires-Dist: {requirement}" for requirement in requires),
    ]
    with zipfile.ZipFile(folder / f"executorch-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(f"executorch/{name}", text)
        wheel.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip finds instead of any index, and an empty cache."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PATH", "")  # no uv
    (folder := tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def checkout(tmp_path):
    """A checkout's folder, as far as its Python sources go."""
    root = tmp_path / "checkout"
    sources = {
        "version.txt": "1.5.0a0\n",
        environments.EXPORTER_FILE: EXPORTER + "\n# edited",
        "exir/__init__.py": "",
        "schema/program.fbs": "// of the checkout",
        "schema/scalar_type.fbs": "",
        "setup.py": "raise SystemExit('never executed')",
    }
    for name, text in sources.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (layout := root / overlays.LAYOUT).mkdir(parents=True)
    for name in ("exir", "examples", "schema"):
        (layout / name).symlink_to(root / name)
    (root / "exir" / "above").symlink_to(root / "exir")  # a circle
    return root


def read(found, name):
    return (found.root / name).read_text()


def test_a_version_is_installed_once(index):
    write_wheel(index, "1.5.1", ["torch>=2.6", "not-installed>=1"])
    stages = []
    found = environment("1.5.1", stages.append)
    assert (found.version, found.label) == ("1.5.1", "executorch@1.5.1")
    assert found.versions["torch"] == environments.installed_versions()["torch"]
    assert found.problem() is None and found.root.parent == found.overlay
    assert stages[0].startswith("installing executorch==1.5.1 into the cache")
    (index / "executorch-1.5.1-py3-none-any.whl").unlink()
    assert environment("1.5.1", stages.append) == found
    assert [one.version for one in environments.cached()] == ["1.5.1"]


def test_two_that_need_one_version_install_it_once(index, monkeypatch):
    write_wheel(index, "1.5.1")
    installs, install = [], overlays._install
    monkeypatch.setattr(
        overlays, "_install", lambda *given: (installs.append(given), install(*given))
    )
    threads = [threading.Thread(target=environment, args=("1.5.1",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(installs) == 1 and [one.version for one in environments.cached()] == ["1.5.1"]


def test_an_install_that_fails_leaves_nothing(index, monkeypatch):
    write_wheel(index, "1.5.1")
    monkeypatch.setattr(overlays, "_check_torch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        environment("1.5.1")
    folder = overlays.cache_folder("executorch")
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def interrupt(*given):
    raise KeyboardInterrupt


def test_an_unknown_version_lists_the_newest(index):
    for version in ("1.3.0", "1.4.0", "1.5.1"):
        write_wheel(index, version)
    sentence = r"executorch==9\.9: there is no such version .* the newest are 1\.5\.1, 1\.4\.0, "
    with pytest.raises(HarnessError, match=sentence):
        environment("9.9")


def test_a_missing_index_is_one_sentence(index):
    with pytest.raises(HarnessError, match=r"==1\.5\.1: the package index cannot be reached"):
        environment("1.5.1")


def test_a_wheel_for_another_torch_says_how_to_make_an_environment(index):
    write_wheel(index, "1.9.0", ["torch>=99"])
    sentence = r"executorch 1\.9\.0 needs torch>=99, .*; make an environment for it .* executorch@V"
    with pytest.raises(HarnessError, match=sentence):
        environment("1.9.0")
    assert list(environments.cached()) == []


def test_an_exporter_that_lacks_what_is_needed_is_refused_by_its_version(index, monkeypatch):
    monkeypatch.setitem(FILES, environments.EXPORTER_FILE, "main = load_model = None")
    write_wheel(index, "1.1.0")
    sentence = r"executorch@1\.1\.0 .* lacks argparse, save_pte_program, .*; versions 1\.2 to 1\.5"
    with pytest.raises(HarnessError, match=sentence):
        get_exporter("executorch@1.1.0")


def test_a_checkout_is_laid_over_a_wheel_of_its_minor_version(index, checkout):
    for version in ("1.4.1", "1.5.0", "1.5.1", "1.6.0"):
        write_wheel(index, version)
    found = environment(str(checkout))
    assert found.version.startswith("1.5.0+src.") and found.label == f"executorch@{found.version}"
    assert read(found, environments.EXPORTER_FILE).endswith("# edited")
    assert read(found, "exir/_serialize/program.fbs") == "// of the checkout"
    assert read(found, "exir/native.so") == "native"
    assert read(found, "backends/third-party/tool.py") == "of the wheel"
    assert read(found, "data/bin/__init__.py") == "generated"
    assert not (found.root / "exir/removed_since.py").exists()
    assert f'"{found.version}"' in read(found, "version.py")
    assert environments.overlays.version_of(found.overlay) == found.version
    (wheel,) = environments.cached()
    assert wheel.version == "1.5.1" and read(wheel, "version.py") == FILES["version.py"]


def test_a_checkout_of_no_released_minor_version_takes_the_newest_before_it(index, checkout):
    for version in ("1.3.0", "1.4.1", "1.6.0"):
        write_wheel(index, version)
    environment(str(checkout))
    assert [one.version for one in environments.cached()] == ["1.4.1"]


def test_an_edit_of_a_checkout_is_another_environment_and_another_export(index, checkout):
    write_wheel(index, "1.5.1")
    before = get_exporter(f"executorch@{checkout}")
    assert get_exporter(f"executorch@{checkout}").versions == before.versions
    (checkout / "exir" / "__init__.py").write_text("edited = True")
    after = get_exporter(f"executorch@{checkout}")
    assert after.versions != before.versions and after.sources != before.sources


def test_a_checkouts_folder_that_nobody_uses_is_removed(index, checkout):
    write_wheel(index, "1.5.1")
    old, used = environment(str(checkout)).overlay, environment("1.5.1").overlay
    for folder in (old, used):
        os.utime(folder, (0, 0))
    (checkout / "exir" / "__init__.py").write_text("edited = True")
    new = environment(str(checkout)).overlay
    assert new.is_dir() and used.is_dir() and not old.exists()


def test_another_python_is_asked_what_it_has(tmp_path, monkeypatch):
    (bin_folder := tmp_path / "venv" / "bin").mkdir(parents=True)
    (python := bin_folder / "python").symlink_to(sys.executable)
    versions = dict.fromkeys(environments.PACKAGES, "1.5.1")
    answer = {"python": [4, 1], "versions": versions, "roots": ["/somewhere/executorch"]}
    monkeypatch.setattr(environments, "_PROBE", f"print({json.dumps(json.dumps(answer))})")
    for place in (python, tmp_path / "venv"):
        found = environment(str(place))
        assert found.python == python and found.overlay is None
        assert found.label == "executorch@1.5.1-python-4.1-torch-1.5.1"
        assert found.versions["python"] == "4.1"
        assert found.root == Path("/somewhere/executorch")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"python": [3, 10]}, "it is Python 3.10; the export needs 3.11 or newer"),
        ({"roots": []}, "that Python lacks executorch, torch, torchao, coremltools"),
    ],
)
def test_a_python_that_cannot_export_is_refused(monkeypatch, answer, sentence):
    whole = {"python": [3, 11], "versions": dict.fromkeys(environments.PACKAGES), "roots": ["x"]}
    monkeypatch.setattr(environments, "_PROBE", f"print({json.dumps(json.dumps(whole | answer))})")
    with pytest.raises(HarnessError, match=sentence):
        environment(sys.executable)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("coremll", "there is no exporter 'coremll'; choose from executorch, coreml, executorch@V"),
        ("executorch@", "there is no exporter 'executorch@'"),
        ("coreml@1.0", "there is no exporter 'coreml@1.0'"),
        ("executorch@/nowhere", "executorch@/nowhere: give a version .*, or the path of a Python"),
        ("executorch@/bin", "executorch@/bin: give a version"),
    ],
)
def test_an_unknown_form_is_one_sentence_and_status_2(capsys, tmp_path, name, sentence):
    with pytest.raises(HarnessError, match=sentence):
        get_exporter(name)
    output = str(tmp_path / "out")
    files = ["--checkpoint", "c", "--params", "p"]
    assert main(["export", *files, "--exporter", name, "-o", output]) == 2


def test_exporters_at_hand_are_listed(index, capsys):
    write_wheel(index, "1.5.1")
    environment("1.5.1")
    assert main(["exporters", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows)[-2:] == ["executorch@1.5.1", "coreml"]
    assert rows["executorch@1.5.1"]["state"] == rows["coreml"]["state"] == "ready"
    assert main(["exporters"]) == 0
    assert "executorch@1.5.1" in capsys.readouterr().out

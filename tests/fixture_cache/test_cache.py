"""The cache of fixtures and exports, with a stand-in exporter: these tests are about keys."""

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.export import environments, exporters
from harness.export.options import ExportOptions
from harness.files import remove
from harness.fixtures import cache

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a cache folder in which tiny's files exist."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(folder))
        cache.fixture("tiny")
    return folder


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def exporter(made, monkeypatch):
    """Install a stand-in that counts and writes numbered files, which are removed at the end."""
    monkeypatch.setenv("HARNESS_CACHE", str(made))
    calls = []

    def export(checkpoint, params, options, output, progress):
        assert checkpoint.is_file() and params.is_file()
        calls.append(options)
        output.write_text(f"export {len(calls)}")

    export.calls = calls
    yield export
    for path in (made / "exports").glob("*"):
        remove(path)


def test_a_fixture_is_made_once(empty, monkeypatch):
    stages = []
    first = cache.fixture("tiny", stages.append)
    assert stages == ["making tiny"]
    monkeypatch.setattr(cache, "_build", None)
    assert cache.fixture("tiny", stages.append) == first
    assert len(first.digest) == 64
    for path in (first.checkpoint, first.params, first.tokenizer):
        assert path.is_file() and path.is_relative_to(empty)


def test_the_same_seed_gives_the_same_digest(empty, made, monkeypatch):
    here = cache.fixture("tiny").digest
    monkeypatch.setenv("HARNESS_CACHE", str(made))
    assert cache.fixture("tiny").digest == here


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    """Change one bit, as a bad disk does: nothing else of the file changes."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    cache._digest_of_state.cache_clear()  # a disk tells nobody, so only another process sees it


def test_a_damaged_fixture_is_made_again(empty):
    first = cache.fixture("tiny")
    for path in (first.checkpoint, first.params, first.tokenizer):
        whole = path.read_bytes()
        for damage in (cut, flip_a_bit, lambda path: path.unlink()):
            damage(path)
            again = cache.fixture("tiny")
            assert again == first and path.read_bytes() == whole


def test_a_build_that_fails_leaves_nothing_to_be_taken_for_whole(empty, monkeypatch):
    monkeypatch.setattr("harness.fixtures.tiny.shutil.copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.fixture("tiny")
    assert [path.suffix for path in (empty / "models").iterdir()] == [".lock"]


def test_a_full_disk_is_one_sentence_that_names_the_file(empty, fill_disk):
    fill_disk()
    with pytest.raises(HarnessError) as caught:
        cache.fixture("tiny")
    name = r"models/tiny-\w+/checkpoint.pth: cannot be written \(torch.save failed: is there room"
    assert re.search(name, str(caught.value)) and "set HARNESS_CACHE to" in str(caught.value)
    assert [path.suffix for path in (empty / "models").iterdir()] == [".lock"]


def interrupt(*args):
    raise KeyboardInterrupt


def test_a_change_of_the_builder_makes_another_fixture(made, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(made))
    before = cache.fixture("tiny").folder
    digest = cache._file_digest
    monkeypatch.setattr(
        cache,
        "_file_digest",
        lambda row, path: "edited" if path.name == "tiny.py" else digest(row, path),
    )
    assert cache.fixture("tiny").folder != before


def test_a_change_of_what_a_fixture_is_made_from_makes_another(made, monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(made))
    row = cache.model("tiny")
    before = cache._recipe(row)
    assert cache._recipe(replace(row, made_from=())) != before
    assert cache._recipe(replace(row, settings={"seed": 2})) != before


def test_a_builder_that_forgets_a_file_is_named(empty, monkeypatch):
    forgetful = replace(cache.model("tiny"), tokenizer="tokenizer.json")
    monkeypatch.setattr(cache, "model", lambda name: forgetful)
    with pytest.raises(HarnessError, match=r"fixtures.tiny did not write .*tokenizer.json"):
        cache.fixture("tiny")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(HarnessError, match="no model 'tyni'; there are tiny, smollm2-135m"):
        cache.fixture("tyni")


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(HarnessError, match=r"cannot make the cache folder .*; set HARNESS_CACHE"):
        cache.fixture("tiny")


def test_an_export_is_made_once(exporter):
    first = cache.exported("tiny", export=exporter)
    assert cache.exported("tiny", export=exporter) == first
    assert len(exporter.calls) == 1 and first.read_text() == "export 1"
    assert exporter.calls[0] == cache.fixture("tiny").options


@pytest.mark.parametrize("change", [{"dtype": "fp32"}, {"mode": "multifunction"}, {"input_len": 9}])
def test_other_options_are_another_export(exporter, change):
    options = replace(cache.fixture("tiny").options, **change)
    paths = {cache.exported("tiny", o, export=exporter) for o in (None, options, options)}
    assert len(paths) == len(exporter.calls) == 2


@pytest.mark.parametrize("package", (environments.PYTHON, *environments.PACKAGES))
def test_another_version_is_another_export(exporter, monkeypatch, package):
    before = cache.exported("tiny", export=exporter)
    assert environments.installed_versions()["python"] == ".".join(map(str, sys.version_info[:2]))
    versions = environments.installed_versions() | {package: "9"}
    monkeypatch.setattr(environments, "installed_versions", lambda: versions)
    assert cache.exported("tiny", export=exporter) != before


@pytest.mark.parametrize(
    ("module", "part"), [(environments, "sources_digest"), (exporters, "_driver_digest")]
)
def test_other_sources_are_another_export(exporter, monkeypatch, module, part):
    before = cache.exported("tiny", export=exporter)
    monkeypatch.setattr(module, part, lambda *of: "edited")
    assert cache.exported("tiny", export=exporter) != before


def test_other_words_in_the_driver_are_the_same_export():
    code = exporters.code_digest("def f():\n    return 1\n")
    assert exporters.code_digest('"""Says more."""\n\ndef f():\n    return 1  # and why\n') == code
    assert exporters.code_digest('def f():\n    """Return it."""\n    return 1\n') == code
    assert exporters.code_digest("def f():\n    return 2\n") != code


def test_other_weights_are_another_export(exporter, monkeypatch):
    before = cache.exported("tiny", export=exporter)
    other = replace(cache.fixture("tiny"), digest="other")
    monkeypatch.setattr(cache, "fixture", lambda name, progress: other)
    assert cache.exported("tiny", export=exporter) != before


@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("place", ["", ".sha256"])
def test_a_damaged_export_is_made_again(exporter, damage, place):
    """A digest that is damaged counts as well: nobody knows which of the two is."""
    path = cache.exported("tiny", export=exporter)
    damage(path.with_name(path.name + place))
    assert cache.exported("tiny", export=exporter) == path
    assert path.read_text() == "export 2"
    assert cache.exported("tiny", export=exporter).read_text() == "export 2"


@pytest.mark.parametrize("change", ["bit", "cut", "less", "more", "renamed", "file"])
def test_a_damaged_folder_is_made_again(exporter, change):
    def export(*args):
        (args[3] / "part").mkdir(parents=True)
        (args[3] / "part" / "weight.bin").write_bytes(b"weights")
        export.count += 1

    export.count = 0
    path = cache.exported("tiny", exporter="coreml", export=export)
    weights = path / "part" / "weight.bin"
    match change:
        case "bit":
            flip_a_bit(weights)
        case "cut":
            cut(weights)
        case "less":
            weights.unlink()
        case "more":
            (path / "more").touch()
        case "renamed":
            weights.rename(path / "part" / "other.bin")
        case "file":
            remove(path)
            path.write_bytes(b"x")
    assert cache.exported("tiny", exporter="coreml", export=export) == path
    assert (export.count, weights.read_bytes()) == (2, b"weights")
    assert cache.exported("tiny", exporter="coreml", export=export) and export.count == 2


def test_a_whole_export_without_a_digest_gets_one(exporter):
    """A process may be killed before it writes the digest."""
    path = cache.exported("tiny", export=exporter)
    digest = path.with_name(f"{path.name}.sha256")
    digest.unlink()
    assert cache.exported("tiny", export=exporter).read_text() == "export 1" and digest.is_file()


def test_what_killed_processes_have_left_goes_when_something_is_made(exporter, made):
    left = [made / "exports" / f".old-key.pte.{'0' * 24}.partial.pte"]
    left += [made / "models" / f".old-key.{'0' * 24}.partial"]
    left[0].touch()
    left[1].mkdir()
    cache.exported("tiny", export=exporter)
    assert not left[0].exists() and left[1].exists()
    flip_a_bit(cache.fixture("tiny").params)
    cache.fixture("tiny")
    assert not left[1].exists()


def test_an_interrupted_export_is_not_taken_for_whole(exporter):
    with pytest.raises(KeyboardInterrupt):
        cache.exported("tiny", export=interrupt)
    assert cache.exported("tiny", export=exporter).read_text() == "export 1"


def test_two_that_need_one_export_make_it_once(exporter):
    """The second one finds the lock taken, reports it, waits, and finds the first one's file."""
    has_begun, may_end, stages = threading.Event(), threading.Event(), []

    def slow(*args):
        has_begun.set()
        assert may_end.wait(20)
        exporter(*args)

    def waiting(stage):
        stages.append(stage)
        may_end.set()

    first = threading.Thread(target=lambda: cache.exported("tiny", export=slow))
    first.start()
    assert has_begun.wait(20)
    path = cache.exported("tiny", export=exporter, progress=waiting)
    first.join()
    assert path.read_text() == "export 1" and len(exporter.calls) == 1
    assert len(stages) == 1 and stages[0].startswith("waiting for another process")


def test_a_cached_lookup_is_quick_and_imports_no_torch(exporter):
    path = cache.exported("tiny", export=exporter)
    code = (
        "import json, sys, time\n"
        "from harness.fixtures.cache import exported\n"
        "path = exported('tiny')\n"
        "heavy = sorted({'torch', 'executorch', 'coremltools', 'numpy'} & set(sys.modules))\n"
        "print(json.dumps([str(path), heavy, time.process_time()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True)
    found, heavy, seconds = json.loads(done.stdout)
    assert found == str(path) and heavy == []
    assert seconds < 0.8


def test_the_named_options_leave_room_for_a_long_run():
    """A prompt of two and a half chunks and 32 steps fit in both modes."""
    for row in cache.model("tiny"), cache.model("smollm2-135m"):
        for mode in ("single", "multifunction"):
            options = replace(row.options, mode=mode)
            assert isinstance(options, ExportOptions)
            assert 2.5 * options.input_len + 32 < options.cache_len

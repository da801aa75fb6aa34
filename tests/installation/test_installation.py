"""Each check of an installation passes on the real wheel and detects a broken copy."""

import os
import re
import shutil
import subprocess

import pytest

from harness.errors import HarnessError, NotInstalledError
from harness.export.environments import cached
from harness.installation import INSTALLATION_CHECKS, Installation, headers

REAL = Installation.here()
INCLUDE = "executorch/include/executorch"
COREML = "executorch/backends/apple/coreml"
SCRIPTS = "executorch/examples/apple/coreml"


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the installation whose files are links that tests replace or remove."""
    parts = ["executorch", REAL.metadata.name]
    skip = shutil.ignore_patterns("__pycache__", "qualcomm", "cortex_m", "kernels")
    for part in parts:
        shutil.copytree(REAL.site / part, tmp_path / part, ignore=skip, copy_function=os.symlink)
    return Installation(tmp_path)


def replace(path, content):
    path.unlink()
    path.write_text(content)


def failures(check, installation):
    found = list(INSTALLATION_CHECKS[check].findings(installation))
    assert sum(finding.comparisons for finding in found) > 0
    return [finding.message for finding in found if not finding.ok]


SEPARATE = ("install-compile", "install-files", *headers.RUNNERS)
WHOLE = [name for name in INSTALLATION_CHECKS if name not in SEPARATE]


@pytest.mark.linux  # macOS has a wheel of its own
@pytest.mark.parametrize("check", WHOLE)
def test_the_release_passes_but_for_what_is_known(check):
    known = {"install-module-headers": 3, "install-coreml-headers": 2, "install-libraries": 1}
    assert len(failures(check, REAL)) == known.get(check, 0)


REMOVED = {
    f"{INCLUDE}/runtime/executor/method.h": ("install-runtime-headers", "method.h"),
    # not on the list: another header includes it
    f"{INCLUDE}/runtime/core/span.h": ("install-runtime-headers", "includes .*core/span.h"),
    f"{COREML}/partition/coreml_partitioner.py": ("install-exporter", "coreml_partitioner"),
    f"{SCRIPTS}/llama/export_static_llm_coreml.py": ("install-exporter", "is not in the wheel"),
    "executorch/exir/backend/partitioner.py": ("install-exporter", "exir.backend.partitioner"),
    f"{SCRIPTS}/llama/run_static_llm_multifunction.py": ("install-runner", "is not in the wheel"),
    f"{SCRIPTS}/scripts/extract_coreml_models.py": ("install-extraction", "is not in the wheel"),
    "executorch/exir/_serialize/_program.py": ("install-extraction", "_serialize._program"),
}


@pytest.mark.parametrize("path", REMOVED)
def test_a_removed_file_is_missed(copy, path):
    check, problem = REMOVED[path]
    (copy.site / path).unlink()
    messages = failures(check, copy)
    assert messages and any(re.search(problem, message) for message in messages), messages


@pytest.mark.parametrize(
    ("check", "pattern"),
    [
        ("install-extraction", f"{COREML}/executorchcoreml.*.so"),
        ("install-flattening", f"{COREML}/executorchcoreml.*.so"),
    ],
)
def test_a_removed_native_module_is_missed(copy, check, pattern):
    for path in copy.site.glob(pattern):
        path.unlink()
    messages = [
        finding.message for finding in INSTALLATION_CHECKS[check].findings(copy) if not finding.ok
    ]
    assert any("module" in message and "is not in the wheel" in message for message in messages)


@pytest.mark.parametrize("name", ["_portable_lib", "_C"])
def test_a_removed_native_runtime_is_missed_by_either_name(copy, name):
    """ExecuTorch 1.5 calls it `_C`."""
    folder = copy.site / "executorch" / "extension" / "pybindings"
    (native,) = folder.glob("_portable_lib.*.so")
    native.unlink()
    python = folder / "portable_lib.py"
    text = python.read_text()
    replace(python, text.replace("pybindings._portable_lib", f"pybindings.{name}"))
    message = f"portable_lib needs executorch.extension.pybindings.{name}, which the wheel lacks"
    assert any(message in found for found in failures("install-runner", copy))


def test_a_native_module_that_cannot_be_loaded_is_told(copy):
    (path,) = copy.site.glob(f"{COREML}/executorchcoreml.*.so")
    replace(path, "no library")
    (message,) = failures("install-flattening", copy)
    assert message.startswith(f"{path.name} does not bring a folder back: ImportError")


def test_a_module_that_is_imported_by_name_from_its_package_is_missed(copy):
    script = copy.site / SCRIPTS / "scripts/extract_coreml_models.py"
    text = script.read_text()
    replace(script, f"from executorch.exir import not_there\n{text}")
    assert failures("install-extraction", copy) == []  # an attribute of a package, for all we know
    replace(script, f"from executorch.backends.apple.coreml import not_there\n{text}")
    (message,) = failures("install-extraction", copy)
    assert "executorch.backends.apple.coreml.not_there" in message


def test_an_import_that_may_fail_is_not_required(copy):
    script = copy.site / SCRIPTS / "scripts/extract_coreml_models.py"
    text = script.read_text()
    optional = "try:\n    import executorch.not_there\nexcept ImportError:\n    pass\n"
    replace(script, f"{optional}{text}")
    assert failures("install-extraction", copy) == []


@pytest.fixture
def recorded(copy, monkeypatch):
    """The copy, with a RECORD of the headers only: to read all 4,000 files takes seconds."""
    rows = [row for row in copy.recorded() if "/include/" in row.path]
    assert len(rows) > 100
    monkeypatch.setattr(Installation, "recorded", lambda self: rows)
    return copy


def test_files_as_the_wheel_brought_them_pass(recorded):
    assert failures("install-files", recorded) == []


def test_a_missing_file_is_named(recorded):
    (recorded.include / "executorch/runtime/core/tag.h").unlink()
    (message,) = failures("install-files", recorded)
    assert message.startswith(f"{INCLUDE}/runtime/core/tag.h cannot be read")


def test_a_truncated_and_a_changed_file_are_named(recorded):
    tag, span = (recorded.include / f"executorch/runtime/core/{n}.h" for n in ("tag", "span"))
    text = span.read_text()
    replace(tag, tag.read_text()[:-5])
    replace(span, text.replace("class", "klass", 1))
    messages = sorted(failures("install-files", recorded))
    assert "span.h was changed after it was installed" in messages[0]
    assert "the wheel brought" in messages[1]


def test_a_wheel_with_the_headers_and_the_library_passes(copy):
    """The files of a later release make the known defects go away."""
    for name in headers.HEADERS["install-module-headers"]:
        path = copy.include / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#include <executorch/runtime/executor/program.h>\n")
    for name in headers.HEADERS["install-coreml-headers"]:
        path = copy.include / "executorch/backends/apple/coreml/runtime/include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#pragma once\n")
    (copy.root / "lib").mkdir(exist_ok=True)
    for name in ("libexecutorch.so.1", "libexecutorch.dylib", "libexecutorch_backend_coreml.dylib"):
        (copy.root / "lib" / name).touch()
    for check in ("install-module-headers", "install-coreml-headers", "install-libraries"):
        assert failures(check, copy) == []


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_a_header_that_does_not_compile_is_told(copy):
    replace(copy.include / "executorch/runtime/platform/compiler.h", "#error broken\n")
    (message,) = failures("install-compile", copy)
    assert "do not compile" in message and "broken" in message


def test_no_compiler_is_a_skip(copy, monkeypatch):
    monkeypatch.setattr(headers.shutil, "which", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"no C\+\+ compiler"):
        list(INSTALLATION_CHECKS["install-compile"].findings(copy))


@pytest.mark.parametrize("count", [0, 2])
def test_metadata_that_is_not_there_once_is_an_error(tmp_path, count):
    for number in range(count):
        (tmp_path / f"executorch-1.{number}.dist-info").mkdir()
    with pytest.raises(HarnessError, match=f"{count} folders executorch"):
        _ = Installation(tmp_path).version


def test_a_record_that_is_damaged_is_an_error(tmp_path):
    (tmp_path / "executorch-1.dist-info").mkdir()
    for text in (
        "executorch/a.py,sha256=x,many\n",
        "executorch/a.py\n",
        b"\xff\xfe".decode("latin1"),
    ):
        (tmp_path / "executorch-1.dist-info/RECORD").write_text(text, encoding="latin1")
        with pytest.raises(HarnessError, match="RECORD cannot be read"):
            Installation(tmp_path).recorded()


@pytest.fixture
def linkable(tmp_path):
    """A copy of a wheel that carries the library of the runtime, as 1.5's do."""
    found = [one for one in cached() if list((one.root / "lib").glob("libexecutorch.*"))]
    if not found or not shutil.which("c++"):
        pytest.skip("needs a C++ compiler, and ExecuTorch 1.5 in the cache (harness exporters)")
    for part in ("include", "lib"):
        shutil.copytree(
            found[-1].root / part, tmp_path / "executorch" / part, copy_function=os.symlink
        )
    return Installation(tmp_path)


def built(check, installation):
    (finding,) = INSTALLATION_CHECKS[check].findings(installation)
    return finding


@pytest.mark.parametrize("check", ["install-link-runtime", "install-link-module"])
def test_a_runner_is_built_and_refuses_a_file(linkable, check):
    assert built(check, linkable).ok, built(check, linkable).message


def of_source(path, source):
    """Build another library in the place of one."""
    path.unlink()
    (path.parent / "other.cpp").write_text(source)
    command = ["c++", "-shared", "-fPIC", "-o", str(path), str(path.parent / "other.cpp")]
    subprocess.run(command, check=True)


def test_a_library_without_the_functions_of_its_headers_is_told(linkable):
    of_source(linkable.root / "lib/libexecutorch.so", "int nothing() { return 0; }")
    finding = built("install-link-module", linkable)
    assert "a runner is not built" in finding.message and "Module" in finding.message


def test_a_header_of_another_version_is_told(linkable):
    path = linkable.include / "executorch/runtime/executor/program.h"
    text = path.read_text()
    assert "load_method(" in text
    replace(path, text.replace("load_method(", "load_methods("))
    finding = built("install-link-runtime", linkable)
    assert "a runner is not built" in finding.message and "load_method" in finding.message


@pytest.mark.parametrize(
    ("check", "lost"),
    [
        ("install-link-runtime", "lib/libexecutorch.so"),
        ("install-link-module", "include/executorch/extension/module/module.h"),
        ("install-link-coreml", None),  # a wheel for Linux has none
    ],
)
def test_what_the_wheel_does_not_carry_is_a_skip(linkable, check, lost):
    if lost:
        (linkable.root / lost).unlink()
    with pytest.raises(NotInstalledError, match="the wheel carries no"):
        built(check, linkable)

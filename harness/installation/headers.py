"""Checks of the parts that build a native runner: the headers that it includes, the libraries.

Three checks build a small runner, and run it on a file that is not a program: the library must
refuse the file with ExecuTorch's own error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.checks.run import check
from harness.errors import NotInstalledError
from harness.installation.tree import Installation
from harness.results import Finding

HEADERS = {
    "install-runtime-headers": (
        "executorch/runtime/executor/program.h",
        "executorch/runtime/executor/method.h",
        "executorch/runtime/executor/method_meta.h",
        "executorch/runtime/executor/memory_manager.h",
        "executorch/runtime/backend/interface.h",
        "executorch/runtime/core/data_loader.h",
        "executorch/runtime/core/evalue.h",
        "executorch/runtime/core/exec_aten/exec_aten.h",
        "executorch/runtime/core/named_data_map.h",
        "executorch/runtime/platform/runtime.h",
        "executorch/extension/tensor/tensor.h",
    ),
    "install-module-headers": (
        "executorch/extension/module/module.h",
        "executorch/extension/data_loader/file_data_loader.h",
        "executorch/extension/data_loader/mmap_data_loader.h",
    ),
    "install-coreml-headers": (
        "coreml_backend/delegate.h",
        "coreml_backend/coreml_backend_options.h",
    ),
}
"""The headers that a runner includes, by check: to execute a program; to do so through the
documentation's `Module`; to set options of the Core ML backend. Source: ExecuTorch's
"Using ExecuTorch with C++", and the includes of `examples/apple/coreml/executor_runner/main.mm`."""

LIBRARIES = {"linux": ("executorch",), "darwin": ("executorch", "executorch_backend_coreml")}
"""The libraries that a runner links, by platform; Core ML can be linked on a Mac only."""

_SUFFIXES = ("so", "dylib", "a")
_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"](executorch/[^>"]+)[>"]', re.MULTILINE)
_C10 = "executorch/runtime/core/portable_type/c10"
_DEFINITIONS = ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED")
"""Those that the wheel's own CMake package asks for."""
_SECONDS = 300


@check("install-runtime-headers")
def check_runtime_headers(installation: Installation) -> Iterator[Finding]:
    """Look for the headers with which a runner loads and executes a program."""
    yield from _check_headers("install-runtime-headers", installation)


@check("install-module-headers")
def check_module_headers(installation: Installation) -> Iterator[Finding]:
    """Look for the headers of the documentation's `Module`."""
    yield from _check_headers("install-module-headers", installation)


@check("install-coreml-headers")
def check_coreml_headers(installation: Installation) -> Iterator[Finding]:
    """Look for the headers with which a runner sets the Core ML backend's options."""
    yield from _check_headers("install-coreml-headers", installation)


@check("install-compile")
def check_compile(installation: Installation) -> Iterator[Finding]:
    """Compile a file that includes the runtime's headers; nothing is linked.

    Raises NotInstalledError when there is no C++ compiler.
    """
    names = HEADERS["install-runtime-headers"]
    source = "".join(f"#include <{name}>\n" for name in names)
    with tempfile.TemporaryDirectory() as folder:
        done = _compile(installation, Path(folder), source, ["-fsyntax-only"])
    message = "" if done.returncode == 0 else f"a runner's includes do not compile: {_error(done)}"
    yield Finding("install-compile", done.args[0], not message, message, comparisons=len(names))


@dataclass(frozen=True)
class Runner:
    """A small native runner: its source, the headers and the libraries that the wheel must have.

    It takes the path of a file, and prints the number of the error with which the file is refused.
    """

    headers: tuple[str, ...]
    libraries: tuple[str, ...]
    source: str
    mac_frameworks: tuple[str, ...] = ()


_INVALID_PROGRAM = "35"  # Error::InvalidProgram, 0x23
_LOADER = """
class Bytes final : public executorch::runtime::DataLoader {
 public:
  explicit Bytes(const char* path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
  }
  executorch::runtime::Result<executorch::runtime::FreeableBuffer> load(
      size_t offset, size_t size, const SegmentInfo&) const override {
    if (offset + size > bytes_.size()) return executorch::runtime::Error::InvalidArgument;
    return executorch::runtime::FreeableBuffer(bytes_.data() + offset, size, nullptr);
  }
  executorch::runtime::Result<size_t> size() const override { return bytes_.size(); }

 private:
  std::vector<char> bytes_;
};
"""
RUNNERS = {
    "install-link-runtime": Runner(
        HEADERS["install-runtime-headers"],
        ("executorch",),
        _LOADER
        + """
int main(int, char** arguments) {
  executorch::runtime::runtime_init();
  Bytes loader(arguments[1]);
  auto program = executorch::runtime::Program::load(&loader);
  if (!program.ok()) return std::printf("%d\\n", static_cast<int>(program.error())), 0;
  auto meta = program->method_meta("forward");
  executorch::runtime::MemoryAllocator allocator(0, nullptr);
  executorch::runtime::HierarchicalAllocator planned({});
  executorch::runtime::MemoryManager memory(&allocator, &planned);
  auto method = program->load_method("forward", &memory);
  return method.ok() && meta.ok() && method->execute() == executorch::runtime::Error::Ok;
}
""",
    ),
    "install-link-module": Runner(
        HEADERS["install-module-headers"],
        ("executorch",),
        """
int main(int, char** arguments) {
  executorch::extension::Module module(arguments[1]);
  const auto error = module.load();
  if (error != executorch::runtime::Error::Ok)
    return std::printf("%d\\n", static_cast<int>(error)), 0;
  return module.method_names().ok() && module.execute("forward").ok();
}
""",
    ),
    "install-link-coreml": Runner(
        (*HEADERS["install-module-headers"], *HEADERS["install-coreml-headers"]),
        ("executorch", "executorch_backend_coreml"),
        """
int main(int, char** arguments) {
  executorch::backends::coreml::LoadOptionsBuilder options;
  options.setComputeUnit(executorch::backends::coreml::LoadOptionsBuilder::ComputeUnit::CPU_ONLY);
  executorch::extension::Module module(arguments[1]);
  executorch::runtime::LoadBackendOptionsMap map;
  map.set_options(options);
  return std::printf("%d\\n", static_cast<int>(module.load(map))), 0;
}
""",
        ("CoreML", "Foundation", "Accelerate"),
    ),
}
"""The runners by check: of `Program`, of `Module`, and with options of the Core ML backend."""


@check("install-link-runtime")
def check_link_runtime(installation: Installation) -> Iterator[Finding]:
    """Build a runner that loads and executes a program by the runtime's own classes."""
    yield _built("install-link-runtime", installation)


@check("install-link-module")
def check_link_module(installation: Installation) -> Iterator[Finding]:
    """Build a runner of the documentation's `Module`."""
    yield _built("install-link-module", installation)


@check("install-link-coreml")
def check_link_coreml(installation: Installation) -> Iterator[Finding]:
    """Build a runner that sets options of the Core ML backend."""
    yield _built("install-link-coreml", installation)


def _built(name: str, installation: Installation) -> Finding:
    """Build a runner and let it refuse a file.

    Raises NotInstalledError when the wheel lacks a header or a library of it (another check fails
    for that), and when there is no C++ compiler.
    """
    runner = RUNNERS[name]
    for header in runner.headers:
        if _find(installation, header) is None:
            raise NotInstalledError(f"the wheel carries no {header} to compile")
    libraries = [_library(installation, library) for library in runner.libraries]
    for library, path in zip(runner.libraries, libraries, strict=True):
        if path is None:
            raise NotInstalledError(f"the wheel carries no lib{library} to link")
    standard = ("cstdio", "fstream", "iterator", "vector")
    source = "".join(f"#include <{header}>\n" for header in (*standard, *runner.headers))
    with tempfile.TemporaryDirectory() as folder:
        program, nothing = Path(folder, "runner"), Path(folder, "nothing.pte")
        nothing.write_bytes(b"this is not a program of ExecuTorch" * 9)
        options = ["-o", str(program), *map(str, libraries)]
        options.append(f"-Wl,-rpath,{installation.root / 'lib'}")
        if sys.platform == "darwin":
            options += [word for one in runner.mac_frameworks for word in ("-framework", one)]
        built = _compile(installation, Path(folder), source + runner.source, options)
        if built.returncode != 0:
            return Finding(name, "build", False, f"a runner is not built: {_error(built)}", 1)
        ran = _run([str(program), str(nothing)])
    said = ran.stdout.strip()
    ok = ran.returncode == 0 and said == _INVALID_PROGRAM
    told = said or _error(ran)
    message = f"a runner gave status {ran.returncode} and {told!r} for a file that is no program"
    return Finding(name, "run", ok, "" if ok else message, 2)


def _library(installation: Installation, name: str) -> Path | None:
    """Return the path of a library in the wheel's `lib`."""
    for suffix in _SUFFIXES:
        for path in (installation.root / "lib").glob(f"lib{name}.{suffix}*"):
            return path
    return None


def _compile(
    installation: Installation, folder: Path, source: str, options: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Compile C++ against the wheel's headers; raises NotInstalledError without a compiler."""
    compiler = next(filter(None, map(shutil.which, ("c++", "clang++", "g++"))), None)
    if compiler is None:
        raise NotInstalledError("no C++ compiler (c++, clang++ or g++) is installed")
    path = folder / "runner.cpp"
    path.write_text(source)
    include = installation.include
    backends = sorted({found.parent.parent for found in include.rglob("coreml_backend/*.h")})
    folders = [f"-I{one}" for one in (include, include / _C10, *backends)]
    return _run([compiler, "-std=c++17", *_DEFINITIONS, *folders, str(path), *options])


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(command), capture_output=True, text=True, timeout=_SECONDS)


def _error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the first line of a tool's output that tells an error."""
    lines = done.stderr.splitlines()
    told = (line for line in lines if "error: " in line or "undefined reference" in line)
    return next(told, lines[-1] if lines else "no message")


@check("install-libraries")
def check_libraries(installation: Installation) -> Iterator[Finding]:
    """Look for each library that a runner on this platform links, in the wheel's `lib`."""
    for name in LIBRARIES.get(sys.platform, ()):
        found = _library(installation, name) is not None
        message = "" if found else f"the wheel has no library lib{name} to link a runner with"
        yield Finding("install-libraries", name, found, message, comparisons=1)


def _check_headers(name_of_check: str, installation: Installation) -> Iterator[Finding]:
    """Look for each header of a group, and for each of ExecuTorch's that it includes in turn."""
    for name in HEADERS[name_of_check]:
        path = _find(installation, name)
        if path is None:
            what = f"the header {name} is not in the wheel's include folder"
            yield Finding(name_of_check, name, False, what, comparisons=1)
            continue
        seen: dict[str, Path | None] = {}
        _follow(installation, path, seen)
        lost = sorted(included for included, found in seen.items() if found is None)
        message = f"{name} includes {', '.join(lost)}, which the wheel lacks" if lost else ""
        yield Finding(name_of_check, name, not lost, message, comparisons=1 + len(seen))


def _find(installation: Installation, name: str) -> Path | None:
    """Return a header's path; a backend's header may be below the folder of the backend."""
    path = installation.include / name
    if path.is_file():
        return path
    if name.startswith("executorch/"):
        return None
    return next((found for found in installation.include.rglob(name) if found.is_file()), None)


def _follow(installation: Installation, path: Path, seen: dict[str, Path | None]) -> None:
    for name in _INCLUDE.findall(path.read_text(encoding="utf-8", errors="replace")):
        if name not in seen:
            found = installation.include / name
            seen[name] = found if found.is_file() else None
            if found.is_file():
                _follow(installation, found, seen)

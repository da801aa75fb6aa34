"""Runs ExecuTorch's scripts in this process, unmodified, and records what they do.

The process is a child of `harness.child`; a request is a script with its arguments. The record of a
run holds the inputs and outputs of every executed method, the ids that the script's tokenizer
returned, and the tokens that the script printed. A `fault` changes ExecuTorch's code for one run.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import runpy
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness.child import serve
from harness.errors import NotInstalledError

Record = dict[str, Any]


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run a script to its end, and write the record of the run; return what a shell would see.

    Raises NotInstalledError where no script can run: that is no defect of a script.
    """
    _load_native_runtime()
    out, err = io.StringIO(), io.StringIO()
    record: Record = {"calls": [], "prompts": [], "printed": []}
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(_in_folder(request["folder"]))
        stack.enter_context(_recording(record))
        if request["fault"]:
            from harness.suites.runners.faults import FAULTS, broken

            stack.enter_context(broken(FAULTS[request["fault"]]))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        status = _status(request["module"], request["arguments"])
    import torch

    torch.save(record, request["record"])
    lines = err.getvalue().split("\n")
    return {
        "status": status,
        "problem": next((line for line in reversed(lines) if line.strip()), "") if status else "",
        "stdout": out.getvalue(),
        "stderr": err.getvalue(),
        "seconds": time.perf_counter() - start,
    }


def _load_native_runtime() -> None:
    """Load ExecuTorch's native runtime; NotInstalledError if this Python's torch does not fit."""
    try:
        importlib.import_module("executorch.extension.pybindings.portable_lib")
    except ImportError as error:
        raise NotInstalledError(
            f"ExecuTorch's native runtime does not load ({error}): give a Python that has the "
            "torch of its release, as in --exporter executorch@PYTHON"
        ) from None


def _status(module: str, arguments: list[str]) -> int:
    """Run a module as a shell's `python -m` does; return the exit status."""
    before = sys.argv
    sys.argv = [module, *arguments]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF  # all that a process can return
        print(error.code, file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.argv = before
    return 0


@contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Give an object another attribute within the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _recording(record: Record) -> Iterator[None]:
    """Record every execution of a method, and what `pytorch_tokenizers` encodes and decodes."""
    import pytorch_tokenizers

    from harness.shim.executorch import MethodProxy

    execute, get_tokenizer = MethodProxy.execute, pytorch_tokenizers.get_tokenizer

    def recorded_execute(method: Any) -> None:
        inputs = [_copy(value) for value in method._inputs]  # the script goes on writing into them
        execute(method)
        outputs = method.get_outputs()  # copies, in the dtypes that the script gets
        record["calls"].append({"method": method._name, "inputs": inputs, "outputs": outputs})

    def recorded_tokenizer(*arguments: Any, **options: Any) -> Any:
        tokenizer = get_tokenizer(*arguments, **options)
        encode, decode_token = tokenizer.encode, tokenizer.decode_token
        tokenizer.encode = _then(encode, lambda given, ids: record["prompts"].append(list(ids)))
        tokenizer.decode_token = _then(
            decode_token, lambda given, text: record["printed"].append(given[0])
        )
        return tokenizer

    with (
        replaced(MethodProxy, "execute", recorded_execute),
        replaced(pytorch_tokenizers, "get_tokenizer", recorded_tokenizer),
    ):
        yield


def _copy(value: Any) -> Any:
    return value.detach().clone() if hasattr(value, "detach") else value


def _then(function: Callable[..., Any], tell: Callable[[Any, Any], None]) -> Callable[..., Any]:
    def told(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        tell(arguments, result)
        return result

    return told


if __name__ == "__main__":
    import harness.shim

    harness.shim.install()
    serve(run)

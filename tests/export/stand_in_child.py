"""The export's child process with a stand-in for ExecuTorch's exporter; STAND_IN chooses its act.

Only the exporter's module differs from the harness's own child; this file provides it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

from harness.child import serve
from harness.export import _executorch_child as child


def write():
    """Write the request to the exporter instead of a program."""
    asked = {"argv": sys.argv[1:], "cwd": str(Path.cwd()), "tmp": os.environ["TMPDIR"]}
    output = next(word for word in sys.argv if word.startswith("--output=")).partition("=")[2]
    Path(output).write_text(json.dumps(asked))


def write_alike():
    """Write the same bytes each time."""
    output = next(word for word in sys.argv if word.startswith("--output=")).partition("=")[2]
    Path(output).write_bytes(b"program" * 1000)


def write_much():
    """Write more than a disk has room for."""
    output = next(word for word in sys.argv if word.startswith("--output=")).partition("=")[2]
    Path(output).write_bytes(bytes(1 << 20))


def fail():
    raise ValueError("cannot lower aten.foo.\nA second line that says less.")


def write_nothing():
    pass


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def exit_early():
    print("the last words")
    os._exit(9)


def hang():
    helper = subprocess.Popen(["sleep", "600"])
    Path(os.environ["STAND_IN_PIDS"]).write_text(f"{os.getpid()} {helper.pid}")
    print("Lowering to edge...")
    time.sleep(600)


def main():
    print("\nLoading model from somewhere...\nExporting model...")
    acts = (write, write_alike, write_much, fail, write_nothing, die, exit_early, hang)
    {act.__name__: act for act in acts}[os.environ["STAND_IN"]]()


exporter = ModuleType("stand_in_exporter")
exporter.main = main
exporter.load_model = exporter.save_pte_program = exporter.argparse = None
exporter.MULTIMETHOD_WEIGHT_SHARING_STRATEGY = None
sys.modules["stand_in_exporter"] = exporter
child.EXPORTER = "stand_in_exporter"
if "STAND_IN_SKIPS_CHECKPOINT" in os.environ:  # saves the two seconds that torch takes to import
    files = ModuleType("harness.export.meta_files")
    files.meta_files = lambda checkpoint, params, folder: (checkpoint, params)
    sys.modules["harness.export.meta_files"] = files
serve(child.export)

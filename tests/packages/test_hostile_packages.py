"""For mutated packages, combine, extract and diff give a result or an error in one sentence."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness.artifact import open_artifact
from harness.diff import diff_artifacts
from harness.errors import HarnessError
from harness.packages import combine_packages, extract_packages
from tests.mil.programs import save

FILES = (
    "Manifest.json",
    "Data/com.apple.CoreML/model.mlmodel",
    "Data/com.apple.CoreML/weights/weight.bin",
)
ROUNDS = 400
WEIGHT = np.random.default_rng(5).standard_normal((16, 16)).astype(np.float32)


def build(mb, a):
    chosen = mb.cond(
        pred=mb.greater(x=mb.reduce_sum(x=a), y=np.float32(0)),
        _true_fn=lambda: mb.matmul(x=a, y=WEIGHT),
        _false_fn=lambda: mb.matmul(x=a, y=WEIGHT.T.copy()),
    )
    return mb.linear(x=chosen, weight=WEIGHT)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    package = save(build, [(4, 16)])
    return Path(shutil.copytree(package.what, tmp_path_factory.mktemp("sound") / "a.mlpackage"))


def broken(rng, data):
    """Change a few bytes, or cut out a piece, or insert it twice."""
    changed = bytearray(data)
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.randint(1, 40))
    match rng.randrange(4):
        case 0:
            del changed[start:stop]
        case 1:
            changed[start:start] = data[start:stop]
        case _:
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def combine(sound, mutant, folder):
    parts = [(sound, "main", "a"), (mutant, "main", "b")]
    combine_packages(parts, folder / "c.mlpackage", replace=True)


def extract(sound, mutant, folder):
    extract_packages(open_artifact(mutant), folder / "out", replace=True)


def diff(sound, mutant, folder):
    found = diff_artifacts(open_artifact(sound), open_artifact(mutant))
    assert found, "the bytes differ"


@pytest.mark.parametrize("command", [combine, extract, diff])
def test_a_mutated_package_gives_a_sentence_or_a_result(sound, tmp_path, command):
    rng = random.Random(command.__name__)
    mutant = Path(shutil.copytree(sound, tmp_path / "mutant.mlpackage"))
    refused = done = 0
    for _ in range(ROUNDS):
        name = rng.choice(FILES)
        whole = (mutant / name).read_bytes()
        changed = broken(rng, whole[:2000]) + whole[2000:]
        if changed == whole:
            continue
        (mutant / name).unlink()  # a file that is mapped must not shrink
        (mutant / name).write_bytes(changed)
        try:
            command(sound, mutant, tmp_path)
            done += 1
        except HarnessError as error:
            refused += 1
            assert "\n" not in str(error)
        (mutant / name).unlink()
        (mutant / name).write_bytes(whole)
    assert refused > ROUNDS // 20 and done > ROUNDS // 20
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

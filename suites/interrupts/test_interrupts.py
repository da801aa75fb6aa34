"""A command may end at any moment: its output is absent, whole, or refused; an older one survives.

After an interrupt nothing else is left, not even temporary files. After a kill something may be
left, even the older output under another name; `harness inspect`, which reads as all commands do,
takes none of it for whole, and the next run of the command succeeds.
"""

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from harness.artifact.exported import PROGRAM
from harness.artifact.package import MANIFEST
from harness.fixtures.cache import exported
from harness.packages.extract import LIST
from harness.suites.interrupts.leftovers import Content, content, taken_for_whole
from harness.suites.interrupts.moments import Request
from harness.suites.interrupts.process import WarmProcess

SMALL = ("--input-len", "4", "--max-context-len", "24", "--target-split-size", "none")
EXPORT = ("export", "--checkpoint", "{model}/checkpoint.pth", "--params", "{model}/params.json")
OURS = (*EXPORT, "--exporter", "coreml", *SMALL, "-o", "{output}")
COMBINE = ("combine", "{parts}/a.mlpackage:a", "{parts}/b.mlpackage:b", "-o", "{output}")
EXTRACT = ("extract", "{parts}", "-o", "{output}")
KEPT_BY_TORCH = "torchinductor_"  # its cache, made when it is imported


@dataclass(frozen=True)
class Command:
    """A command that writes `output`, over an `older` one if there is one.

    By default `moments` are tried beside the last two; if it is None, the command is not tried.
    `limits` are sizes of a file, in bytes, at which the process is killed.
    """

    words: Sequence[str]
    output: str
    moments: int | None
    limits: Sequence[int]
    older: Mapping[str, bytes] = field(default_factory=dict)
    stand_in: str | None = None


COMMANDS = {
    "export by ours": Command(OURS, "out", None, (1, 1 << 14)),
    "export by ours over an older one": Command(OURS, "out", 1, (), {PROGRAM: b"older"}),
    "export by ExecuTorch's, a stand-in": Command(
        (*EXPORT, "-o", "{output}"), "out.pte", 3, (1,), {"": b"    ET12"}, "stand_in_child"
    ),
    "combine": Command(COMBINE, "out.mlpackage", 8, (1, 4096, 20_000)),
    "combine over an older one": Command(
        (*COMBINE, "--force"), "out.mlpackage", 8, (4096,), {MANIFEST: b"older"}
    ),
    "extract": Command(EXTRACT, "out", 8, (1, 2048, 20_000)),
    "extract over an older one": Command((*EXTRACT, "--force"), "out", 8, (2048,), {LIST: b"old"}),
}


class Place:
    """The folders that a command writes to: its output's, and its temporary files'."""

    def __init__(self, folder: Path, command: Command) -> None:
        self.output = folder / "out" / command.output
        self.folders = (self.output.parent, folder / "tmp")
        self.command = command

    def prepare(self) -> None:
        """Remove everything but the older output."""
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for name, data in self.command.older.items():
            path = self.output / name if name else self.output
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)

    def left(self) -> list[str]:
        """Return the names of all that is left beside the output."""
        found = (path for folder in self.folders for path in folder.iterdir())
        return [p.name for p in found if p != self.output and not p.name.startswith(KEPT_BY_TORCH)]


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported folder to extract, with two of its packages, `a` and `b`, to combine."""
    folder = tmp_path_factory.mktemp("parts") / "export"
    shutil.copytree(exported("tiny", exporter="coreml"), folder)
    for name, package in (("a", "blocks"), ("b", "head")):
        shutil.copytree(folder / package / "model.mlpackage", folder / f"{name}.mlpackage")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_no_moment_leaves_a_part_that_is_taken_for_whole(
    name: str, model: Path, parts: Path, warm: WarmProcess, tmp_path: Path, every: bool
) -> None:
    command = COMMANDS[name]
    if command.moments is None and not every:
        pytest.skip("much like the next one; `--every` runs it")
    place = Place(tmp_path, command)
    words = [w.format(model=model, parts=parts, output=place.output) for w in command.words]
    whole_run = Request(words, [str(f) for f in place.folders], stand_in=command.stand_in)
    for _ in range(2):  # the first warms up
        place.prepare()
        ended = warm.run(whole_run)
        whole = content(place.output)
        assert ended.status == 0 and whole and place.left() == []
    moments = chosen(name, ended.moments, command.moments, every)
    for number, moment in enumerate(moments):
        if every or number % 2:
            interrupted(warm, replace(whole_run, moment=moment), place, whole)
        if every or not number % 2:
            killed(warm, replace(whole_run, moment=moment, signal="SIGKILL"), place, whole)
        if (every or not number) and content(place.output) != whole:
            assert warm.run(whole_run).status == 0, "what a kill left is in the way"
            assert content(place.output) == whole
    for limit in command.limits:
        killed(warm, replace(whole_run, limit=limit), place, whole)


def chosen(name: str, count: int | None, sample: int | None, every: bool) -> Sequence[int]:
    """Return all moments, or some and the last two, at which the output gets its name."""
    assert count is not None and count >= 4
    if every:
        return range(count)
    assert sample is not None, "such a command is skipped"
    earlier = random.Random(name).sample(range(count - 2), min(sample, count - 2))
    return [*sorted(earlier), count - 2, count - 1]


def interrupted(warm: WarmProcess, request: Request, place: Place, whole: Content) -> None:
    place.prepare()
    ended = warm.run(request)
    found = content(place.output)
    # a library may swallow the interrupt in a finaliser: then the command completes
    assert ended.status == 130 or (ended.status == 0 and found == whole), (request, ended)
    assert found in (whole, place.command.older), f"{request}: {sorted(found)}"
    assert place.left() == [], request


def killed(warm: WarmProcess, request: Request, place: Place, whole: Content) -> None:
    place.prepare()
    ended = warm.run(request)
    # a child process gets an error at the limit, and the command reports it
    assert ended.status < 0 or (request.limit and ended.status == 2), (request, ended)
    older = place.command.older
    if older:  # it may have another name, but it must be there
        found = [content(path) for path in place.output.parent.iterdir()]
        assert older in found or whole in found, request
    assert list(taken_for_whole(place.output.parent, whole, older)) == [], request

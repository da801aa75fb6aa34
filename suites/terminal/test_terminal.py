"""What a person sees of each command: a sign of life within two seconds, and no rest of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import COMMANDS
from harness.results import read_run
from harness.suites.terminal.conftest import HARNESS, Material
from harness.suites.terminal.watch import MAX_SILENCE, Watched, drawn, left_over, rendered, watch

Watch = Callable[..., Watched]

# Each command of `harness` on a file of each kind, and the status that it ends with. In braces: the
# files of `Material`.
LINES = {
    "models": 0,
    "exporters": 0,
    "init": 0,
    "findings": 0,
    "export --model tiny --mode multifunction -o out.pte": 0,
    "export --checkpoint {checkpoint} --mode multifunction -o out.pte": 0,
    "export --checkpoint {checkpoint} --exporter coreml -o out": 0,
    "inspect {single_pte}": 0,
    "inspect {multifunction_folder}": 0,
    "extract {multifunction_pte} -o out": 0,
    "combine {package} -o out.mlpackage": 0,
    "diff {single_pte} {multifunction_pte}": 1,
    "check {single_pte}": 0,
    "check {multifunction_pte} --checkpoint {checkpoint} --results out": 0,
    "check {multifunction_folder} --measure": 0,
    "golden {multifunction_folder} -o out.npz": 0,
    "bisect {single_pte} --checkpoint {checkpoint}": 0,
    "bisect {multifunction_pte} --ranges": 0,
    "run {single_pte} --tokenizer {tokenizer} --prompt Once --max-new-tokens 20": 0,
    "run {multifunction_pte} --tokenizer {tokenizer} --prompt Once --max-new-tokens 20 --json": 0,
    "text {single_folder} --tokenizer {tokenizer} --text {text}": 0,
    "text {multifunction_pte} --tokenizer {tokenizer} --text {text}": 0,
    "lm-eval ls tasks": 0,
    "bench {single_pte}": 0,
    "bench {multifunction_pte}": 0,
    "gate {results}/check.jsonl {results}/check.jsonl": 0,
    "gate {multifunction_pte} {multifunction_pte} --tier structure --tier numbers": 0,
    "gate {single_folder} {single_folder} --tier time --seconds 9 --allow-inconclusive": 0,
    "report {results}/check.jsonl -o out": 0,
    "shim -- python -c pass": 0,
    "conformance --fixture tiny --mode multifunction --exporter coreml --runtime mil:strict": 0,
    "generation --fixture layers-1 --mode single --exporter coreml --steps 100": 0,
}


def test_every_command_is_watched() -> None:
    assert {line.split()[0] for line in LINES} == COMMANDS.keys()


def assert_alive(found: Watched) -> None:
    """Fail for a silence, and for what is left of a line of progress."""
    assert found.longest.judged <= MAX_SILENCE, f"{' '.join(found.words)}: {found.longest}"
    assert left_over(found.screen) == []
    assert all(len(line) < found.columns for line in drawn(found.output))


def assert_each_once(screen: list[str], stream: Path) -> None:
    """Fail for a reason of a skip that a screen shows twice, or not at all."""
    shown = "".join("".join(screen).split())
    reasons = {case.reason for case in read_run(stream).cases if case.outcome == "skip"}
    squeezed = ["".join(reason.split()) for reason in reasons]
    for reason in squeezed:
        within = sum(reason in other for other in squeezed)
        assert shown.count(reason) == within, f"{reason}: {shown.count(reason)} times"


@pytest.mark.parametrize("line", LINES)
def test_a_command_shows_a_sign_of_life(
    line: str, material: Material, watched: Watch, tmp_path: Path
) -> None:
    if line.startswith("lm-eval"):
        pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    found = watched(material.words(line))
    assert found.status == LINES[line], "\n".join(found.screen)
    assert_alive(found)
    for stream in tmp_path.rglob("conformance.jsonl"):
        assert_each_once(found.screen, stream)
        assert any(line.startswith("machine: ") for line in found.screen)


@pytest.mark.parametrize(
    "line",
    [
        "check {multifunction_pte} --check parity",
        "text {single_folder} --tokenizer {tokenizer} --text {text}",
        "report {results}/check.jsonl",
        "diff {single_pte} {multifunction_pte}",
        "models",
    ],
)
def test_a_pipe_gets_plain_lines(line: str, material: Material, tmp_path: Path) -> None:
    words = [*HARNESS, *material.words(line)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode in (0, 1) and done.stdout
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text and "\r" not in text


def test_no_color_is_heard(material: Material, watched: Watch) -> None:
    words = material.words("report {results}/check.jsonl")
    assert watched(words).has_colours
    assert not watched(words, NO_COLOR="1").has_colours


@pytest.mark.parametrize(
    ("columns", "variables", "wanted"), [(60, {}, 60), (80, {"COLUMNS": "50"}, 50)]
)
def test_progress_fits_the_terminal(
    columns: int, variables: dict[str, str], wanted: int, material: Material, watched: Watch
) -> None:
    words = material.words("check {single_folder} --check residues")
    found = watched(words, columns, **variables)
    lines = drawn(found.output)
    assert lines and max(map(len, lines)) < wanted
    assert_alive(found)


def test_quiet_shows_no_progress(material: Material, watched: Watch) -> None:
    found = watched(material.words("check {single_folder} --check residues -q"))
    assert found.status == 0 and drawn(found.output) == []


def test_a_terminal_that_cannot_redraw_gets_lines(material: Material, watched: Watch) -> None:
    found = watched(material.words("check {single_folder} --check residues"), TERM="dumb")
    assert found.status == 0 and "\x1b" not in found.output


# What the suite must catch. Each writes a line, then nothing for three seconds.
SILENT = {
    "sleeps": "print('begun', flush=True); import time; time.sleep(3); print('ended')",
    "computes": "import time; print('begun', flush=True)\n"
    "while time.process_time() < 3: pass\nprint('ended')",
    "waits for a child": "print('begun', flush=True); import subprocess, sys\n"
    "subprocess.run([sys.executable, '-c', 'import time; time.sleep(3)'])",
    "is silent at its start": "import time; time.sleep(3); print('ended')",
    "is silent at its end": "print('begun', flush=True); import time; time.sleep(3)",
}


@pytest.mark.parametrize("code", SILENT.values(), ids=list(SILENT))
def test_a_silent_command_is_caught(code: str) -> None:
    found = watch([sys.executable, "-c", code])
    with pytest.raises(AssertionError, match=r"s without a sign of life.*(begun|first byte)"):
        assert_alive(found)


def test_a_command_that_says_something_each_second_is_alive() -> None:
    code = "import time\nfor i in range(5): time.sleep(1); print(i, flush=True)"
    assert_alive(watch([sys.executable, "-c", code]))


def test_a_line_of_progress_that_stays_is_caught() -> None:
    code = r"print('\r\x1b[Kchecking parity  00:03\r\nPASSED', end='')"
    with pytest.raises(AssertionError, match="checking parity"):
        assert_alive(watch([sys.executable, "-c", code]))


def test_a_screen_is_what_a_terminal_shows() -> None:
    assert rendered("a line\r\n\rprogress 00:01\r\x1b[Kend", 80) == ["a line", "end"]
    assert rendered("\x1b[31mred\x1b[0m and more", 6) == ["red an", "d more"]
    assert rendered("abc\rx", 80) == ["xbc"]
    with pytest.raises(ValueError, match="x1b"):
        rendered("\x1b[2J", 80)

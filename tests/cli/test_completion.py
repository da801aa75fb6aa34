"""`harness --completion` in a real shell."""

import shutil
import subprocess
import sys

import pytest

from harness.cli import main


def completed(script, *words):
    """Return what bash offers for the last of the words."""
    ask = f"""
        source {script}
        COMP_WORDS=(harness {" ".join(words)})
        COMP_CWORD={len(words)}
        _shtab_harness
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_and_their_options(tmp_path):
    command = [sys.executable, "-m", "harness", "--completion", "bash"]
    script = tmp_path / "harness.bash"
    script.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {"check", "conformance"} <= completed(script, "c")
    assert "gate" not in completed(script, "c")
    assert completed(script, "check", "--chec") == {"--check", "--checkpoint"}


def test_an_unknown_shell_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--completion", "command.com"])
    assert "choose from" in capsys.readouterr().err

"""What the command line prints of an error."""

from harness.cli import main


def test_a_name_in_a_file_cannot_drive_the_terminal(tmp_path, capsys):
    path = tmp_path / "model\x1b[2J.pte"
    path.write_bytes(b"no program")
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr().err
    assert "\x1b" not in printed and "model\\x1b[2J.pte" in printed

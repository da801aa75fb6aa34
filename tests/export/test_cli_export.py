"""`harness export` and `harness models`, with a stand-in for the exporters."""

import importlib.util
import json

import pytest

from harness.cli import main
from harness.export import environments, executorch
from harness.export.exporters import get_exporter
from harness.files import cache_folder
from harness.fixtures import MODELS, all_models, cache


@pytest.fixture
def asked(monkeypatch):
    """Return the requests to the exporters; each request writes a file of five bytes."""
    calls = []

    def export(checkpoint, params, options, output, progress, environment):
        calls.append(options)
        output.write_text("bytes")

    def exported(name, options, progress, exporter):
        calls.append(options)
        (path := cache_folder() / name).write_text("bytes")
        return path

    monkeypatch.setattr(executorch, "export", export)
    monkeypatch.setattr(cache, "exported", exported)
    return calls


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    return tmp_path / "model.pte"


def test_a_named_model_is_exported_with_its_own_options(asked, output, capsys):
    assert main(["export", "--model", "tiny", "--dtype", "fp32", "-o", str(output)]) == 0
    assert (asked[0].dtype, asked[0].input_len) == ("fp32", MODELS["tiny"].options.input_len)
    version = get_exporter("executorch").version
    said = f"{output}: 5 bytes, exported by executorch {version}\n"
    assert capsys.readouterr().out == said
    assert output.read_text() == "bytes"


def test_a_fetch_of_executorch_is_said_before_it_begins(asked, output, monkeypatch, capsys):
    found = importlib.util.find_spec
    absent = ("executorch", "pip")  # without pip and uv, the fetch fails at once
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n in absent else found(n))
    monkeypatch.setenv("PATH", str(output.parent))
    monkeypatch.setattr(environments, "DEFAULT", "0.0.1")
    for words, lines in ((["export"], 2), (["export", "-q"], 1)):
        assert main([*words, "--model", "tiny", "-o", str(output)]) == 2
        error = capsys.readouterr().err.splitlines()
        said = "ExecuTorch is not installed: fetching 0.0.1 (18 MB) into the cache, once"
        assert len(error) == lines and (error[0] == f"harness export: {said}") == (lines == 2)


SIZES = {"dim": 96, "n_layers": 2, "n_heads": 4, "vocab_size": 300, "hidden_dim": 192}


def test_a_checkpoint_is_exported_with_the_exporters_defaults(asked, output):
    words = ["--embedding-quantize", "none", "--target-split-size", "none", "--no-graph-breaks"]
    (params := output.with_name("p.json")).write_text(json.dumps(SIZES))
    source = ["--checkpoint", "c.pth", "--params", str(params)]
    assert main(["export", *source, *words, "-o", str(output)]) == 0
    params.rename(params.with_name("config.json"))  # found in the folder, without --params
    assert main(["export", "--checkpoint", str(output.parent), *words, "-o", str(output)]) == 0
    assert asked[0] == asked[1]
    options = asked[0]
    assert (options.embedding_quantize, options.target_split_size) == (None, None)
    assert (options.graph_breaks, options.max_context_len) == (False, 1024)


@pytest.mark.parametrize(("positions", "says"), [(1023, True), (1024, False), (None, False)])
def test_a_context_beyond_the_models_positions_is_noted(asked, output, capsys, positions, says):
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = sizes | {"vocab_size": 300, "max_position_embeddings": positions}
    output.with_name("config.json").write_text(json.dumps(config))
    words = ["--checkpoint", str(output.parent), "--max-context-len", "1024"]
    assert main(["export", *words, "-o", str(output)]) == 0 and output.exists()
    note = "the context of 1,024 is longer than the 1,023 positions of the model's configuration"
    assert (note in capsys.readouterr().err) == says


def test_an_option_without_effect_is_reported_and_the_export_goes_on(asked, output, capsys):
    words = ["--target-split-size", "none", "--max-splits", "4"]
    assert main(["export", "--model", "tiny", *words, "-o", str(output)]) == 0
    said = "harness export: ignored: --max-splits 4 has no effect without --target-split-size\n"
    assert capsys.readouterr().err == said
    assert asked[0].max_splits == 4 and output.exists()
    output.unlink()
    assert main(["export", "--model", "tiny", *words[:2], "-o", str(output)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "tyni"], "there is no model 'tyni'"),
        (["--model", "tiny", "--params", "p"], "--params goes with --checkpoint"),
        (["--checkpoint", "c"], "there is no checkpoint at c"),
        (["--model", "tiny", "--input-len", "999"], "input_len must be a whole number"),
        (["--model", "tiny", "--weight-sharing", "none"], "needs mode multifunction"),
    ],
)
def test_a_bad_call_is_one_sentence_and_status_2(asked, output, capsys, words, sentence):
    assert main(["export", *words, "-o", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("harness export: ") and sentence in error and error.count("\n") == 1
    assert not asked and not output.exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    monkeypatch, tmp_path, capsys, fill_disk, kind
):
    (folder := tmp_path / "made").mkdir()
    (file := folder / "large").write_bytes(bytes(1 << 16))
    made = file if kind == "file" else folder
    monkeypatch.setattr(cache, "exported", lambda *given: made)
    output = tmp_path / "output"
    fill_disk()
    assert main(["export", "--model", "tiny", "-o", str(output)]) == 2
    sentence = f"harness export: {output}: cannot be written (File too large)\n"
    assert capsys.readouterr().err == sentence
    assert list(tmp_path.iterdir()) == [folder]


def test_one_source_must_be_named(output, capsys):
    for words in ([], ["--model", "tiny", "--checkpoint", "c"]):
        with pytest.raises(SystemExit) as ended:
            main(["export", *words, "-o", str(output)])
        assert ended.value.code == 2


def test_a_family_of_the_suites_is_one_line_of_the_models(capsys):
    assert main(["models"]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    first = [line.split("  ")[0] for line in lines]
    families = ["varied-ones to varied-long", "matrix-01 to matrix-22"]
    alone = [name for name in all_models() if not name.startswith(("varied-", "matrix-"))]
    assert first == [*alone, *families]
    assert "10 small models" in lines[-2] and "22 models" in lines[-1]


def test_models_are_listed_for_people_and_for_machines(capsys):
    assert main(["models", "--all"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in all_models())
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(all_models())
    assert rows[0]["options"]["max_context_len"] == 128

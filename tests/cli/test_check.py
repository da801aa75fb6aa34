"""`harness check` on real artifacts, sound and broken, called like a user does."""

import json
import re
import shlex
import shutil
from dataclasses import replace

import pytest

from harness.checks import Check, artifact_checks, core_ml_checks
from harness.cli import main
from harness.errors import CallTimeoutError, CrashError
from harness.fixtures.cache import exported, fixture
from harness.runtimes import default_runtime
from harness.suites.mutants import of_names as names
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants import of_weights as weights
from harness.suites.mutants.edit import Export

WIDEN = ("--runtime", "mil:widen")


@pytest.fixture(scope="module")
def tiny():
    return fixture("tiny")


@pytest.fixture(scope="module")
def source(tiny):
    return ("--checkpoint", tiny.checkpoint, "--params", tiny.params)


@pytest.fixture(scope="module")
def sound(tiny):
    return exported("tiny", replace(tiny.options, mode="multifunction"))


@pytest.fixture
def broken(sound, tmp_path):
    def make(mutate):
        export = Export(sound)
        mutate(export)
        return export.save(tmp_path / "broken.pte")

    return make


@pytest.fixture
def check(capsys):
    """Run the command; return its exit status, standard output and standard error."""

    def call(*words):
        status = main(["check", *map(str, words)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def cases_of(out):
    """Return the cases of a printed stream."""
    header, *cases, footer = map(json.loads, out.splitlines())
    assert (header["type"], footer["type"]) == ("header", "footer")
    return cases


def test_a_sound_artifact_passes_every_check_that_applies(check, sound, source):
    status, out, err = check(sound, *source)
    assert (status, err) == (0, "")
    outcomes = [line.split()[0] for line in out.splitlines()[:-2]]
    executed = [name for name, check in artifact_checks().items() if check.takes_runtime]
    judged = len(artifact_checks()) - 1 + len(executed)  # on two runtimes
    if default_runtime().startswith("coreml"):  # and on a Mac on a third
        judged += len(executed) + len(core_ml_checks())
    assert outcomes.count("pass") == judged
    assert outcomes.count("skip") == 1 and set(outcomes) == {"pass", "skip", "note"}
    assert "skip  sharing-size: needs the same export with weight sharing off" in out
    for runtime in ("mil:strict", "mil:widen"):
        assert f"pass  parity on {runtime} (" in out
    assert "prefill error" in out and "(<= 1e-05)" in out
    assert out.splitlines()[-1].startswith(f"{judged} checks, 0 failed, 1 skipped; ")


def test_without_a_checkpoint_what_needs_one_is_skipped_with_its_reason(check, sound):
    status, out, _ = check(sound, *WIDEN)
    assert status == 0
    assert "skip  weights, tables: needs the checkpoint and its params" in out
    assert out.splitlines()[-1].endswith("compared with a checkpoint: give --checkpoint")


def test_a_check_that_is_named_says_too_that_there_was_no_checkpoint(check, sound, tmp_path):
    results = ["--results", str(tmp_path / "results")]
    status, out, _ = check(sound, *WIDEN, "--check", "parity", *results)
    assert status == 0
    assert out.splitlines()[-1].endswith("compared with a checkpoint: give --checkpoint")
    (page,) = (tmp_path / "results").glob("*.html")
    assert "no checkpoint was given" in page.read_text(encoding="utf-8").replace("<wbr>", "")


def test_a_broken_artifact_fails_and_every_finding_is_printed_in_full(check, broken, source):
    status, out, err = check(broken(names.swap_outputs), *source, "--check", "metadata-names")
    assert (status, err) == (1, "")
    first, place, evidence, remedy, blank, summary = out.splitlines()
    assert first.startswith("fail  metadata-names: M02 `metadata.json` has other") and blank == ""
    assert summary.startswith("1 check, 1 failed (M02), 0 skipped; ")
    assert place.startswith("      place     2 places: method 'forward', delegate 1")
    assert "method 'prefill', delegate 1" in place and place.count(", outputs") == 2
    assert "evidence  metadata.json's order is [" in evidence
    assert evidence.endswith("'aten_add_tensor_27']")
    assert "remedy    List the names in the order of the function's description." in remedy


def test_a_figure_beyond_its_bound_is_a_finding(check, broken, source):
    status, out, _ = check(broken(weights.perturb_a_norm), *source, *WIDEN, "--check", "parity")
    first, place, evidence, *_ = out.splitlines()
    assert status == 1 and first.startswith("fail  parity on mil:widen: N10 Logits or caches are")
    assert place.endswith("3 places: prefill; decode; caches")
    assert evidence.strip().startswith("evidence  prefill error is ")
    command = shlex.split(out.splitlines()[-1].removeprefix("the operation at fault: "))
    assert command[:2] == ["harness", "bisect"] and command[3:] == [*map(str, source)]


def test_a_part_too_broken_to_be_looked_at_fails_its_checks_and_no_others(check, broken, source):
    status, out, err = check(broken(programs.change_one_epsilon), *source, *WIDEN)
    assert (status, err) == (1, "")
    assert out.count("2 epsilons, not one") == 1 and " checks, 1 failed (W05), " in out
    assert "pass  metadata-names" in out and "pass  weight-sharing" in out


def put_in_place(monkeypatch, check):
    """Replace the check of that name."""
    changed = artifact_checks() | {check.name: check}
    monkeypatch.setattr("harness.checks.subject.artifact_checks", lambda: changed)


def test_a_mistake_in_a_check_does_not_hide_the_others(check, sound, monkeypatch):
    def mistaken(subject):
        raise ZeroDivisionError("division by zero")
        yield

    put_in_place(monkeypatch, Check("program", mistaken))
    status, out, _ = check(sound, "--check", "program", "--check", "references")
    assert status == 1 and "pass  references" in out
    assert "error program: the check itself failed (ZeroDivisionError: division by zero)" in out


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CrashError("the runtime's process is gone", "SIGSEGV"), "crash"),
        (CallTimeoutError("the runtime did not answer"), "timeout"),
    ],
)
def test_a_runtime_that_crashes_or_hangs_is_named_so(check, sound, monkeypatch, error, outcome):
    def dies(subject, runtime):
        raise error
        yield

    put_in_place(monkeypatch, Check("parity", dies, takes_runtime=True))
    status, out, _ = check(sound, *WIDEN, "--check", "parity", "--json")
    assert status == 1 and [case["outcome"] for case in cases_of(out)] == [outcome]


def test_json_holds_the_cases(check, broken, source):
    words = ("--check", "weights", "--check", "references", "--json")
    status, out, _ = check(broken(weights.perturb_a_scale), *source, *words)
    cases = {case["check"]: case for case in cases_of(out)}
    assert status == 1 and list(cases) == ["references", "weights"]
    assert (cases["references"]["outcome"], cases["weights"]["outcome"]) == ("pass", "fail")
    assert cases["weights"]["comparisons"] > 500_000 and cases["weights"]["seconds"] > 0
    found = re.search(r"layers.0.attention.wq.weight \((\d+) of 4,096", cases["weights"]["reason"])
    assert found and 0 < int(found[1]) <= 64  # a scale belongs to one row; a zero does not change


def test_nothing_checked_is_not_a_pass(check, sound):
    status, out, _ = check(sound, "--check", "weights")
    assert status == 1 and "\nnothing was checked: 1 skipped\n" in out


def test_checks_run_in_their_own_order_and_once(check, sound):
    words = ("--check", "program", "--check", "references", "--check", "program")
    status, out, _ = check(sound, *words)
    assert status == 0 and [line.split()[1] for line in out.splitlines()[:2]] == [
        "references",
        "program",
    ]


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (
            ("--check", "sanity"),
            2,
            "no check 'sanity'; did you mean 'parity'? choose from references",
        ),
        (("--check", "wieghts"), 2, "no check 'wieghts'; did you mean 'weights'? choose from"),
        (("--runtime", "metal"), 2, "no runtime 'metal'"),
        (("--checkpoint", "x.pth"), 2, "there is no checkpoint at x.pth"),
        (("--params", "y.json"), 2, "params without a checkpoint"),
        (("--checkpoint", "x.pth", "--params", "y.json"), 2, "y.json"),
    ],
)
def test_a_bad_call_is_one_sentence(check, sound, words, status, problem):
    found, out, err = check(sound, *words)
    assert (found, out, err.count("\n")) == (status, "", 1) and problem in err


def test_a_file_in_the_place_of_the_results_is_said_to_be_one(check, sound, tmp_path):
    (place := tmp_path / "results").touch()
    status, out, err = check(sound, "--check", "program", "--results", place)
    sentence = f"harness check: {place} is a file, not a folder: name another place\n"
    assert (status, out, err) == (2, "", sentence)


def test_params_in_the_place_of_a_checkpoint_hold_no_weights(check, sound, tiny, tmp_path):
    params = shutil.copy(tiny.params, tmp_path / "config.json")
    status, _, err = check(sound, "--checkpoint", params)
    says = f"harness check: {params} holds no weights: give the folder, or the weights' file\n"
    assert (status, err) == (2, says)


@pytest.mark.linux
def test_a_runtime_that_is_not_here_is_status_3(check, sound):
    status, out, err = check(sound, "--runtime", "coreml:cpu_only")
    assert (status, out) == (3, "") and "coreml:cpu_only cannot be used here" in err


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "no such file"), (b"junk" * 100, "not an ExecuTorch program")],
)
def test_a_file_that_cannot_be_read_is_status_2(check, tmp_path, content, problem):
    path = tmp_path / "bad.pte"
    if content is not None:
        path.write_bytes(content)
    status, out, err = check(path)
    assert (status, out, err.count("\n")) == (2, "", 1) and problem in err


def test_a_reference_to_data_that_is_not_there_is_status_2(check, broken):
    mutate = names.change_first_reference(key="coreml_executorch_of_another_export")
    status, out, err = check(broken(mutate))
    assert (status, out) == (2, "") and "delegate 0: refers to named data" in err


def test_a_package_is_checked_without_what_needs_a_program(check, sound, tmp_path):
    from harness.artifact import open_artifact

    for name, content in open_artifact(sound).bundles[0].files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    status, out, _ = check(tmp_path / "model.mlpackage")
    assert status == 0 and "pass  metadata-names" in out and "pass  weight-sharing" in out
    assert "skip  metadata-round-trip: a bare package has no program" in out


def test_a_check_that_does_not_apply_says_why_once(check, mixed_program):
    status, out, _ = check(mixed_program[0])
    hint = "no output was compared with a reference: give --reference or --golden"
    assert out.splitlines()[-1] == hint
    assert status == 0 and out.count("judges language models that describe themselves") == 1
    names = "owners, sharing-size, weights, tables, roles, cache-rows, parity, greedy, residues"
    assert f"skip  {names}, token-ids: " in out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--checkpoint", "x.pth", "--params", "y.json"), "y.json: cannot be read (No such file"),
        (("--reference", "no_such_module:f"), "cannot be loaded: ModuleNotFoundError"),
        (("--reference", "json"), "give module:function"),
        (("--reference", "json:dumps", "--golden", "g.npz"), "give one"),
        (("--golden", "g.npz"), "g.npz: cannot be read (No such file"),
    ],
)
def test_a_bad_reference_is_one_sentence(check, mixed_program, words, problem):
    status, out, err = check(mixed_program[0], *words)
    assert (status, out, err.count("\n")) == (2, "", 1) and problem in err


def test_another_models_checkpoint_is_refused_before_the_first_check(check, sound, tiny, tmp_path):
    import torch

    sizes = json.loads(tiny.params.read_text()) | {"n_layers": 3}
    (params := tmp_path / "params.json").write_text(json.dumps(sizes))
    kept = {
        name: value
        for name, value in torch.load(tiny.checkpoint, weights_only=True).items()
        if not name.startswith("layers.3.")
    }
    torch.save(kept, checkpoint := tmp_path / "three.pth")
    status, out, err = check(sound, "--checkpoint", checkpoint, "--params", params)
    assert (status, out) == (2, "") and "n_layers is 4, not 3; give its own checkpoint" in err


def test_a_checkpoint_that_does_not_fit_its_params_is_refused(check, sound, tiny, tmp_path):
    sizes = json.loads(tiny.params.read_text()) | {"n_layers": 3}
    (params := tmp_path / "params.json").write_text(json.dumps(sizes))
    status, out, err = check(sound, "--checkpoint", tiny.checkpoint, "--params", params)
    assert (status, out) == (2, "") and "does not fit its params" in err


def test_params_are_found_beside_the_checkpoint_or_in_a_folder(check, sound, tiny, tmp_path):
    words = ("--check", "weights", "--checkpoint", tiny.checkpoint)
    status, out, _ = check(sound, *words)
    assert status == 0 and out.startswith("pass  weights")
    assert check(sound, *words, "--params", tiny.params.parent)[0] == 0
    status, out, err = check(sound, *words, "--params", tmp_path)
    assert (status, out) == (2, "") and f"{tmp_path}: it holds no params.json" in err
    assert "--params" in err
    (lonely := tmp_path / "c.pth").write_bytes(tiny.checkpoint.read_bytes())
    status, out, err = check(sound, "--checkpoint", lonely)
    assert (status, out) == (2, "") and "give the model's with --params" in err
    (tmp_path / "config.json").write_bytes(tiny.params.read_bytes())
    assert check(sound, *words[:3], lonely)[0] == 0


def test_help_names_every_check(capsys):
    from harness.checks import artifact_checks, core_ml_checks, value_checks
    from harness.checks.findings import check_names

    names = artifact_checks() | value_checks() | core_ml_checks()
    assert sorted(names) == check_names()
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    said = "".join(capsys.readouterr().out.split())
    assert ",".join(check_names()) in said


def test_what_the_file_does_not_hold_is_a_sentence(check, sound):
    _, out, _ = check(sound, "--check", "owners")
    whence = "give them to your runner, from the model's configuration and tokenizer"
    assert re.search(rf"^note  The file does not hold .*; {whence}$", out, re.M)

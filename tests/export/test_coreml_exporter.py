"""Our exporter writes right, complete and reproducible artifacts."""

import pytest
import torch

from harness.artifact import open_artifact
from harness.checks import artifact_checks, run_check
from harness.divergence import Part, bisect
from harness.errors import HarnessError
from harness.export import weight_store as stored_weights
from harness.export.coreml import export
from harness.export.options import ExportOptions
from harness.fixtures.small_llama import content, export_small, subject, write_model
from harness.models.qwen3 import QWEN3

RUNTIMES = ("mil:widen", "mil:strict")
EXPORTS = {
    "default": {},
    "fp32": {"dtype": "fp32", "linear_quantize": "none", "embedding_quantize": None},
    "in one piece": {"graph_breaks": False, "linear_quantize": "none", "embedding_quantize": None},
    "blockwise": {"linear_quantize": "b4w", "embedding_quantize": "4,16"},
    "split": {"target_split_size": 32, "max_splits": 2, "linear_quantize": "none"},
    "two methods": {"mode": "multifunction"},
    "two methods in one piece": {"mode": "multifunction", "graph_breaks": False},
    "two methods, nothing shared": {"mode": "multifunction", "weight_sharing": "none"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def exports(model, tmp_path_factory):
    """Exports by name, each made once."""
    made = {}

    def get(name):
        if name not in made:
            output = tmp_path_factory.mktemp("exports") / "out"
            made[name] = export_small(model, output, **EXPORTS[name])
        return made[name]

    return get


def outcomes(judged):
    """Return the outcome of every check that applies; each must have compared something."""
    found = {}
    for check in artifact_checks().values():
        if check.inapplicable(judged):
            continue
        for runtime in RUNTIMES if check.takes_runtime else (None,):
            case = run_check(check, judged, runtime, suite="test")
            found[check.name, runtime] = (case.outcome, case.summary)
    return found


@pytest.mark.parametrize("name", EXPORTS)
def test_every_check_passes(model, exports, name):
    found = outcomes(subject(model, exports(name), **EXPORTS[name]))
    assert {key: how for key, how in found.items() if how[0] != "pass"} == {}
    assert ("parity", "mil:widen") in found and ("residues", "mil:strict") in found


def test_a_tied_model_passes_every_check_and_holds_its_table_once(tmp_path):
    write_model(tmp_path, tied=True)
    options = {"graph_breaks": False, "linear_quantize": "none", "embedding_quantize": None}
    path = export_small(tmp_path, tmp_path / "out", **options)
    found = outcomes(subject(tmp_path, path, **options))
    assert {key: how for key, how in found.items() if how[0] != "pass"} == {}
    table = 160 * 64 * 2
    (package,) = (bundle.package for bundle in open_artifact(path).bundles)
    sizes = [len(package.blob(*reference).data) for reference in package.weights("main")]
    assert sizes.count(table) == 1


def test_the_same_inputs_give_the_same_bytes(model, exports, tmp_path):
    again = export_small(model, tmp_path / "elsewhere", **EXPORTS["two methods"])
    first = exports("two methods")
    assert content(again) == content(first) and len(content(first)) == 14


def test_every_option_changes_the_artifact(exports):
    packages = {name: content(exports(name)) for name in EXPORTS}
    assert len({repr(sorted(files.items())) for files in packages.values()}) == len(packages)


def test_no_function_holds_a_weight_of_its_own_when_weights_are_shared(exports):
    for bundle in open_artifact(exports("two methods")).bundles:
        forward, prefill = (bundle.package.weights(name) for name in ("forward", "prefill"))
        assert forward == prefill and forward


@pytest.mark.parametrize("name", ["default", "two methods", "two methods in one piece"])
def test_coremltools_opens_every_package(exports, name):
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    packages = list(exports(name).glob("*/model.mlpackage"))
    assert len(packages) == (1 if "one piece" in name else 3)
    for path in packages:
        model = ct.models.MLModel(str(path), skip_model_load=True)
        program = load(model.get_spec(), 9, model.weights_dir)
        names = ["forward", "prefill"] if "two" in name else ["main"]
        assert sorted(program.functions) == names


def test_an_interrupt_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(stored_weights.WeightStore, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_small(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_and_anything_else_is_kept(model, exports, tmp_path):
    export_small(model, tmp_path / "out", **EXPORTS["in one piece"])
    export_small(model, tmp_path / "out")
    assert content(tmp_path / "out") == content(exports("default"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(HarnessError, match="mine: exists, and is not a folder of this kind"):
        export_small(model, tmp_path / "mine")
    assert content(tmp_path / "mine") == {"letter": b"dear"}


def test_a_checkpoint_that_does_not_fit_is_listed_tensor_by_tensor(tmp_path):
    checkpoint, params = write_model(tmp_path)
    weights = torch.load(checkpoint)
    del weights["norm.weight"]
    torch.save(weights | {"layers.0.attention.wq.weight": torch.zeros(3, 3)}, checkpoint)
    with pytest.raises(HarnessError, match=r"norm.weight is missing; .*wq.weight has shape \[3, 3"):
        export(checkpoint, params, ExportOptions(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    checkpoint, params = write_model(tmp_path)
    weights = torch.load(checkpoint)
    weights["layers.0.attention.wq.weight"].fill_(torch.nan)
    torch.save(weights, checkpoint)
    with pytest.raises(HarnessError, match=r"in fp16: layers.0.attention.wq.weight holds NaN$"):
        export(checkpoint, params, ExportOptions(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit_the_model_name_option_value_and_remedy(tmp_path):
    checkpoint, params = write_model(tmp_path)
    options = ExportOptions(embedding_quantize="4,24")
    with pytest.raises(HarnessError, match="embedding_quantize 4,24: groups of 24 .* divisor"):
        export(checkpoint, params, options, tmp_path / "out")


def test_another_architecture_passes_every_check_and_bisects(tmp_path):
    write_model(tmp_path, tied=True, use_qk_norm=True, qk_norm_before_rope=True)
    options = {"mode": "multifunction"}
    export_small(tmp_path, tmp_path / "out", **options)
    judged = subject(tmp_path, tmp_path / "out", **options)
    assert judged.held.architecture is QWEN3
    found = outcomes(judged)
    assert {outcome for outcome, _ in found.values()} == {"pass"}, found
    bisected = bisect(judged, "strict", Part())
    assert bisected.model is not None and bisected.model.first is None
    assert bisected.model.matched > 500 and bisected.passes

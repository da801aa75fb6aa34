"""Bisection locates each fault: at the broken operation, or at the one that reads its result."""

import itertools
import json
from collections import Counter, defaultdict

import pytest

from harness.cli import main
from harness.divergence import bisect
from harness.divergence.drive import drive
from harness.divergence.model import ModelJudge
from harness.divergence.precision import PrecisionJudge
from harness.divergence.recording import Part
from harness.mil.ops import constexpr_ops
from harness.results import read_run
from harness.subject import Subject
from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants import of_constants as constants
from harness.suites.mutants import of_names as names
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants import of_weights as weights
from harness.suites.mutants.edit import Export
from harness.suites.mutants.judge import opened

BOTH = ("single", "multifunction")
LAYERS = [f"layer {number}" for number in range(4)]
LOCATED = [
    # the broken part, the mutation, the operation that is named, and the value of one of its inputs
    ("every epsilon", programs.change_epsilon, "add", "mean of squares"),
    ("one epsilon", programs.change_one_epsilon, "add", "layers.0.attention_norm: mean of squares"),
    ("the scale", programs.change_attention_scale, "mul", "layers.0.scores"),
    ("the mask's sign", programs.subtract_the_mask, "sub", "mask"),
    ("the mask ignored", programs.ignore_the_mask, "softmax", "layers.0.scores, scaled"),
    ("the softmax axis", programs.wrong_softmax_axis, "softmax", "layers.0.scores, masked"),
    ("new before cached", programs.new_before_cached, "concat", "layers.0.attention.wv, by heads"),
    ("another cache", programs.cache_of_another_layer, "concat", "layers.1.keys: the cache"),
    ("halves", programs.rotate_halves, "slice_by_index", "layers.0.attention.wq, by heads"),
    ("joined as halves", programs.join_as_halves, "stack", "layers.0.keys: even columns, rotated"),
    ("add is sub", programs.retype("add", "sub", 1), "sub", ""),
    ("silu is sigmoid", programs.retype("silu", "sigmoid", 0), "sigmoid", "feed_forward.w1"),
    ("a quantized weight", weights.perturb_a_scale, "linear", "layers.0.attention_norm"),
    ("a norm's weight", weights.perturb_a_norm, "mul", "layers.0.attention_norm: x / rms"),
    ("a bias", weights.add_a_bias, "linear", "layers.0.attention_norm"),
    ("two weights swapped", weights.swap_two_weights, "silu", "layers.0.feed_forward.w3"),
    ("the embedding", weights.huge_activations, "gather", "tokens"),
    ("two caches", names.swap_inputs("_0_l0_h0", "_0_l1_h0"), "concat", "layers.1.keys: the cache"),
    ("cosines", names.swap_inputs("cos_override", "sin_override"), "sub", "columns x sines"),
]


@pytest.fixture(scope="module")
def sources():
    found = Subjects(lambda stage: None)
    return {mode: found.get("tiny", mode) for mode in BOTH}


@pytest.fixture
def mutated(sources, tmp_path):
    def make(mutate, mode):
        export = Export(sources[mode].artifact.path)
        mutate(export)
        return opened(export.save(tmp_path / "mutant.pte"), sources[mode])

    return make


def judged(subject, part=None):
    judge = ModelJudge(subject, part or Part())
    drive(subject, judge)
    return judge.report


@pytest.mark.parametrize("mode", BOTH)
def test_every_operation_of_a_sound_artifact_is_a_value_of_the_model(sources, mode):
    report = judged(sources[mode])
    assert report.first is None and not report.output
    assert report.matched > 1500 and report.excused == 0 and report.calls == 6


@pytest.mark.parametrize(
    ("mode", "mutate", "operation", "reads"),
    [(mode, *row[1:]) for mode, row in zip(itertools.cycle(BOTH), LOCATED, strict=False)],
    ids=[row[0] for row in LOCATED],
)
def test_what_is_broken_is_located(mutated, mode, mutate, operation, reads):
    first = judged(mutated(mutate, mode)).first
    assert first is not None and first.operation == operation
    assert any(reads in what for what in first.reads.values()), first


def test_a_weight_read_from_a_wrong_offset_is_located(mutated):
    def shift(export):
        payload = programs.blocks(export)
        for function in export.functions:
            first, second = (
                op.inputs["data"].arguments[0].value.blobFileValue
                for op in payload.operations(function, programs.QUANTIZED)[1:3]
            )
            first.offset = second.offset  # keys read the values' weight, of equal shape

    first = judged(mutated(shift, "multifunction")).first
    assert first is not None and first.operation == "linear"
    assert "layers.0.attention_norm" in first.reads.values()


def test_a_position_that_is_ignored_is_located_in_the_head(mutated):
    first = judged(mutated(programs.ignore_the_last_position, "multifunction")).first
    assert first is not None and (first.operation, first.result) == ("mul", "select_0")
    assert first.place.delegate == 2


def test_outputs_in_another_order_are_said_although_every_operation_is_right(mutated):
    report = judged(mutated(names.swap_outputs, "single"))
    assert report.first is None and "although every operation agrees" in report.output


def test_a_fault_in_one_function_is_not_looked_for_in_the_other(mutated):
    def one(export):
        payload = programs.blocks(export)
        payload.operations("forward", "silu")[2].type = "sigmoid"

    subject = mutated(one, "multifunction")
    assert judged(subject, Part(method="prefill")).first is None
    first = judged(subject, Part(function="forward")).first
    assert first is not None and first.place.function == "forward"
    assert "layers.2.feed_forward.w1" in first.reads.values()


@pytest.fixture(scope="module")
def ours(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours")
    for mode in BOTH:
        options = ("--exporter", "coreml", "--mode", mode)
        assert main(["export", "--model", "tiny", *options, "-o", str(folder / mode)]) == 0
    return {mode: opened(folder / mode, sources[mode]) for mode in BOTH}


@pytest.mark.parametrize("mode", BOTH)
def test_our_own_exporters_operations_are_values_of_the_model_too(ours, mode):
    report = judged(ours[mode])
    assert report.first is None and report.excused == 0 and report.matched > 1500


@pytest.mark.parametrize("mode", BOTH)
def test_our_own_exports_lose_nothing_in_strict(ours, mode):
    """A norm's scale may be another power of two than the reference's: the norm divides by it."""
    judge = PrecisionJudge("strict", Part())
    drive(ours[mode], judge)
    assert judge.report.found == [] and judge.report.judged > 1500


def test_a_wrong_epsilon_of_ours_is_located_where_it_is_read(ours, tmp_path):
    """The next norm's exponents are right, but they are integers, which excuse no operation."""
    subject, params = ours["single"], tmp_path / "params.json"
    params.write_text(json.dumps(json.loads(subject.params.read_text()) | {"norm_eps": 1e-3}))
    report = judged(Subject(subject.artifact.path, subject.checkpoint, params))
    first = report.first
    assert first is not None and first.operation == "real_div" and report.excused == 0
    assert "layers.0.attention_norm: its scale" in first.reads.values()


def test_a_wrong_table_is_no_fault_of_an_operation(mutated):
    assert judged(mutated(constants.one_table_row, "single")).first is None


def call(capsys, *arguments):
    status = main(["bisect", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_names_the_operation_and_fails(mutated, capsys):
    subject = mutated(weights.perturb_a_norm, "single")
    given = ("--checkpoint", subject.checkpoint, "--params", subject.params)
    status, out, _ = call(capsys, subject.artifact.path, *given)
    assert status == 1 and "mul 'aten_mul_tensor_2' [1, 16, 64] is not a value of the model" in out
    assert out.splitlines()[-1] == "FAILED: an operation leaves the model's graph"
    results = subject.artifact.path.parent / "results"
    status, out, _ = call(capsys, subject.artifact.path, *given, "--json", "--results", results)
    found = json.loads(out)["model"]["first"]
    assert status == 1 and found["result"] == "aten_mul_tensor_2"
    run = read_run(results / "bisect.jsonl")
    assert [(c.check, c.outcome) for c in run.cases] == [("graph", "fail"), ("rounding", "pass")]
    (finding,) = run.cases[0].findings
    assert finding.code == "N26" and "mul 'aten_mul_tensor_2'" in finding.evidence
    graph, rounding = (case.profile for case in run.cases)
    assert (graph.first.result, graph.first.layer) == ("aten_mul_tensor_2", "layer 0")
    assert rounding.first is None and len(rounding.operations) >= len(graph.operations)
    assert {one.layer for one in rounding.operations} == {*LAYERS, "input", "head"}
    page = (results / "index.html").read_text().replace("<wbr>", "")
    assert "layer 0, mul &#39;aten_mul_tensor_2&#39;, method" in page.split("Diverges first")[1]


def test_the_layers_of_what_follows_a_divergence_are_known(mutated):
    """The silu of layer 1 is wrong: all before it is right, what follows stays in its layers."""
    report = judged(mutated(programs.retype("silu", "sigmoid", 1), "multifunction"))
    found = report.errors.operations()
    index = next(i for i, one in enumerate(found) if one.is_beyond)
    assert (found[index].operation, found[index].layer) == ("sigmoid", "layer 1")
    assert found[index].result == report.first.result
    counts = Counter(one.layer for one in found)
    sizes = [counts[layer] for layer in LAYERS[:3]]  # each layer has as many operations
    assert max(sizes) - min(sizes) <= 2, counts


@pytest.mark.parametrize(("mode", "methods"), [("single", 1), ("multifunction", 2)])
def test_each_operation_has_the_layer_of_its_package_and_function(mutated, mode, methods):
    """A divergence in the first call leaves no method without layers, and none with another's."""
    found = bisect(mutated(weights.perturb_a_norm, mode))
    assert found.model.first is not None
    layers = defaultdict(list)
    for one in found.cases("tiny", mode, "strict")[1].profile.operations:
        method, delegate, _ = one.place.split(", ")
        layers[method, delegate].append(one.layer)
    assert len(layers) == 3 * methods
    for (_, delegate), row in layers.items():
        inner = [layer for layer, _ in itertools.groupby(row)]
        assert inner == {"delegate 0": ["input"], "delegate 2": ["head"]}.get(delegate, LAYERS)


@pytest.mark.parametrize("small", [0, constexpr_ops._SMALL], ids=["packed", "expanded"])
def test_the_terminal_names_the_layer_and_the_weight(mutated, capsys, monkeypatch, small):
    monkeypatch.setattr(constexpr_ops, "_SMALL", small)
    subject = mutated(weights.perturb_a_scale, "multifunction")
    given = ("--checkpoint", subject.checkpoint, "--params", subject.params)
    _, out, _ = call(capsys, subject.artifact.path, *given)
    assert "': layer 0, linear 'aten_linear_default" in out
    assert "(the weight layers.0.attention.wq.weight)" in out


def test_without_a_checkpoint_the_weights_are_the_artifacts_own(mutated, capsys):
    subject = mutated(weights.perturb_a_norm, "single")
    status, out, _ = call(capsys, subject.artifact.path)
    assert status == 0 and "no checkpoint" in out


def test_another_models_checkpoint_is_refused(sources, capsys, tmp_path):
    subject = sources["single"]
    params = json.loads(subject.params.read_text()) | {"n_heads": 8, "n_kv_heads": 4}
    (tmp_path / "params.json").write_text(json.dumps(params))
    given = ("--checkpoint", subject.checkpoint, "--params", tmp_path / "params.json")
    status, _, err = call(capsys, subject.artifact.path, *given)
    assert status == 2 and ("not exported from this model" in err or "shape" in err)


def test_a_method_that_is_not_there_is_refused_with_those_that_are(sources, capsys):
    status, _, err = call(capsys, sources["single"].artifact.path, "--method", "prefill")
    assert status == 2 and "no method 'prefill'; there are forward" in err

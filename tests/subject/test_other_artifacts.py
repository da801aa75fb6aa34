"""`harness check` on artifacts of other makes: the right verdict, and a 1 % change is found."""

import json
import shutil

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import tokenizers
import torch

from harness.artifact import open_artifact
from harness.cli import main
from harness.errors import HarnessError
from harness.generate import generate
from harness.generate.calls import open_session
from harness.runtimes import get_runtime
from harness.suites.mutants.edit import Export
from tests.subject import material

IMAGE = (1, 3, 16, 16)
MAKERS = {
    "mlp.pte": (lambda p: pte(p, "mlp", (2, 8)), "mlp"),
    "conv.pte": (lambda p: pte(p, "classifier", IMAGE), "classifier"),
    "methods.pte": (
        lambda p: material.write_pte(p, material.two_methods(), (torch.randn(2, 8),)),
        "two_methods",
    ),
    "state.pte": (lambda p: pte(p, "counter", (1, 4)), "counter"),
    "buffer.pte": (
        lambda p: pte(p, "counter", (1, 4), take_over_mutable_buffer=False),
        "counter",
    ),
    "partly.pte": (
        lambda p: pte(p, "partly", (2, 8), skip_ops_for_coreml_delegation=["aten.relu.default"]),
        "partly",
    ),
    "single.mlpackage": (
        lambda p: material.write_package(
            p,
            material.classifier(),
            (torch.randn(IMAGE),),
            inputs=[ct.TensorType(name="image", shape=IMAGE)],
        ),
        "classifier",
    ),
    "multifunction.mlpackage": (lambda p: material.write_multifunction(p), "two_methods"),
    "fixed.mlpackage": (lambda p: material.write_recipe(p, "fixed"), "stateful"),
    "enumerated.mlpackage": (lambda p: material.write_recipe(p, "enumerated"), "stateful"),
    "ranged.mlpackage": (lambda p: material.write_recipe(p, "ranged"), "stateful"),
    "llama.pte": (lambda p: material.export_llama(p), "llama_plain"),
    "cached.pte": (lambda p: material.export_llama(p, "-kv"), "llama_with_caches"),
    "quantized.pte": (
        lambda p: material.export_llama(p, "-kv", "--coreml-quantize", "c4w"),
        "llama_with_caches",
    ),
    "optimum.pte": (material.export_optimum, "optimum"),
}
SLOW = ("quantized.pte", "enumerated.mlpackage")  # cached.pte and ranged.mlpackage are like them
EVERY = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MAKERS],
)


def pte(path, name, shape, **options):
    module = getattr(material, name)()
    return material.write_pte(path, {"forward": module}, (torch.randn(shape),), **options)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Return the artifact of a name, and the name of its reference; each is made once."""
    folder, made = tmp_path_factory.mktemp("artifacts"), {}

    def make(name):
        if name not in made:
            maker, reference = MAKERS[name]
            made[name] = maker(folder / name), f"tests.subject.material:{reference}"
        return made[name]

    return make


@pytest.fixture
def check(capsys):
    def call(*words):
        capsys.readouterr()
        if "--runtime" not in words:  # a Mac's runtimes are processes that take seconds to start
            words = *words, "--runtime", "mil:strict", "--runtime", "mil:widen"
        status = main(["check", *map(str, words), "--json"])
        _, *cases, _ = map(json.loads, capsys.readouterr().out.splitlines())
        return status, {(case["check"], case["runtime"]): case for case in cases}

    return call


def with_a_weight_changed(path, output):
    """Copy an artifact; the largest weight, or scale, of the last linear layer is 1 % larger."""
    if path.suffix == ".pte":
        export = Export(path)
        bundle = open_artifact(path).bundles[-1]
        change(bundle.package, export.payloads[-1].weights)
        return export.save(output)
    shutil.copytree(path, output)
    file = next(output.rglob("weight.bin"))
    content = bytearray(file.read_bytes())
    change(open_artifact(path).package, content)
    file.write_bytes(content)
    return output


def change(package, content):
    function = sorted(package.functions)[0]
    operations = package.operations(function).operations
    last = [op for op in operations if op.type == "linear"][-1].inputs["weight"].arguments[0].name
    (maker,) = (op for op in operations if any(o.name == last for o in op.outputs))
    quantized = maker.type == "constexpr_blockwise_shift_scale"
    value = maker.inputs["scale"].arguments[0].value if quantized else maker.attributes["val"]
    blob = package.blob(value.blobFileValue.fileName, value.blobFileValue.offset)
    start = bytes(content).index(bytes(blob.data))
    values = np.frombuffer(content, np.float16, len(blob.data) // 2, start)
    values[np.abs(values).argmax()] *= np.float16(1.01)


@EVERY
def test_a_sound_artifact_equals_its_reference(artifact, check, name):
    path, reference = artifact(name)
    status, cases = check(path, "--reference", reference)
    assert status == 0, [
        c["reason"] for c in cases.values() if c["outcome"] not in ("pass", "skip")
    ]
    for runtime in ("mil:strict", "mil:widen"):
        assert cases["outputs", runtime]["comparisons"] > 10
    assert cases["reference-weights", "-"]["comparisons"] > 10
    figures = cases["outputs", "mil:widen"]["figures"]
    assert all(f["value"] < 1e-5 for n, f in figures.items() if n.endswith("error"))


@EVERY
def test_without_a_reference_the_structure_is_judged(artifact, check, name):
    status, cases = check(artifact(name)[0])
    passed = {check for (check, _), case in cases.items() if case["outcome"] == "pass"}
    assert status == 0 and {"references", "metadata-names", "function-names", "program"} <= passed
    assert "needs --reference" in cases["outputs", "mil:widen"]["reason"]


@EVERY
def test_a_weight_that_is_off_by_1_percent_is_found(artifact, check, name, tmp_path):
    path, reference = artifact(name)
    changed = with_a_weight_changed(path, tmp_path / name)
    status, cases = check(changed, "--reference", reference)
    assert status == 1 and cases["reference-weights", "-"]["outcome"] == "fail"
    found = "over half a step" if name == "quantized.pte" else "1 of "
    assert found in cases["reference-weights", "-"]["reason"]
    golden = tmp_path / "golden.safetensors"
    assert main(["golden", str(path), "-o", str(golden)]) == 0
    status, cases = check(changed, "--golden", golden)
    assert status == 1 and cases["outputs", "mil:widen"]["outcome"] == "fail"
    assert "off by" in cases["outputs", "mil:widen"]["reason"]


@pytest.fixture(scope="module")
def source():
    from harness.fixtures.cache import fixture

    tiny = fixture("tiny")
    return ("--checkpoint", tiny.checkpoint, "--params", tiny.params)


def source_of(path, source):
    """Return the checkpoint of an artifact: Hugging Face's, beside it, or that of `tiny`."""
    folder = path.with_suffix(".hf")
    theirs = ("--checkpoint", folder, "--params", folder / "config.json")
    return theirs if folder.is_dir() else source


LLAMAS = pytest.mark.parametrize(
    "name", ["llama.pte", "cached.pte", "quantized.pte", "optimum.pte"]
)


@LLAMAS
def test_a_checkpoint_is_a_reference(artifact, check, source, name):
    path = artifact(name)[0]
    status, cases = check(path, *source_of(path, source))
    # Each weight, and cosines and sines or the frequencies of which the program computes them.
    expected = 2 * 9 + 3 + 1 if name == "optimum.pte" else 4 * 9 + 3 + 2
    assert cases["reference-weights", "-"]["facts"]["matched tensors"] == expected
    for runtime in ("mil:strict", "mil:widen"):
        case = cases["outputs", runtime]
        assert case["outcome"] == "pass" and case["comparisons"] >= 1024
    assert status == 0


@LLAMAS
def test_a_weight_that_is_off_by_1_percent_is_found_by_its_checkpoint(
    artifact, check, source, name, tmp_path
):
    path = artifact(name)[0]
    changed = with_a_weight_changed(path, tmp_path / name)
    status, cases = check(changed, *source_of(path, source))
    assert status == 1 and "of 'output.weight'" in cases["reference-weights", "-"]["reason"]
    if name != "quantized.pte":  # there the reference takes over the quantized values
        outputs = cases["outputs", "mil:widen"]
        assert outputs["outcome"] == "skip" and "because of W04" in outputs["reason"]


@LLAMAS
def test_a_bisection_names_the_operation_that_leaves_the_checkpoint(
    artifact, source, name, tmp_path, capsys
):
    path = artifact(name)[0]
    words = [*map(str, source_of(path, source))]
    assert main(["bisect", str(path), *words]) == 0
    assert "PASSED: no operation is at fault" in capsys.readouterr().out
    if name != "quantized.pte":  # there the graph takes over the quantized values
        changed = with_a_weight_changed(path, tmp_path / name)
        assert main(["bisect", str(changed), *words]) == 1
        assert "differs from output" in capsys.readouterr().out


def test_the_weights_of_another_checkpoint_are_named(artifact, check, source, tmp_path):
    weights = torch.load(source[1], weights_only=True)
    weights["layers.1.attention.wo.weight"] += torch.randn(64, 64) / 100
    torch.save(weights, tmp_path / "other.pth")
    words = ("--checkpoint", tmp_path / "other.pth", *source[2:])
    status, cases = check(artifact("cached.pte")[0], *words)
    assert status == 1 and "because of W04" in cases["outputs", "mil:widen"]["reason"]
    assert "'layers.1.attention.wo.weight'" in cases["reference-weights", "-"]["reason"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_layers": 3}, "its n_layers is 4, not 3"),
        ({"vocab_size": 500}, "method 'forward' has a vocabulary of 512, not 500"),
        ({"hidden_dim": 160}, "no weight has an axis of its hidden_dim, 160"),
    ],
)
def test_a_checkpoint_of_other_sizes_is_refused(
    artifact, source, tmp_path, capsys, change, sentence
):
    from harness.models.config import parse_params

    params = json.loads(source[3].read_text()) | change
    (tmp_path / "params.json").write_text(json.dumps(params))
    shapes = parse_params(params).weight_shapes
    torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, tmp_path / "c.pth")
    words = ("--checkpoint", tmp_path / "c.pth", "--params", tmp_path / "params.json")
    assert main(["check", *map(str, (artifact("llama.pte")[0], *words))]) == 2
    assert sentence in capsys.readouterr().err


def greedy(module, prompt, count, inputs):
    """Continue a prompt with an eager module that keeps its caches, token by token."""
    tokens = list(prompt)
    with torch.no_grad():
        for position in range(len(prompt) + count - 1):
            logits = module(*inputs(tokens[position], position))
            if position + 1 >= len(prompt):
                tokens.append(int(logits.flatten().argmax()))
    return tokens[len(prompt) :]


def at(token, position):
    return torch.tensor([[token]]), torch.tensor([position])


MAKES = {
    "cached.pte": (material.llama_with_caches, at),
    "optimum.pte": (material.optimum, at),
    "ranged.mlpackage": (
        material.stateful,
        lambda t, p: (torch.tensor([[t]]), torch.zeros(1, 1, 1, p + 1)),
    ),
}


@pytest.mark.parametrize("name", MAKES)
def test_text_is_that_of_the_eager_model(artifact, name, tmp_path, capsys):
    path, (make, inputs) = artifact(name)[0], MAKES[name]
    words = {f"w{number}": number for number in range(512 if name == "cached.pte" else 64)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompt, count = [5, 17, 60, 3, 22, 41, 9, 33, 12], 7
    text = " ".join(f"w{token}" for token in prompt)
    command = ["run", str(path), "--tokenizer", str(tmp_path), "--prompt", text, "--json"]
    assert main([*command, "--max-new-tokens", str(count)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt_tokens"] == prompt
    assert found["tokens"] == greedy(make(), prompt, count, inputs)
    assert found["text"].split() == [f"w{token}" for token in found["tokens"]]


def test_text_ends_at_the_context_and_a_longer_prompt_is_refused(artifact):
    session = open_session(open_artifact(artifact("ranged.mlpackage")[0]), get_runtime("mil:widen"))
    assert session.room == session.layout.context == material.CONTEXT
    *_, last = generate(session, [1] * 12, 100)
    assert (last.finish, session.room) == ("context", 0)
    session.reset()
    with pytest.raises(HarnessError, match="17 tokens after 0 are more than the model's context"):
        session.prefill([1] * 17)
    with pytest.raises(HarnessError, match="token 64 is outside the model's vocabulary of 64"):
        session.prefill([64])


@pytest.mark.parametrize("name", ["cached.pte", "ranged.mlpackage"])
def test_a_session_that_is_rewound_goes_on_like_a_new_one(artifact, name):
    made, runtime = open_artifact(artifact(name)[0]), get_runtime("mil:widen")
    session, new = open_session(made, runtime), open_session(made, runtime)
    session.prefill([5, 17, 60, 3, 22])
    session.rewind(3)
    new.prefill([5, 17, 60])
    assert (session.position, session.room) == (new.position, new.room)
    for token in (9, 33):
        torch.testing.assert_close(session.decode(token), new.decode(token))
    assert session.calls > new.calls
    with pytest.raises(HarnessError, match="position 6 is not from 0 to 5"):
        session.rewind(6)


@pytest.mark.parametrize("name", ["cached.pte", "optimum.pte"])
def test_a_golden_file_keeps_what_a_checkpoint_gives(artifact, check, source, name, tmp_path):
    path, file = artifact(name)[0], tmp_path / "golden.safetensors"
    words = ("golden", path, *source_of(path, source), "-o", file)
    assert main([*map(str, words)]) == 0
    status, cases = check(path, "--golden", file)
    assert status == 0 and cases["outputs", "mil:widen"]["comparisons"] >= 1024


@pytest.mark.slow
def test_what_cannot_be_continued_says_why(artifact):
    for name, sentence in (
        ("llama.pte", "takes 32, and returns the logits of the last one only"),
        ("mlp.pte", r"input '.*' \(float32 \[2, 8\]\) has no role in one"),
    ):
        opened = open_artifact(artifact(name)[0])
        with pytest.raises(HarnessError, match=sentence):
            open_session(opened, get_runtime("mil:widen")).prefill([1, 2])


def package(path, module, shape):
    inputs = [ct.TensorType(name="x", shape=shape)]
    return material.write_package(path, module, (torch.zeros(shape),), inputs=inputs)


def test_weights_of_8_bits_are_sound(check, tmp_path):
    """A value of 127 steps and its scale are rounded to fp16: a tenth of a step."""
    rounded = package(tmp_path / "wide.mlpackage", material.wide(), (1, 64))
    model = ct.models.MLModel(str(rounded), skip_model_load=True)
    rule = cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    quantized = cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=rule))
    quantized.save(str(tmp_path / "int8.mlpackage"))
    words = (tmp_path / "int8.mlpackage", "--reference", "tests.subject.material:wide")
    status, cases = check(*words, "--check", "reference-weights")
    assert status == 0 and cases["reference-weights", "-"]["outcome"] == "pass", cases


def test_a_weight_that_is_wholly_another_is_named_with_the_one_that_is_missing(check, tmp_path):
    module = material.branch()
    torch.manual_seed(99)
    module.b.weight.data = torch.randn(8, 8) / 3
    path = package(tmp_path / "branch.mlpackage", module, (2, 8))
    status, cases = check(path, "--reference", "tests.subject.material:branch")
    case = cases["reference-weights", "-"]
    assert (status, case["outcome"]) == (1, "fail")
    assert "'b_weight_to_fp16': resembles no tensor" in case["reason"]
    assert "the reference's 'b.weight', of the same size" in case["reason"]
    assert case["facts"] == {"reference tensors": 5, "matched tensors": 4}


@pytest.mark.parametrize("noise", [0.003, 0.1])
def test_a_weight_with_noise_everywhere_is_not_folded(check, tmp_path, noise):
    module = material.branch()
    module.a.weight.data += noise * torch.randn(8, 8) / 3
    path = package(tmp_path / "noisy.mlpackage", module, (2, 8))
    words = ("--reference", "tests.subject.material:branch", "--check", "reference-weights")
    status, cases = check(path, *words)
    reason = cases["reference-weights", "-"]["reason"]
    assert status == 1 and "'a_weight_to_fp16': is not the reference's 'a.weight'" in reason


def test_a_weight_that_is_wholly_another_in_one_of_two_functions_is_found(
    check, tmp_path, monkeypatch
):
    modules = material.two_methods()
    modules["decode"].linear = torch.nn.Linear(8, 8).eval()
    with monkeypatch.context() as patch:
        patch.setattr(material, "two_methods", lambda: modules)
        path = material.write_multifunction(tmp_path / "two.mlpackage")
    words = ("--reference", "tests.subject.material:two_methods", "--check", "reference-weights")
    status, cases = check(path, *words)
    reason = cases["reference-weights", "-"]["reason"]
    assert status == 1 and "function 'decode', 'linear_weight_to_fp16': resembles no" in reason
    assert "'encode'" not in reason


@pytest.mark.parametrize(
    ("reference", "shape"),
    [
        ("batch_norm", (1, 3, 16, 16)),
        ("lora", (2, 8)),
        ("recurrent", (1, 4, 8)),
        ("computed", (2, 8)),
        ("normed", (2, 8)),
    ],
)
def test_a_weight_that_was_folded_is_right(check, tmp_path, reference, shape):
    path = package(tmp_path / "folded.mlpackage", getattr(material, reference)(), shape)
    status, cases = check(
        path, "--reference", f"tests.subject.material:{reference}", "--check", "reference-weights"
    )
    case = cases["reference-weights", "-"]
    assert status == 0, case["reason"]
    assert case["facts"]["matched tensors"] < case["facts"]["reference tensors"]


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
@pytest.mark.parametrize("source", ["reference", "runtime"])
@pytest.mark.parametrize("name", ["mlp.pte", "ranged.mlpackage"])
def test_a_golden_file_keeps_what_a_reference_gives(
    artifact, check, name, source, ending, tmp_path, capsys
):
    path, reference = artifact(name)
    file = tmp_path / f"golden.{ending}"
    words = ["--reference", reference] if source == "reference" else ["--runtime", "mil:double"]
    assert main(["golden", str(path), *words, "-o", str(file)]) == 0
    assert "5 sequences" in capsys.readouterr().out
    status, cases = check(path, "--golden", file)
    assert status == 0 and cases["outputs", "mil:widen"]["comparisons"] > 10


def test_flexible_lengths_are_compared_at_least_in_the_middle_and_at_the_largest(artifact):
    from harness.golden.inputs import seeded_inputs

    path, _ = artifact("ranged.mlpackage")
    inputs = seeded_inputs(open_artifact(path), "main", 0)
    shapes = {name: tuple(steps[0][1].shape) for name, steps in inputs.items()}
    assert list(shapes.values())[:3] == [(1, 1, 1, 1), (1, 1, 5, 9), (1, 1, 8, 16)]
    assert {len(steps) for steps in inputs.values()} == {3}  # states go on
    tokens = torch.cat([step[0].flatten() for steps in inputs.values() for step in steps])
    assert set(tokens.tolist()) == set(range(material.VOCABULARY))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["state.pte", "partly.pte", "fixed.mlpackage"])
def test_the_other_commands_take_them(artifact, name, tmp_path, capsys):
    path, _ = artifact(name)
    changed = str(with_a_weight_changed(path, tmp_path / name))
    for words, status, printed in (
        (["bench", str(path), "--rounds", "1"], 0, "outputs were checked"),
        (["bisect", str(path)], 0, "strict against double: "),
        (["diff", str(path), changed], 1, "weight"),
        (["gate", str(path), changed], 1, "--accept weights --accept outputs"),
    ):
        assert (main(words), words[0]) == (status, words[0])
        assert printed in capsys.readouterr().out
    assert main(["bench", str(path), "--rounds", "1", "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)["runtimes"].values()
    assert 50e6 < figures["memory_before_load_bytes"] <= figures["peak_memory_bytes"] < 2e9

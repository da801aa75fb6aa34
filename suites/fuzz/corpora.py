"""The sound files with which each family of readers begins: small, of every dialect.

`write_sources` makes the artifacts that readers put a changed part into; a function of `CORPORA`
yields the files of a family. A first byte chooses the kind of file where a family has several.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifact import Package
from harness.artifact.delegate import BACKEND, METADATA, PACKAGE, REFERENCE_MAGIC
from harness.artifact.files import flatten
from harness.artifact.package import MANIFEST, WEIGHTS
from harness.suites.fuzz.of_text import toml_bytes

SINGLE, MULTI, FOLDER = "single.pte", "multifunction.pte", "exported"
PART = "part.safetensors"  # of a checkpoint in several files
_KEY = "forward_0"


def write_sources(folder: Path) -> None:
    """Write two packages, a `.pte` of each mode, and an exported folder."""
    from harness.packages import combine_packages
    from harness.suites.fuzz.programs import save_package, small

    one, both = folder / "one.mlpackage", folder / "both.mlpackage"
    save_package(small, (2, 4), one)
    combine_packages([(one, "main", "forward"), (one, "main", "prefill")], both)
    names = _names(Package.from_folder(one))
    single = {**names, "identifier": "one"}
    methods = dict.fromkeys(("forward", "prefill"), names)
    multi = {"identifier": "both", "methods": methods}
    (folder / SINGLE).write_bytes(_single_pte(_payload(one, single)))
    (folder / MULTI).write_bytes(_multi_pte(_payload(both, multi)))
    _write_exported(folder / FOLDER, both, multi)


def _names(package: Package) -> dict[str, list[str]]:
    description = package.model.description
    given, made = ([f.name for f in part] for part in (description.input, description.output))
    return {"inputNames": given, "outputNames": made}


def _payload(package: Path, metadata: dict[str, Any]) -> bytes:
    files: dict[str, bytes | memoryview] = {METADATA: json.dumps(metadata).encode()}
    found = Package.from_folder(package).files
    return flatten(files | {f"{PACKAGE}/{name}": bytes(found[name]) for name in found})


def _single_pte(payload: bytes) -> bytes:
    """Return a program that has every kind of value, instruction and constant."""
    from executorch.exir import schema as s

    tensors = [_tensor(2, 4), _tensor(2, 3), _tensor(3, buffer=1), _tensor(2, 3)]
    others = [s.Int(3), s.Double(0.5), s.Bool(True), s.String("none"), s.Null()]
    lists = [s.IntList([4, 4]), s.DoubleList([1.0]), s.BoolList([True]), s.TensorList([0, 1])]
    values = [*tensors, *others, *lists, s.OptionalTensorList([0, -1])]
    steps = [
        s.DelegateCall(0, [0, 1]),
        s.KernelCall(0, [1, 2, 4, 3]),
        s.MoveCall(1, 3),
        s.JumpFalseCall(6, 4),
        s.FreeCall(1),
    ]
    forward = _plan("forward", values, [0], [3], steps, [(BACKEND, 0)])
    counts = [
        _plan("vocab_size", [s.Int(32)], [], [0]),
        _plan("eos", [_tensor(3, buffer=1)], [], [0]),
    ]
    return _serialized([forward, *counts], [np.ones(3, np.float32).tobytes()], [payload], {})


def _multi_pte(payload: bytes) -> bytes:
    """Return a program of two methods that share a package."""
    from executorch.exir import schema as s

    plans, references = [], []
    for number, name in enumerate(("forward", "prefill")):
        content = {"version": 1, "key": _KEY, "functionName": name}
        references.append(REFERENCE_MAGIC + json.dumps(content).encode())
        values = [_tensor(2, 4), _tensor(2, 3)]
        plans.append(
            _plan(name, values, [0], [1], [s.DelegateCall(0, [0, 1])], [(BACKEND, number)])
        )
    return _serialized(plans, [], references, {_KEY: payload})


def _tensor(*shape: int, buffer: int = 0) -> Any:
    from executorch.exir import schema as s
    from executorch.exir.scalar_type import ScalarType

    static, order = s.TensorShapeDynamism.STATIC, list(range(len(shape)))
    memory = None if buffer else s.AllocationDetails(1, 0, 0)
    return s.Tensor(ScalarType.FLOAT, 0, list(shape), order, False, 0, buffer, memory, static)


def _plan(
    name: str,
    values: list[Any],
    inputs: list[int],
    outputs: list[int],
    steps: Sequence[Any] = (),
    delegates: Sequence[tuple[str, int]] = (),
) -> Any:
    from executorch.exir import schema as s

    inline = s.DataLocation.INLINE
    return s.ExecutionPlan(
        name=name,
        container_meta_type=s.ContainerMetadata("", ""),
        values=[s.EValue(value) for value in values],
        inputs=inputs,
        outputs=outputs,
        chains=[s.Chain([], [], [s.Instruction(step) for step in steps], None)],
        operators=[s.Operator("aten::add", "out")],
        delegates=[
            s.BackendDelegate(
                backend,
                s.BackendDelegateDataReference(inline, number),
                [s.CompileSpec("compute_units", b"all")],
            )
            for backend, number in delegates
        ],
        non_const_buffer_sizes=[0, 64],
    )


def _serialized(
    plans: list[Any], constants: list[bytes], payloads: list[bytes], named: dict[str, bytes]
) -> bytes:
    from executorch.exir import schema as s
    from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
    from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
    from executorch.exir._serialize.data_serializer import DataEntry

    program = s.Program(
        version=0,
        execution_plan=plans,
        constant_buffer=[s.Buffer(data) for data in (b"", *constants)],
        backend_delegate_data=[s.BackendDelegateInlineData(data) for data in payloads],
        segments=[],
        constant_segment=s.SubsegmentOffsets(0, []),
    )
    entries = {key: DataEntry(number, 16, None) for number, key in enumerate(named)}
    store = NamedDataStoreOutput(list(named.values()), entries, {}) if named else None
    return bytes(
        serialize_pte_binary(PTEFile(program, named_data=store), extract_delegate_segments=True)
    )


def _write_exported(folder: Path, package: Path, metadata: dict[str, Any]) -> None:
    """Write an exported folder of one package and two methods, as `artifact.exported` has it."""
    Package.from_folder(package).write(folder / "blocks" / PACKAGE)
    (folder / "blocks" / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
    (folder / "constants.bin").write_bytes(np.ones((2, 3), np.float32).tobytes())
    (folder / "program.json").write_bytes(_program_json(metadata))


def _program_json(metadata: dict[str, Any]) -> bytes:
    names = metadata["methods"]["forward"]
    (given,), (made,) = names["inputNames"], names["outputNames"]
    methods = {
        name: {
            "values": {given: ["float32", [2, 4]], made: ["float32", [2, 3]]},
            "inputs": [given],
            "outputs": [made],
            "calls": [{"package": "blocks", "function": name}],
        }
        for name in metadata["methods"]
    }
    table = {"dtype": "float32", "shape": [2, 3], "offset": 0}
    content = {"format": "harness-export", "version": 1, "methods": methods}
    return json.dumps(content | {"constants": {"vocab_size": 32, "table": table}}).encode()


def _pte(sources: Path) -> Iterator[bytes]:
    yield from ((sources / name).read_bytes() for name in (SINGLE, MULTI))


def _package(sources: Path) -> Iterator[bytes]:
    package = sources / "one.mlpackage"
    yield _payload(package, {**_names(Package.from_folder(package)), "identifier": "one"})


def _program(sources: Path) -> Iterator[bytes]:
    for path in sorted(sources.glob("*.mlpackage")):
        package = Package.from_folder(path)
        yield bytes(package.files[package.spec_path])


def _blob(sources: Path) -> Iterator[bytes]:
    yield bytes(Package.from_folder(sources / "one.mlpackage").files[WEIGHTS])


def _metadata(sources: Path) -> Iterator[bytes]:
    names = _names(Package.from_folder(sources / "one.mlpackage"))
    methods = dict.fromkeys(("forward", "prefill"), names)
    multi = {"identifier": "both", "methods": methods}
    for content in ({**names, "identifier": "one"}, multi, {**multi, "default_method": "forward"}):
        yield b"m" + json.dumps(content).encode()
    yield b"M" + (sources / "one.mlpackage" / MANIFEST).read_bytes()
    yield b"p" + _program_json(multi)
    reference = {"version": 1, "key": _KEY, "functionName": "forward"}
    yield b"r" + REFERENCE_MAGIC + json.dumps(reference).encode()
    yield b"r" + json.dumps({"version": 1, "key": _KEY, "method": "forward"}).encode()


_SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 16}


def _params(sources: Path) -> Iterator[bytes]:
    yield json.dumps(SMALL_PARAMS).encode()
    scaled = {"use_scaled_rope": True, "rope_scale_factor": 8, "multiple_of": 8}
    yield json.dumps(SMALL_PARAMS | scaled | {"ffn_dim_multiplier": 1.3}).encode()
    hugging_face = _SIZES | {"num_hidden_layers": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}
    yield json.dumps(hugging_face | {"model_type": "llama", "rope_theta": 10000.0}).encode()
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    qwen = {"model_type": "qwen3", "head_dim": 4, "rope_parameters": scaling}
    yield json.dumps(hugging_face | qwen).encode()


SMALL_PARAMS: dict[str, Any] = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "hidden_dim": 16,
    "vocab_size": 16,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def _checkpoint(sources: Path) -> Iterator[bytes]:
    import torch
    from safetensors.torch import save

    from harness.models.config import parse_params

    shapes = parse_params(SMALL_PARAMS).weight_shapes
    weights = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    yield save(weights)
    for content in (weights, {"model": {name: value.float() for name, value in weights.items()}}):
        out = io.BytesIO()
        torch.save(content, out)
        yield out.getvalue()
    index = {"weight_map": dict.fromkeys(weights, PART)}
    yield json.dumps(index).encode()


def _tokenizer(sources: Path) -> Iterator[bytes]:
    import base64
    import tempfile

    from harness.fixtures import random_tokenizer

    with tempfile.TemporaryDirectory() as name:
        random_tokenizer.write_tokenizer(Path(name), 300)
        yield b"v" + (Path(name) / "tokenizer.json").read_bytes()
        yield b"s" + (Path(name) / "tokenizer_config.json").read_bytes()
    model = Path(random_tokenizer.__file__).with_name("tiny_model") / "tokenizer.model"
    yield b"v" + model.read_bytes()
    ranks = [f"{base64.b64encode(bytes([n])).decode()} {n}\n" for n in range(256)]
    yield b"v" + "".join(ranks).encode()
    yield b"g" + json.dumps({"eos_token_id": [0, 2]}).encode()
    special = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}}
    yield b"m" + json.dumps(special).encode()
    yield b"t" + random_tokenizer.CHAT_TEMPLATE.encode()
    yield b"j" + b'"a prompt"\n{"prompt": "another"}\n'


def _stream(sources: Path) -> Iterator[bytes]:
    from harness.results import OUTCOMES, Case, Figure, Header, Stream

    header = Header.here({"fixture": ["tiny"]}, {"coreml": {"torch": "2"}}, executes=False)
    for shard in ({}, {"index": 1, "count": 1}):
        lines: list[str] = []
        stream = Stream(replace(header, shard=shard), lines.append)
        for outcome in OUTCOMES.values():
            case = Case("conformance", f"c-{outcome.name}", "tiny", outcome="skip", reason="why")
            detail: dict[str, Any] = {outcome.detail: "export"} if outcome.detail else {}
            figures = {"error": Figure(0.1, "", 0.2)}
            stream.add(
                replace(case, outcome=outcome.name, comparisons=3, figures=figures, **detail)
            )
        stream.finish()
        yield "".join(f"{line}\n" for line in lines).encode()


def _settings(sources: Path) -> Iterator[bytes]:
    from harness.fixtures.project import EXAMPLE

    example = EXAMPLE.read_text(encoding="utf-8")
    yield b"h" + example.encode()
    lines = [line for line in example.splitlines() if not line.startswith("# golden")]
    filled = [x.removeprefix("# ") if " = " in x or x.startswith("# [") else x for x in lines]
    yield b"h" + "\n".join(filled).encode()
    full = {
        "runtimes": ["mil"],
        "known": ["known.toml"],
        "exporters": {"mine": "executorch@1.4.1"},
        "margins": {"latency": 3},
        "subjects": {"a": {"checkpoint": "c", "params": "p", "tokenizer": "t", "prompts": ["x"]}},
    }
    yield b"h" + toml_bytes(full)
    row = {"issue": "executorch#1", "check": "p*", "exporter": "executorch >=1.3"}
    yield b"k" + toml_bytes({"known": [row, row | {"outcome": "fail"}]})


def _golden(sources: Path) -> Iterator[bytes]:
    import torch
    from safetensors.torch import save

    names = {"in/0": (2, 4), "out/0": (2, 3), "or/0": (2, 3)}
    for method in ("forward", "prefill"):
        tensors = {f"{method}/a.0/{name}": torch.ones(shape) for name, shape in names.items()}
        tensors[f"{method}/a.0/rounding/0"] = torch.tensor(0.01, dtype=torch.float64)
        yield b"s" + save(tensors)
        out = io.BytesIO()
        np.savez(out, allow_pickle=False, **{name: t.numpy() for name, t in tensors.items()})
        yield b"z" + out.getvalue()


CORPORA: dict[str, Callable[[Path], Iterator[bytes]]] = {
    "pte": _pte,
    "package": _package,
    "program": _program,
    "blob": _blob,
    "metadata": _metadata,
    "params": _params,
    "checkpoint": _checkpoint,
    "tokenizer": _tokenizer,
    "stream": _stream,
    "settings": _settings,
    "golden": _golden,
}

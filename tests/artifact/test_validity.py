"""The rules of validity leave coremltools' packages alone, and know its operations."""

import importlib

import numpy as np
import pytest

from harness.artifact import Package
from harness.artifact.blob import file_problems
from harness.artifact.operands import FunctionTypes, mil_name, signature, weights_in_program
from harness.artifact.plan import call_problems, key_problems, overlap_problems, tensor_problems
from harness.artifact.pte import DelegateCall, KernelCall, Pte, PteMethod, TensorValue
from harness.artifact.specification import (
    SYSTEMS,
    description_problems,
    manifest_problems,
    model_description_problems,
    version_problems,
)

ct = pytest.importorskip("coremltools")
mb = importlib.import_module("coremltools.converters.mil").Builder
RANDOM = np.random.default_rng(0)


def linear(target, shape=(2, 16), **options):
    """Return a linear layer and an activation, converted."""

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=target)
    def program(x):
        weight = RANDOM.normal(size=(8, shape[-1])).astype(np.float32)
        return mb.relu(x=mb.linear(x=x, weight=weight), name="y")

    return ct.convert(program, minimum_deployment_target=target, **options)


def of_two_lengths(inputs):
    from coremltools.converters.mil.mil import get_new_symbol

    symbol = get_new_symbol()
    specs = [mb.TensorSpec(shape=(1, symbol)), mb.TensorSpec(shape=(1, symbol))]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, z):
        return mb.add(x=x, y=z, name="y")

    return ct.convert(program, inputs=inputs, minimum_deployment_target=ct.target.iOS18)


def enumerated():
    shapes = ct.EnumeratedShapes(shapes=[(1, 4), (1, 9)], default=(1, 4))
    return of_two_lengths([ct.TensorType("x", shapes), ct.TensorType("z", shapes)])


def ranged():
    size = ct.RangeDim(2, 9, default=4)
    return of_two_lengths([ct.TensorType("x", (1, size)), ct.TensorType("z", (1, size))])


def stateful():
    specs = [mb.TensorSpec(shape=(2, 4), dtype=ct.converters.mil.mil.types.fp16)]
    specs.append(mb.StateTensorSpec((2, 4), dtype=ct.converters.mil.mil.types.fp16))

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, cache):
        total = mb.add(x=mb.read_state(input=cache), y=x)
        return mb.relu(x=mb.coreml_update_state(state=cache, value=total), name="y")

    return ct.convert(program, minimum_deployment_target=ct.target.iOS18)


def embedding(rows=40_000):
    types = ct.converters.mil.mil.types

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(1, 5), dtype=types.int32)],
        opset_version=ct.target.iOS17,
    )
    def program(ids):
        table = RANDOM.normal(size=(rows, 2)).astype(np.float32)
        position = mb.reduce_argmax(x=mb.cast(x=ids, dtype="fp32"), axis=1)
        found = mb.gather(x=table, indices=ids, axis=0)
        known = mb.greater(x=position, y=2)
        return mb.select(cond=known, a=found, b=mb.mul(x=found, y=np.float32(2)), name="y")

    return ct.convert(program, minimum_deployment_target=ct.target.iOS17)


def branching():
    @mb.program(input_specs=[mb.TensorSpec(shape=(3,))], opset_version=ct.target.iOS16)
    def program(x):
        positive = mb.greater(x=mb.reduce_sum(x=x, axes=[0]), y=np.float32(0))
        total = mb.while_loop(
            _cond=lambda i: mb.less(x=mb.reduce_sum(x=i, axes=[0]), y=np.float32(9)),
            _body=lambda i: (mb.add(x=i, y=np.float32(1)),),
            loop_vars=(x,),
        )
        return mb.cond(
            pred=mb.squeeze(x=mb.expand_dims(x=positive, axes=[0]), axes=[0]),
            _true_fn=lambda: mb.exp(x=total),
            _false_fn=lambda: mb.sin(x=x),
            name="y",
        )

    return ct.convert(program, minimum_deployment_target=ct.target.iOS16)


def quantized(target, dtype, **options):
    config = ct.optimize.coreml.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype=dtype, weight_threshold=1, **options
    )
    model = linear(target, (2, 64))
    settings = ct.optimize.coreml.OptimizationConfig(global_config=config)
    return ct.optimize.coreml.linear_quantize_weights(model, settings)


def palettized():
    config = ct.optimize.coreml.OpPalettizerConfig(nbits=4, weight_threshold=1)
    settings = ct.optimize.coreml.OptimizationConfig(global_config=config)
    return ct.optimize.coreml.palettize_weights(linear(ct.target.iOS16, (2, 64)), settings)


MAKES = {
    "iOS 15": lambda: linear(ct.target.iOS15),
    "fp32": lambda: linear(ct.target.iOS17, compute_precision=ct.precision.FLOAT32),
    "enumerated": enumerated,
    "ranged": ranged,
    "stateful": stateful,
    "embedding": embedding,
    "branching": branching,
    "int8": lambda: quantized(ct.target.iOS16, "int8"),
    "int4": lambda: quantized(ct.target.iOS18, "int4", granularity="per_block", block_size=32),
    "palettized": palettized,
}


def problems(package):
    """Return every problem of a package, as text."""
    found = [*manifest_problems(package.files), *model_description_problems(package)]
    found += version_problems(package)
    for name in package.files:
        found += file_problems(package.files[name]) if name.endswith(".bin") else ()
    for function in package.functions:
        types = FunctionTypes(package, function)
        found += [*description_problems(package, function), *types.problems(), *types.wide]
        found += [*types.unread_inputs(), *weights_in_program(package, function)]
        assert types.operations
    return list(map(str, found))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("make", MAKES)
def test_a_package_of_coremltools_has_no_problem(make, tmp_path):
    path = tmp_path / "model.mlpackage"
    MAKES[make]().save(str(path))
    assert problems(Package.from_folder(path)) == []


def test_a_package_of_two_functions_has_no_problem(tmp_path):
    function = ct.utils.MultiFunctionDescriptor()
    for name, length in (("decode", 1), ("prefill", 8)):
        path = str(tmp_path / f"{name}.mlpackage")
        linear(ct.target.iOS17, (length, 16)).save(path)
        function.add_function(path, "main", name)
    function.default_function_name = "decode"
    ct.utils.save_multifunction(function, str(tmp_path / "both.mlpackage"))
    package = Package.from_folder(tmp_path / "both.mlpackage")
    assert package.is_multifunction and problems(package) == []


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_an_index_that_cannot_name_every_row_is_found(tmp_path):
    path = tmp_path / "model.mlpackage"
    embedding(30_000).save(str(path))  # coremltools narrows its indices to INT16
    package = Package.from_folder(path)
    assert problems(package) == []
    for op in package.operations("main").operations:
        if op.type == "const":
            for declared in (op.outputs[0].type, op.attributes["val"].type):
                for dimension in declared.tensorType.dimensions[:1]:
                    if dimension.constant.size == 30_000:
                        dimension.constant.size = 40_000
    (problem,) = problems(package)
    assert "its indices reach 32767, but axis 0 of its table has 40000 entries" in problem


def classes():
    """Yield coremltools' classes of operations: name, opset, class."""
    registry = importlib.import_module("coremltools.converters.mil.mil.ops.registry")
    for name, versions in registry.SSAOpRegistry.core_ops.items():
        for version, cls in versions.items():
            if int(version) in SYSTEMS and not name.startswith("_"):
                yield name, f"CoreML{int(version) - 1}", cls


def test_the_table_of_operands_is_that_of_coremltools():
    types = ct.converters.mil.mil.types
    input_type = importlib.import_module("coremltools.converters.mil.mil.input_type")
    compared = 0
    for name, opset, cls in classes():
        rule = signature(name, opset)
        for parameter, kind in cls.input_spec.input_types.items():
            if not isinstance(kind, input_type.TensorInputType):
                continue
            domain = cls.type_domains[kind.type_domain_id] if kind.type_domain_id else None
            allowed = domain if domain is not None else kind.type_domain
            allowed = allowed if isinstance(allowed, tuple) else (allowed,)
            names = {mil_name(types.builtin_to_string(one)) for one in allowed}
            assert rule is not None, (name, opset)
            assert rule.allowed[parameter] == names, (name, opset, parameter)
            assert rule.groups.get(parameter) == kind.type_domain_id, (name, opset, parameter)
            compared += 1
    assert compared > 1800


def value(offset=None, shape=(1, 8), **changed):
    place = None if offset is None else (1, offset)
    return TensorValue("float32", shape, None, tuple(range(len(shape))), planned=place, **changed)


def method(values, instructions, inputs=(), outputs=()):
    return PteMethod("forward", tuple(values), inputs, outputs, tuple(instructions), (), (0, 64))


def test_memory_may_be_used_again_after_the_last_read():
    chain = [DelegateCall(number, (number, number + 1)) for number in range(4)]
    values = [value(), value(0), value(32), value(0), value()]
    sound = method(values, chain, (0,), (4,))
    assert not [*overlap_problems(sound, {}), *tensor_problems(sound)]
    values[2] = value(28)
    (first, second) = overlap_problems(method(values, chain, (0,), (4,)), {1: "hidden"})
    assert first == ("value 2", "shares memory with value 1 ('hidden') while both are needed")
    assert second[0] == "value 3"


def test_a_kernel_may_write_in_place_and_a_view_may_share_memory():
    values = [value(), value(0), value(0), value(0, (8, 1)), value(32), value()]
    steps = [
        DelegateCall(0, (0, 1)),
        KernelCall("aten::add.out", (1, 1, 2)),
        KernelCall("executorch_prim::et_view.default", (2, 3)),
        DelegateCall(1, (2, 3, 4)),
    ]
    assert not list(overlap_problems(method(values, steps, (0,), (4,)), {}))


def test_an_input_that_nothing_reads_gives_its_memory_away():
    values = [value(0), value(32), value(0)]
    steps = [DelegateCall(0, (1, 2))]
    assert not list(overlap_problems(method(values, steps, (0, 1), (2,)), {}))


def test_a_buffer_is_read_before_it_is_written():
    values = [value(), value(0), value()]  # the second is a buffer whose first content is not kept
    steps = [DelegateCall(0, (0, 1, 2)), KernelCall("aten::copy_", (1, 2, 1))]
    assert not list(call_problems(method(values, steps, (0,), (2,)), {0: 2}, {}))


def test_an_output_that_nothing_writes_is_named():
    broken = method([value(), value(), value()], [DelegateCall(0, (0, 1))], (0,), (1, 2))
    assert list(call_problems(broken, {0: 1}, {})) == [("output value 2", "nothing writes it")]


def test_keys_that_occur_twice_are_named_in_little_time():
    many = Pte({}, {}, 0, ("model",) * 1_000_000 + ("model.2", "other"))
    assert [key for key, _ in key_problems(many)] == ["model", "model"]

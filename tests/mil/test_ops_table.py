"""The table of operations: complete, true to coremltools, and enforced at load."""

import numpy as np
import pytest

from harness.errors import ArtifactError
from harness.mil import get_policy, load_function
from harness.mil.operation import IMPLEMENTATIONS, operations
from tests.mil.programs import execute, save
from tests.mil.rows import executing, named_operations
from tests.mil.test_loading import edited, find

OPSETS = {"iOS15": "CoreML5", "iOS16": "CoreML6", "iOS17": "CoreML7", "iOS18": "CoreML8"}
NOT_IN_PROGRAMS = {"conv_quantized", "_const_symbolic"}


@pytest.mark.parametrize("target", OPSETS)
def test_the_table_holds_every_operation_of_an_opset_with_its_parameters(target):
    import coremltools as ct
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    opset, ours = getattr(ct.target, target), operations()
    compared = 0
    for name, versions in SSAOpRegistry.core_ops.items():
        known = [version for version in versions if version <= opset]
        if name in NOT_IN_PROGRAMS or not known:
            continue
        given = versions[max(known)].input_spec.input_types
        assert name in ours, f"operation '{name}' has no table in mil/operations.toml"
        assert ours[name].parameters(OPSETS[target]) == {n for n in given if n[0] != "_"}, name
        compared += 1
    state = {"write_state"} if target == "iOS18" else set()  # coremltools has no such operation
    there = {n for n, entry in ours.items() if entry.parameters(OPSETS[target]) is not None}
    assert compared == len(there - state) >= 150


def test_every_operation_in_the_table_is_implemented():
    assert set(IMPLEMENTATIONS) == set(operations()) - {"const"}


def test_every_operation_is_in_the_module_that_coremltools_first_defines_it_in():
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    ours = {n: i.build.__module__.split(".")[-1] for n, i in IMPLEMENTATIONS.items()}
    assert ours.pop("write_state") == "states"  # coremltools has it in a dialect, by another name
    versions = SSAOpRegistry.core_ops
    theirs = {n: versions[n][min(versions[n])].__module__.split(".")[-1] for n in ours}
    assert ours == theirs


def test_every_row_says_how_exact_a_result_is():
    classes = {"exact", "elementwise", "accumulated", "statistical"}
    assert {entry.tolerance for entry in operations().values()} == classes


def test_what_moves_data_is_exact():
    inexact = {"accumulated", "elementwise", "statistical"}
    for name, implementation in IMPLEMENTATIONS.items():
        assert not (implementation.moves_data and operations()[name].tolerance in inexact), name


def test_every_operation_is_executed_by_a_test():
    assert named_operations() == set(IMPLEMENTATIONS)


def test_a_test_that_does_not_execute_what_it_names_fails():
    with pytest.raises(AssertionError, match="not executed: tanh"), executing({"relu", "tanh"}):
        execute(lambda mb, a: mb.relu(x=a), np.ones(2, np.float32))


def refused(package, change, problem):
    with pytest.raises(ArtifactError, match=problem):
        load_function(edited(package, change), "main", get_policy("widen"))


@pytest.fixture(scope="module")
def relu():
    return save(lambda mb, a: mb.relu(x=a), [(2, 4)], "iOS16")


def test_an_operation_of_a_later_opset_is_refused(relu):
    def change(block):
        find(block, "relu").type = "resize"

    refused(relu, change, "operation 'resize' came with opset CoreML7; the program's is CoreML6")


def test_an_unknown_operation_is_named_with_its_place(relu):
    def change(block):
        find(block, "relu").type = "relu7"

    refused(
        relu,
        change,
        "function 'main', relu7 '.*': operation 'relu7' of opset CoreML6 is not implemented; "
        "it is number 0 of its block",
    )


def test_an_unknown_opset_is_named():
    package = save(lambda mb, a: mb.relu(x=a), [(2, 4)])
    function = package.functions["main"]
    block = function.block_specializations[function.opset]
    function.opset = "CoreML4"
    function.block_specializations["CoreML4"].CopyFrom(block)
    with pytest.raises(ArtifactError, match="opset 'CoreML4' is not one of CoreML5, CoreML6"):
        load_function(package, "main", get_policy("widen"))


def test_a_parameter_of_a_later_opset_is_refused():
    package = save(lambda mb, a: mb.gather(x=a, indices=np.int32([0])), [(2, 4)], "iOS15")

    def change(block):
        operation = find(block, "gather")
        operation.inputs["batch_dims"].CopyFrom(operation.inputs["axis"])

    refused(package, change, r"parameter 'batch_dims' is not understood \(opset CoreML5\)")


def test_blocks_in_an_operation_that_has_none_are_refused(relu):
    def change(block):
        find(block, "relu").blocks.add()

    refused(relu, change, "operation 'relu' with 1 blocks is not implemented; 0 are expected")

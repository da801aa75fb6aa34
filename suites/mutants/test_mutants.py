"""Every check can fail: it must catch its mutants, and let the control pass.

A row names the fault, the mutation, the modes that have the part, and by check the sentence that it
must say: a check that fails for another reason has not caught the mutant.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from harness.checks import artifact_checks
from harness.subject import Subject
from harness.suites.mutants import of_constants as constants
from harness.suites.mutants import of_names as names
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants import of_weights as weights
from harness.suites.mutants import test_tables as tables
from harness.suites.mutants import test_validity as validity
from harness.suites.mutants.judge import MakeMutant, Mutation, Sources, judged, opened

pytestmark = pytest.mark.mutant
SINGLE, MULTI = ("single",), ("multifunction",)
BOTH = SINGLE + MULTI
WRONG = r"(prefill|decode|caches) error is \S+ \(<="  # what parity says of wrong numbers
ORDER = "metadata.json's order is"
SWAPPED = {"metadata-names": ORDER, "parity": WRONG}  # arguments are passed by these names
PERTURBED = {"weights": "differ from the checkpoint's", "parity": WRONG}
NUMBERS = {"parity": WRONG}
TWO_EPSILONS = dict.fromkeys(("tables", "parity"), "2 epsilons, not one")
OF_NAMES = [
    ("two key caches swapped", names.swap_inputs("_0_l0_h0", "_0_l1_h0"), BOTH, SWAPPED),
    ("keys and values swapped", names.swap_inputs("_0_l0_h0", "_1_l0_h0"), BOTH, SWAPPED),
    ("cosines and sines swapped", names.swap_inputs("cos_override", "sin_override"), BOTH, SWAPPED),
    (
        "a mask and a cache swapped",
        names.swap_mask_and_cache,
        BOTH,
        {"metadata-names": ORDER, "parity": r"h0' has shape .* not the declared"},
    ),
    ("two outputs swapped", names.swap_outputs, BOTH, SWAPPED),
    ("an input named twice", names.name_an_input_twice, BOTH, {"metadata-names": "h0 twice"}),
    ("an input without a name", names.drop_an_input, BOTH, {"metadata-names": ORDER}),
    (
        "a method without metadata",
        names.drop_a_method,
        MULTI,
        {"metadata-names": "has no method 'prefill'"},
    ),
    (
        "metadata of no function",
        names.add_a_method,
        MULTI,
        {"metadata-names": "describes .*'verify'"},
    ),
    (
        "an unknown default method",
        names.unknown_default_method,
        MULTI,
        {"metadata-round-trip": "default_method is 'verify'"},
    ),
    (
        "another default function",
        names.other_default_function,
        MULTI,
        {"function-names": "default function is 'prefill'"},
    ),
    (
        "an unknown default function",
        names.unknown_default_function,
        BOTH,
        {"function-names": "default function is 'verify'"},
    ),
    (
        "another method's function",
        names.change_first_reference(functionName="prefill"),
        MULTI,
        {"function-names": "it has function 'prefill'", "parity": "'tokens' has shape"},
    ),
    (
        "no function named",
        names.change_first_reference(functionName=None),
        MULTI,
        {"function-names": "it has no function name"},
    ),
    (
        "an unknown function",
        names.change_first_reference(functionName="verify"),
        MULTI,
        {"references": "'verify' is not in its package", "function-names": "'verify'"},
    ),
    (
        "data that is not there",
        names.change_first_reference(key="coreml_executorch_of_another_export"),
        MULTI,
        {"references": "method 'forward', delegate 0: refers to named data 'coreml_executorch_of"},
    ),
    (
        "a reference of another version",
        names.change_first_reference(version=2),
        MULTI,
        {"references": "a reference of version 2"},
    ),
    (
        "another partition's package",
        names.package_of_another_partition,
        MULTI,
        {
            "references": "no delegate refers to this named data",
            "metadata-names": "the program passes shape",
        },
    ),
    (
        "a function renamed",
        names.rename_a_function,
        MULTI,
        {
            "references": "'prefill' is not in its package",
            "metadata-names": "the package holds .*'renamed'",
        },
    ),
    (
        "a single package describes functions",
        names.describe_functions,
        SINGLE,
        {"function-names": "the package is multifunction"},
    ),
    (
        "a single payload names a function",
        names.call_it_single,
        MULTI,
        {"function-names": "needs no function name"},
    ),
]
OF_WEIGHTS = [
    (
        "a weight is not shared",
        weights.unshare_a_weight,
        MULTI,
        {"weight-sharing": "[1-9][0-9]* bytes of weights are not shared"},
    ),
    (
        "a weight is stored twice",
        weights.store_a_weight_twice,
        MULTI,
        {"weight-sharing": "[1-9][0-9]* bytes are in the package twice"},
    ),
    (
        "a weight that nobody uses",
        weights.leave_a_weight_behind,
        BOTH,
        {"references": "hold 2112 bytes that no function refers to"},
    ),
    ("a scale off by 1 %", weights.perturb_a_scale, BOTH, PERTURBED),
    ("a norm off by 1 %", weights.perturb_a_norm, BOTH, PERTURBED),
    ("two weights swapped", weights.swap_two_weights, BOTH, PERTURBED),
    ("a bias", weights.add_a_bias, BOTH, NUMBERS),
    ("activations beyond fp16", weights.huge_activations, BOTH, {"fp16-range": "exceed fp16's"}),
]
OF_PROGRAMS = [
    ("the epsilon", programs.change_epsilon, BOTH, {"tables": "norm_eps: is 0.0001"}),
    ("one epsilon", programs.change_one_epsilon, BOTH, TWO_EPSILONS),
    ("the attention scale", programs.change_attention_scale, BOTH, NUMBERS),
    ("add is sub", programs.retype("add", "sub", 1), BOTH, NUMBERS),
    ("silu is sigmoid", programs.retype("silu", "sigmoid", 0), BOTH, NUMBERS),
    ("the mask's sign", programs.subtract_the_mask, BOTH, NUMBERS),
    (
        "the mask ignored",
        programs.ignore_the_mask,
        BOTH,
        NUMBERS | {"roles": "cache position 0 moves outputs though its column is closed"},
    ),
    ("the softmax axis", programs.wrong_softmax_axis, BOTH, NUMBERS),
    (
        "new keys before cached ones",
        programs.new_before_cached,
        BOTH,
        NUMBERS | {"residues": "error is"},
    ),
    ("another layer's cache", programs.cache_of_another_layer, BOTH, NUMBERS),
    ("RoPE of halves", programs.rotate_halves, BOTH, NUMBERS | {"roles": "another layout"}),
    ("RoPE joined as halves", programs.join_as_halves, BOTH, {"parity": "caches error is"}),
    (
        "the last position ignored",
        programs.ignore_the_last_position,
        MULTI,
        NUMBERS
        | {"residues": "error is", "roles": r"method 'prefill', .*does not move the logits"},
    ),
    (
        "ids of 8 bits",
        programs.narrow_ids,
        BOTH,
        {"token-ids": "limits prompt (logits|caches) error"},
    ),
    ("fp32 leaks", programs.leak_fp32, BOTH, {"program": "fp32 results in an fp16 export: silu"}),
    ("fused attention", programs.fuse_attention, BOTH, {"program": "fused attention"}),
    ("a state is read", programs.read_a_state, BOTH, {"program": "states.*read_state"}),
    ("a state is taken", programs.take_a_state, BOTH, {"program": "states.*in_cache_state"}),
]
OF_CONSTANTS = [
    ("one row of a table", constants.one_table_row, BOTH, {"tables": "sin error over allowed is"}),
    (
        "a table for another layout",
        constants.interleaved_table,
        BOTH,
        {"tables": "cos error over allowed is"},
    ),
    (
        "the tables' inputs swapped",
        constants.cosines_for_sines,
        BOTH,
        NUMBERS | {"roles": "do not rotate keys .*exchanged"},
    ),
    (
        "an index of two tables",
        constants.name_the_sines_twice,
        BOTH,
        {"owners": "input 2 .*has 2 owners: .*freqs_cos.*freqs_sin.*input 3 .*has no owner"},
    ),
    (
        "a row's key and value inputs swapped",
        constants.exchange_columns(0, 2, slice(1)),
        BOTH,
        NUMBERS | {"cache-rows": "row 0: input 8, its key cache, acts as a value cache"},
    ),
    (
        "key and value inputs swapped",
        constants.exchange_columns(0, 2),
        BOTH,
        NUMBERS | {"cache-rows": "row 3: input 11, its key cache, acts as a value cache"},
    ),
    (
        "key and value updates swapped",
        constants.exchange_columns(1, 3),
        BOTH,
        NUMBERS | {"cache-rows": "row 0: the rotation moves output 1, its update of values"},
    ),
    (
        "two rows' key inputs swapped",
        constants.swap_in_rows(0),
        BOTH,
        NUMBERS | {"cache-rows": "row 0: input 5 is the key cache of layer 1, but output 1 is"},
    ),
    (
        "two rows' key outputs swapped",
        constants.swap_in_rows(1),
        BOTH,
        NUMBERS | {"cache-rows": "input 4 is the key cache of layer 0.* the update of layer 1"},
    ),
    (
        "two rows' value outputs swapped",
        constants.swap_in_rows(3),
        BOTH,
        NUMBERS | {"cache-rows": "input 8 is the value cache of layer 0.* the update of layer 1"},
    ),
    ("a longer mask", constants.longer_mask, BOTH, {"parity": "they must agree"}),
    ("longer caches", constants.longer_everything, BOTH, {"parity": "mask_specs.* makes it"}),
]
ROWS = [
    pytest.param(mutate, mode, check, sentence, id=f"{what}, {mode}, {check}")
    for what, mutate, modes, checks in OF_NAMES + OF_WEIGHTS + OF_PROGRAMS + OF_CONSTANTS
    for mode in modes
    for check, sentence in checks.items()
]


@pytest.mark.parametrize("mode", BOTH)
def test_the_control_passes_every_check(mutant: MakeMutant, mode: str) -> None:
    subject = mutant(programs.touch_everything, mode)
    applicable = [
        name for name, check in artifact_checks().items() if not check.inapplicable(subject)
    ]
    assert len(applicable) >= 14
    assert {name: judged(subject, name).outcome for name in applicable} == dict.fromkeys(
        applicable, "pass"
    )


def test_every_check_has_a_mutant_that_it_catches() -> None:
    caught = {row.values[2] for row in ROWS} | {"greedy", "sharing-size"}  # see below
    caught |= {row[3] for row in (*validity.OF_PACKAGES, *tables.OF_TABLES)}
    assert caught == set(artifact_checks())


@pytest.mark.parametrize(("mutate", "mode", "check", "sentence"), ROWS)
def test_a_mutant_is_caught(
    mutant: MakeMutant, mutate: Mutation, mode: str, check: str, sentence: str
) -> None:
    case = judged(lambda: mutant(mutate, mode), check)
    assert case.outcome in ("fail", "error")
    assert re.search(sentence, case.reason), case.reason


def test_greedy_choices_of_a_broken_model_are_caught(mutant: MakeMutant) -> None:
    case = judged(mutant(programs.ignore_the_mask, "single"), "greedy")
    assert case.outcome == "fail" and "are not the oracle's" in case.reason


def test_sharing_that_was_lost_is_caught(sources: Sources) -> None:
    sound = sources["multifunction"]
    assert sound.unshared is not None
    unshared = opened(sound.unshared, sound)
    case = judged(unshared, "weight-sharing")
    assert case.outcome == "fail" and "1 functions;" in case.reason
    assert judged(unshared, "sharing-size").outcome == "fail"


def test_a_layer_that_the_checkpoint_lacks_is_no_match(sources: Sources, tmp_path: Path) -> None:
    sound = sources["single"]
    assert sound.params is not None and sound.checkpoint is not None
    sizes = json.loads(sound.params.read_text()) | {"n_layers": 3}
    (params := tmp_path / "params.json").write_text(json.dumps(sizes))
    weights = torch.load(sound.checkpoint, weights_only=True)
    kept = {name: value for name, value in weights.items() if not name.startswith("layers.3.")}
    torch.save(kept, checkpoint := tmp_path / "checkpoint.pth")
    case = judged(Subject(sound.artifact.path, checkpoint, params), "weights")
    assert case.outcome == "fail"
    assert "layers.3.attention.wk.weight is in one of the two only" in case.reason

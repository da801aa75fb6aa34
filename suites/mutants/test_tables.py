"""Faults of a `.pte`'s tables that no execution shows are caught at their place, by one check only.

The rows are those of `test_validity`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants import of_tables as faults
from harness.suites.mutants.judge import complaints, opened

pytestmark = pytest.mark.mutant
SINGLE, MULTI = ("single",), ("multifunction",)
BOTH = SINGLE + MULTI
OF_TABLES = [
    (
        "unknown units",
        faults.set_spec("compute_units", b"cpu_and_tpu"),
        BOTH,
        "compile-specs",
        "'forward', delegate 0: compute_units is b'cpu_and_tpu'; known are",
    ),
    (
        "other units of one delegate",
        faults.set_spec("compute_units", b"cpu_only", everywhere=False),
        BOTH,
        "compile-specs",
        r"delegate 2: compute_units differs from that of method 'forward', delegate 0",
    ),
    (
        "a later target",
        faults.set_spec("min_deployment_target", b"10"),
        BOTH,
        "compile-specs",
        r"delegate 0: min_deployment_target is 10 \(iOS 26\), but .* version 9 \(iOS 18\)",
    ),
    (
        "an earlier target",
        faults.set_spec("min_deployment_target", b"8"),
        SINGLE,
        "compile-specs",
        r"min_deployment_target is 8 \(iOS 17\), but the package has specification version 9",
    ),
    (
        "another precision",
        faults.set_spec("model_compute_precision", b"float32"),
        BOTH,
        "compile-specs",
        "model_compute_precision is float32, but the model is float16",
    ),
    (
        "a compiled model",
        faults.set_spec("model_type", b"compiled_model"),
        BOTH,
        "compile-specs",
        "model_type is compiled_model, but the payload holds a model.mlpackage",
    ),
    (
        "a strategy that was not followed",
        faults.set_spec("multimethod_weight_sharing_strategy", b"disabled"),
        MULTI,
        "compile-specs",
        "is disabled, but the delegate refers to a shared package",
    ),
    ("a spec twice", faults.spec_twice, BOTH, "compile-specs", "compute_units is given 2 times"),
    (
        "another layout",
        faults.reverse_axes,
        BOTH,
        "memory-plan",
        r"method 'forward': '\w+': its dim_order is \[0, 1, 3, 2\]",
    ),
    (
        "a dynamic shape",
        faults.make_dynamic(unbound=False),
        BOTH,
        "memory-plan",
        r"method 'forward': '\w+': its shape is dynamic",
    ),
    (
        "a shape without bound",
        faults.make_dynamic(unbound=True),
        BOTH,
        "memory-plan",
        r"method 'forward': value \d+: its shape has no bound",
    ),
    (
        "memory behind the buffer",
        faults.past_the_buffer,
        BOTH,
        "memory-plan",
        r"method 'forward': value \d+: is planned at bytes \d+ to \d+ of buffer 1 of \d+ bytes",
    ),
    (
        "memory of no buffer",
        faults.unknown_buffer,
        BOTH,
        "memory-plan",
        r"value \d+: is planned in buffer 5; the method has buffers 1 to 1",
    ),
    (
        "memory of two tensors",
        faults.in_one_place,
        BOTH,
        "memory-plan",
        r"method 'forward': value \d+ \('\w+'\): shares memory with value \d+ \('\w+'\) while both",
    ),
    (
        "calls in another order",
        faults.swap_calls,
        BOTH,
        "memory-plan",
        r"method 'forward': delegate 2: reads value \d+ \('\w+'\) before anything writes it",
    ),
    (
        "a call twice",
        faults.call_twice,
        BOTH,
        "memory-plan",
        "method 'forward': delegate 0: instructions 0 and 1 call it with the same values",
    ),
    (
        "a key that begins another",
        faults.key_begins_another,
        MULTI,
        "memory-plan",
        r"named data: (coreml_\S+): another key begins with this one: '\1.second'",
    ),
    (
        "a second copy",
        faults.second_copy,
        MULTI,
        "copies",
        "package 3: is a copy of package 2; one of [0-9]+ bytes would do",
    ),
]


@pytest.mark.parametrize(
    ("change", "mode", "check", "sentence"),
    [
        pytest.param(change, mode, check, sentence, id=f"{what}, {mode}")
        for what, change, modes, check, sentence in OF_TABLES
        for mode in modes
    ],
)
def test_a_fault_of_the_tables_is_caught_once(
    sound: Subjects,
    tmp_path: Path,
    change: faults.Rewrite,
    mode: str,
    check: str,
    sentence: str,
) -> None:
    subject = sound.get("tiny", mode)
    mutant = faults.rewrite(subject.artifact.path, change, tmp_path / "mutant.pte")
    found = complaints(opened(mutant, subject))
    assert found.keys() == {check}, found
    assert re.search(sentence, found[check]), found[check]

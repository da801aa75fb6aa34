"""Faults of packages that no execution shows are caught at their place, by one check only.

A row names the fault, the mutation, the modes, the check and what its reason must say. No other
check of bytes may complain: one cause gives one finding.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.suites.conformance.subjects import Subjects
from harness.suites.mutants import of_validity as faults
from harness.suites.mutants.edit import Export, FolderExport
from harness.suites.mutants.judge import Mutation, complaints, opened

pytestmark = pytest.mark.mutant
SINGLE, MULTI = ("single",), ("multifunction",)
BOTH = SINGLE + MULTI
PLACE = r"package 1, Manifest.json: "
FILE = r"package 1, Data/com.apple.CoreML/weights/weight.bin: "
FUNCTION = r"package 1, function '\w+': "
OF_PACKAGES = [
    (
        "a manifest of version 2",
        faults.manifest(lambda content, item: content.update(fileFormatVersion="2.0.0")),
        BOTH,
        "package-files",
        rf"{PLACE}fileFormatVersion is '2.0.0'",
    ),
    (
        "an item without a description",
        faults.manifest(lambda content, item: item.pop("description")),
        BOTH,
        "package-files",
        rf"{PLACE}item '.*' has no description",
    ),
    (
        "an item that does not exist",
        faults.manifest(lambda content, item: item.update(path="com.apple.CoreML/w.bin")),
        BOTH,
        "package-files",
        rf"{PLACE}item '.*' is 'Data/com.apple.CoreML/w.bin', which does not exist",
    ),
    (
        "two items of one path",
        faults.manifest(faults.add_item),
        BOTH,
        "package-files",
        rf"{PLACE}items '.*' and '0000.*' have one path",
    ),
    ("a key twice", faults.root_key_twice, BOTH, "package-files", "'fileFormatVersion' occurs twi"),
    ("a stray file", faults.stray_file, BOTH, "package-files", "no item holds .*notes.txt"),
    (
        "an empty identifier",
        faults.empty_identifier,
        BOTH,
        "package-files",
        "package 1, metadata.json: its identifier is empty",
    ),
    (
        "one identifier twice",
        faults.one_identifier,
        BOTH,
        "package-files",
        "package 1, metadata.json: has the identifier of package 0",
    ),
    (
        "a wrong count",
        faults.count_one_more,
        BOTH,
        "package-files",
        rf"{FILE}its header counts \d+",
    ),
    ("garbage at the end", faults.end_in_garbage, BOTH, "package-files", f"{FILE}no weight begins"),
    ("unused bits", faults.unused_bits, BOTH, "package-files", f"{FILE}.* has 3 unused bits"),
    ("shared data", faults.shift_data, BOTH, "package-files", f"{FILE}.* has its data at 128"),
    (
        "an old specification",
        faults.model(specificationVersion=8),
        BOTH,
        "descriptions",
        r"package 1: function '\w+': opset CoreML8 is newer than specification version 8",
    ),
    (
        "an unknown specification",
        faults.model(specificationVersion=99),
        BOTH,
        "descriptions",
        "package 1: its specification: version 99 cannot hold",
    ),
    (
        "an updatable model",
        faults.model(isUpdatable=True),
        BOTH,
        "descriptions",
        "package 1: .*isUpdatable",
    ),
    (
        "a program of version 2",
        faults.program_version,
        BOTH,
        "descriptions",
        "package 1: its ML Program: its version is 2",
    ),
    (
        "the default of one function",
        faults.default_of_one,
        SINGLE,
        "descriptions",
        "package 1: defaultFunctionName is 'main'",
    ),
    (
        "no such function",
        faults.describe_nothing,
        MULTI,
        "descriptions",
        "package 1: it describes a function 'verify'",
    ),
    (
        "a function described twice",
        faults.describe_twice,
        MULTI,
        "descriptions",
        r"package 1: it describes the function '\w+' 2 times",
    ),
    (
        "a range",
        faults.described_input(faults.allow_a_range),
        BOTH,
        "descriptions",
        rf"{FUNCTION}input '\w+': its description allows several sizes of axis 0",
    ),
    (
        "an enumeration",
        faults.described_input(faults.enumerate_others),
        BOTH,
        "descriptions",
        rf"{FUNCTION}input '\w+': its default shape .* is not one of those enumerated",
    ),
    (
        "an optional input",
        faults.described_input(faults.make_optional),
        BOTH,
        "descriptions",
        rf"{FUNCTION}input '\w+': is optional, but a delegate always",
    ),
    (
        "another dtype described",
        faults.described_input(faults.describe_fp32),
        BOTH,
        "metadata-names",
        "the program passes float16, the function takes float32",
    ),
    (
        "another size of an input",
        faults.function_input_type,
        BOTH,
        "descriptions",
        rf"{FUNCTION}input '\w+': is described with shape .* the function has",
    ),
    (
        "another dtype declared",
        faults.operation("add", faults.declare_dtype("INT32")),
        BOTH,
        "types",
        rf"{FUNCTION}add '(\w+)': declares '\1' INT32, but it gives FLOAT16",
    ),
    (
        "a wrong rank",
        faults.operation("softmax", faults.declare_rank),
        BOTH,
        "types",
        rf"{FUNCTION}softmax '(\w+)': '\1' has rank 5 and 4 dimensions",
    ),
    (
        "no identifier",
        faults.rename_result,
        BOTH,
        "types",
        f"{FUNCTION}silu '1-silu': .* is not an",
    ),
    (
        "an epsilon of another dtype",
        faults.wide_epsilon,
        BOTH,
        "types",
        rf"{FUNCTION}add '\w+': 'y' is FLOAT32, but 'x' is FLOAT16",
    ),
    (
        "a constant too small",
        faults.shrink_a_constant,
        BOTH,
        "types",
        rf"{FUNCTION}const '\w+': declares FLOAT16\[\d+\], but its value is FLOAT16",
    ),
    (
        "an unread input",
        faults.read_another_input,
        BOTH,
        "types",
        rf"{FUNCTION}input '\w+': no operation reads it",
    ),
    (
        "a weight in the program",
        faults.weight_in_program,
        MULTI,
        "copies",
        rf"{FUNCTION}its program holds weights that belong in the weight file: '\w+' \(\d+ bytes\)",
    ),
    (
        "an uncalled function",
        faults.uncalled_function,
        MULTI,
        "copies",
        r"package 1: no method calls its functions \['verify'\]",
    ),
]
SOURCES = ("tiny", "coreml:tiny")
ONLY_IN_A_PTE = ("an epsilon of another dtype", "a weight in the program")  # by ExecuTorch's names


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("source", SOURCES)
def test_a_sound_export_passes(sound: Subjects, source: str, mode: str) -> None:
    assert complaints(sound.get(source, mode)) == {}


@pytest.mark.parametrize(
    ("source", "mutate", "mode", "check", "sentence"),
    [
        pytest.param(source, mutate, mode, check, sentence, id=f"{what}, {mode}, {source}")
        for what, mutate, modes, check, sentence in OF_PACKAGES
        for mode in modes
        for source in SOURCES
        if source == "tiny" or what not in ONLY_IN_A_PTE
    ],
)
def test_a_fault_of_a_package_is_caught_once(
    sound: Subjects,
    tmp_path: Path,
    source: str,
    mutate: Mutation,
    mode: str,
    check: str,
    sentence: str,
) -> None:
    subject = sound.get(source, mode)
    path = subject.artifact.path
    export = FolderExport(path) if source.startswith("coreml:") else Export(path)
    mutate(export)  # type: ignore[arg-type]
    found = complaints(opened(export.save(tmp_path / "mutant.pte"), subject))
    assert found.keys() == {check}, found
    assert re.search(sentence, found[check]), found[check]

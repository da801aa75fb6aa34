"""The gates that are read from a test's source, on small files and on ExecuTorch's own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from harness.errors import HarnessError
from harness.suites.upstream.__main__ import FILES, test_files
from harness.suites.upstream.gates import Asked, open_gates, read_asked

test_files.__test__ = False  # type: ignore[attr-defined]
LYING = Path(__file__).with_name("lying.py")


def asked(tmp_path: Path, body: str) -> Asked:
    path = tmp_path / "test_x.py"
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    path.write_text(f"class T:\n    def test_x(self):\n{lines}\n")
    return read_asked(path)["T::test_x"]


@pytest.mark.parametrize(
    ("body", "lines", "executes"),
    [
        ("self.assertTrue(1)", [], False),
        ("if _TEST_RUNTIME:\n    self.assertTrue(1)", [4], False),
        ("if IS_VALID_TEST_RUNTIME:\n    m.execute(x)\n    self.assertTrue(1)", [5], True),
        ("if not _TEST_RUNTIME:\n    return\nself.assertTrue(1)", [5], False),
        ("if not _TEST_RUNTIME:\n    pass\nself.assertTrue(1)", [], False),
        ("if OTHER:\n    self.assertTrue(1)\nelse:\n    self.assertTrue(2)", [], False),
        ("for x in y:\n    if _TEST_RUNTIME:\n        self.assertTrue(1)", [5], False),
        ("with a:\n    if _TEST_RUNTIME:\n        self.assertTrue(\n            1)", [5], False),
        ("if _TEST_RUNTIME:\n    pass\nelse:\n    self.assertTrue(1)", [], False),
    ],
)
def test_assertions_behind_a_gate_are_found(
    tmp_path: Path, body: str, lines: list[int], executes: bool
) -> None:
    found = asked(tmp_path, body)
    assert sorted(place.first for place in found.assertions) == lines
    assert found.executes == executes


def test_what_a_test_calls_counts_and_what_another_calls_does_not() -> None:
    found = read_asked(LYING)
    count = {name.partition("::")[2]: len(one.assertions) for name, one in found.items()}
    assert count == {
        "test_honest": 2,
        "test_wrong_number": 1,
        "test_never_executes_core_ml": 1,
        "test_leaves_out_an_assertion": 2,
        "test_refused_where_it_should_be": 2,
        "test_asks_no_runtime": 0,
        "test_asserts_nothing": 0,
    }


def test_executorchs_own_tests_are_gated_as_expected() -> None:
    """Counted by hand in ExecuTorch 1.4.1."""
    found = {path.name: read_asked(path) for path in test_files(None, FILES)}
    total = {
        name: sum(len(asked.assertions) for asked in tests.values())
        for name, tests in found.items()
    }
    asking = {
        name: sum(asked.executes for asked in tests.values()) for name, tests in found.items()
    }
    assert asking == {FILES[0]: 11, FILES[1]: 3, FILES[2]: 1}
    assert total == {FILES[0]: 11, FILES[1]: 15, FILES[2]: 3}


def test_a_gate_is_opened_where_there_is_one() -> None:
    gated, plain = ModuleType("gated"), ModuleType("plain")
    gated._TEST_RUNTIME = False  # type: ignore[attr-defined]
    open_gates(gated)
    open_gates(plain)
    assert gated._TEST_RUNTIME is True and gated.Runtime.get()  # type: ignore[attr-defined]
    assert not hasattr(plain, "Runtime")


def test_a_checkout_without_the_tests_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=f"test_torch_ops.py is not in {tmp_path}.*--source DIR"):
        test_files(tmp_path, FILES)

"""The gates of ExecuTorch's Core ML tests: `if _TEST_RUNTIME:` and the like.

There are two forms: `if GATE:` before the guarded statements, and `if not GATE: return` above them.
A test asks something of the runtime when such statements assert, in the test itself or in a method
that it calls.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

GATES = ("_TEST_RUNTIME", "IS_VALID_TEST_RUNTIME")
_EXECUTING = ("execute", "run_method")


@dataclass(frozen=True)
class Lines:
    """The first and the last line of an assertion in its file."""

    first: int
    last: int

    def __contains__(self, line: int) -> bool:
        return self.first <= line <= self.last

    def __str__(self) -> str:
        return f"line {self.first}"


@dataclass(frozen=True)
class Asked:
    """What a test asks of the runtime: its assertions, and whether it executes anything."""

    assertions: frozenset[Lines] = frozenset()
    executes: bool = False


def open_gates(module: ModuleType) -> None:
    """Let a test module believe that there is a runtime, and give it what it would then import."""
    from executorch.runtime import Runtime

    for gate in GATES:
        if hasattr(module, gate):
            vars(module).update({gate: True, "Runtime": Runtime})


def read_asked(path: Path) -> dict[str, Asked]:
    """Return what each test of a file ("TestOps::test_add") asks behind its gates.

    The methods that a test calls belong to it.
    """
    found = {}
    for cls in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(cls, ast.ClassDef):
            methods = {f.name: f for f in cls.body if isinstance(f, ast.FunctionDef)}
            for name in methods:
                if name.startswith("test"):
                    found[f"{cls.name}::{name}"] = _asked(_reached(name, methods))
    return found


def _asked(methods: Iterable[ast.FunctionDef]) -> Asked:
    gated = [statement for method in methods for statement in _gated(method.body)]
    calls = [call for statement in gated for call in _calls(statement)]
    return Asked(
        frozenset(
            Lines(call.lineno, call.end_lineno or call.lineno)
            for call, name in calls
            if name.startswith("assert")
        ),
        executes=any(name in _EXECUTING for _, name in calls),
    )


def _reached(name: str, methods: dict[str, ast.FunctionDef]) -> Iterable[ast.FunctionDef]:
    """Return a method and all of its class that it calls, directly or not."""
    reached: dict[str, ast.FunctionDef] = {}
    ahead = [name]
    while ahead:
        name = ahead.pop()
        if name in methods and name not in reached:
            reached[name] = methods[name]
            ahead += [called for _, called in _calls(methods[name])]
    return reached.values()


def _gated(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a block that run only when its gate is open."""
    for index, statement in enumerate(body):
        if isinstance(statement, ast.If):
            match statement.test:
                case ast.Name(id=name) if name in GATES:
                    yield from statement.body
                    continue
                case ast.UnaryOp(op=ast.Not(), operand=ast.Name(id=name)) if name in GATES:
                    if isinstance(statement.body[-1], ast.Return):
                        yield from body[index + 1 :]
                        return
        for block in ("body", "orelse", "finalbody"):
            yield from _gated(getattr(statement, block, []))


def _calls(node: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Yield the calls of any object's methods, with the method's name."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            yield call, call.func.attr

"""What vector code for numba's compiler is put together from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def loop(
    builder: ir.IRBuilder,
    count: Any,
    first: list[Any],
    step: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """Emit a loop over 0 to `count` that hands values from step to step; return the last ones."""
    before = builder.block
    body, after = builder.append_basic_block("step"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed(">", count, _I64(0)), body, after)
    builder.position_at_end(body)
    number = builder.phi(_I64)
    number.add_incoming(_I64(0), before)
    values = [builder.phi(value.type) for value in first]
    results = step(number, values)
    following = builder.add(number, _I64(1))
    number.add_incoming(following, body)
    for value, start, result in zip(values, first, results, strict=True):
        value.add_incoming(start, before)
        value.add_incoming(result, body)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    last = [builder.phi(value.type) for value in first]
    for value, start, result in zip(last, first, results, strict=True):
        value.add_incoming(start, before)
        value.add_incoming(result, body)
    return last


def function(builder: ir.IRBuilder, name: str, result: Any, arguments: list[Any]) -> Any:
    """Return a function of LLVM's own, declared once in a module."""
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


def address(builder: ir.IRBuilder, base: Any, number: Any, size: int) -> Any:
    """Emit the address of an element, `size` bytes each."""
    return builder.add(base, builder.mul(number, _I64(size)))


def load(builder: ir.IRBuilder, address: Any, kind: Any, offset: int = 0) -> Any:
    """Emit a load from `offset` bytes after an address, aligned or not."""
    place = builder.add(address, _I64(offset))
    return builder.load(builder.inttoptr(place, ir.PointerType(kind)), align=1)


def store(builder: ir.IRBuilder, value: Any, address: Any, offset: int = 0) -> None:
    """Emit a store `offset` bytes after an address, aligned or not."""
    place = builder.add(address, _I64(offset))
    builder.store(value, builder.inttoptr(place, ir.PointerType(value.type)), align=1)


def shuffled(builder: ir.IRBuilder, first: Any, second: Any, places: list[int]) -> Any:
    """Emit a vector of some places of two vectors, or of one."""
    other = ir.Constant(first.type, ir.Undefined) if second is None else second
    mask = ir.Constant(ir.VectorType(_I32, len(places)), places)
    return builder.shuffle_vector(first, other, mask)

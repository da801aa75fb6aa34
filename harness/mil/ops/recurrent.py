"""Recurrent layers over x [S, B, I], computed in the policy's dtypes and rounded at the end.

Their results are the hidden states of every step [S, B, H], or of the last one [1, B, H], then the
last state [B, H]; an LSTM's memory follows. A layer that runs in reverse starts at the last step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "scaled_tanh": torch.tanh,  # with its parameters' defaults, 1 and 1
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
}


_State = tuple[Tensor, ...]


_Cell = Callable[[Tensor, _State], _State]
"""One step: the input's contribution to the gates [B, gates] and the old state -> the new state."""


_LAYER = ("x", "initial_h", "weight_ih", "weight_hh", "bias")


@operation("rnn", inputs=_LAYER)
def rnn(op: Operation) -> Run:
    """Compute `h' = activation(W x + R h + b)` for each step."""
    activation, walk = _activation(op, "activation", "tanh"), _Walk(op)

    def run(x: Tensor, h: Tensor, w: Tensor, r: Tensor, bias: Tensor | None) -> _State:
        def cell(given: Tensor, state: _State) -> _State:
            return (activation(given + state[0] @ r.T),)

        return walk(_contribution(x, w, bias), (h,), cell)

    return run


@operation("gru", inputs=(*_LAYER, "input_bias"))
def gru(op: Operation) -> Run:
    """Compute `h' = (1 - z) o + z h` for each step; the gates' order is reset, output, update.

    The reset gate multiplies h before the product with its weight; with `reset_after` (iOS 18) it
    multiplies the sum of the product and the bias.
    """
    gate = _activation(op, "recurrent_activation", "sigmoid")
    activation = _activation(op, "activation", "tanh")
    after, walk = op.constant("reset_after", False), _Walk(op)

    def run(
        x: Tensor, h: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, own: Tensor | None
    ) -> _State:
        reset_w, output_w, update_w = r.chunk(3)
        recurrent = r.new_zeros(len(r)) if bias is None else bias
        reset_b, output_b, update_b = recurrent.chunk(3)

        def cell(given: Tensor, state: _State) -> _State:
            before = state[0]
            to_reset, to_output, to_update = given.chunk(3, -1)
            reset = gate(to_reset + before @ reset_w.T + reset_b)
            update = gate(to_update + before @ update_w.T + update_b)
            if after:
                fresh = reset * (before @ output_w.T + output_b)
            else:
                fresh = (reset * before) @ output_w.T + output_b
            return ((1 - update) * activation(to_output + fresh) + update * before,)

        return walk(_contribution(x, w, own), (h,), cell)

    return run


_DIRECTION = ("weight_ih", "weight_hh", "bias", "peephole")


@operation(
    "lstm",
    inputs=("x", "initial_h", "initial_c", *_DIRECTION, *(f"{name}_back" for name in _DIRECTION)),
)
def lstm(op: Operation) -> Run:
    """Run an LSTM; the gates' order is input, forget, output, cell, and `clip` limits the memory.

    With two directions, the halves of the states' last axis are forward and backward.
    """
    gate = _activation(op, "recurrent_activation", "sigmoid")
    fresh = _activation(op, "cell_activation", "tanh")
    activation, clip = _activation(op, "activation", "tanh"), op.constant("clip")
    walk, back = _Walk(op, both_ways=True), _Walk(op, is_back=True)

    def cell_of(r: Tensor, peephole: Tensor | None) -> _Cell:
        looks = r.new_zeros(3, r.shape[1]) if peephole is None else peephole.reshape(3, -1)

        def cell(given: Tensor, state: _State) -> _State:
            h, memory = state
            to_input, to_forget, to_output, to_cell = (given + h @ r.T).chunk(4, -1)
            kept = gate(to_forget + looks[1] * memory) * memory
            memory = kept + gate(to_input + looks[0] * memory) * fresh(to_cell)
            if clip is not None:
                memory = memory.clamp(-clip, clip)
            return gate(to_output + looks[2] * memory) * activation(memory), memory

        return cell

    def run(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor | None) -> _State:
        w, r, bias, peephole, *others = weights
        assert w is not None and r is not None
        if not walk.is_bidirectional:
            return walk(_contribution(x, w, bias), (h, c), cell_of(r, peephole))
        w_back, r_back, bias_back, peephole_back = others
        if w_back is None or r_back is None:
            raise op.error("two directions need weight_ih_back and weight_hh_back")
        (h, h_back), (c, c_back) = h.chunk(2, -1), c.chunk(2, -1)
        forward = walk(_contribution(x, w, bias), (h, c), cell_of(r, peephole))
        given = _contribution(x, w_back, bias_back)
        backward = back(given, (h_back, c_back), cell_of(r_back, peephole_back))
        return tuple(torch.cat(pair, -1) for pair in zip(forward, backward, strict=True))

    return run


class _Walk:
    """Reads a layer's direction and the results that it returns, and runs over the steps."""

    def __init__(self, op: Operation, both_ways: bool = False, is_back: bool = False) -> None:
        direction = op.constant("direction", "forward")
        known = ("forward", "reverse", *(["bidirectional"] if both_ways or is_back else []))
        if direction not in known:
            raise op.error(f"unknown direction '{direction}'; the directions: {', '.join(known)}")
        self._all = op.constant("output_sequence", False)
        self._reverse = direction == "reverse" or is_back
        self._is_back = is_back
        self.is_bidirectional = direction == "bidirectional"

    def __call__(self, given: Tensor, state: _State, cell: _Cell) -> _State:
        hidden = []
        for step in given.flip(0) if self._reverse else given:
            state = cell(step, state)
            hidden.append(state[0])
        if not self._all:
            return state[0][None], *state
        every = torch.stack(hidden)
        # a reverse layer returns its steps as it ran; the back half of a pair, in the input's order
        return every.flip(0) if self._is_back else every, *state


def _contribution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the contribution of the input alone to all gates at every step, [S, B, gates]."""
    product = x @ weight.T
    return product if bias is None else product + bias


def _activation(op: Operation, parameter: str, default: str) -> Callable[[Tensor], Tensor]:
    name = str(op.constant(parameter, default)).lower()
    if name not in _ACTIVATIONS:
        raise op.error(f"unknown {parameter} '{name}'; known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]

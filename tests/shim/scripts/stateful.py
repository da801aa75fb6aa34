"""A key cache as a state of predictions: after the guide's page on stateful models."""

import coremltools as ct
import numpy as np
import torch


class Cache(torch.nn.Module):
    """Writes a row into a cache of eight, and returns the sum of all rows so far."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(8, 4))

    def forward(self, row, place):
        begin = place.shape[-1] - 1
        self.rows[begin : begin + 1] = row
        return self.rows.sum(dim=0)


class Accumulator(torch.nn.Module):
    """Adds its input to its state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x):
        self.total.add_(x)
        return self.total * 2


model = ct.convert(
    torch.jit.trace(Accumulator(), torch.zeros(3)),
    inputs=[ct.TensorType(name="x", shape=(3,))],
    outputs=[ct.TensorType(name="twice")],
    states=[ct.StateType(wrapped_type=ct.TensorType(shape=(3,)), name="total")],
    minimum_deployment_target=ct.target.iOS18,
)
first, second = model.make_state(), model.make_state()
step = np.array([1.0, 2.0, 0.5], np.float32)
for count in (1, 2, 3):
    result = model.predict({"x": step}, state=first)["twice"]
    np.testing.assert_array_equal(result, 2 * count * step)
np.testing.assert_array_equal(model.predict({"x": step}, state=second)["twice"], 2 * step)
np.testing.assert_array_equal(first.read_state(name="total"), 3 * step)
first.write_state(name="total", value=10 * step)
np.testing.assert_array_equal(model.predict({"x": step}, state=first)["twice"], 22 * step)

traced = torch.jit.trace(Cache(), (torch.zeros(1, 4), torch.zeros(1, 3)))
places = ct.RangeDim(lower_bound=1, upper_bound=8, default=1)
model = ct.convert(
    traced,
    inputs=[
        ct.TensorType(name="row", shape=(1, 4)),
        ct.TensorType(name="place", shape=(1, places)),
    ],
    outputs=[ct.TensorType(name="sum")],
    states=[ct.StateType(wrapped_type=ct.TensorType(shape=(8, 4)), name="rows")],
    minimum_deployment_target=ct.target.iOS18,
)
state = model.make_state()
rows = np.arange(32, dtype=np.float32).reshape(8, 4)
for place in range(8):
    inputs = {"row": rows[place : place + 1], "place": np.zeros((1, place + 1), np.float32)}
    result = model.predict(inputs, state=state)["sum"]
    np.testing.assert_array_equal(result, rows[: place + 1].sum(axis=0))
np.testing.assert_array_equal(state.read_state(name="rows"), rows)

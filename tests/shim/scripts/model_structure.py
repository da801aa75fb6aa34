"""Walk the operations of a program: after the reference of `MLModelStructure`."""

import collections

import coremltools as ct
import numpy as np
import torch
from coremltools.models.compute_plan import MLModelStructure


class Branch(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x) @ x.transpose(-1, -2)


model = ct.convert(
    torch.jit.trace(Branch(), torch.zeros(3, 5)),
    inputs=[ct.TensorType(name="x", shape=(3, 5))],
    outputs=[ct.TensorType(name="product")],
    compute_precision=ct.precision.FLOAT32,
    minimum_deployment_target=ct.target.iOS16,
)
structure = MLModelStructure.load_from_path(model.get_compiled_model_path())
assert structure.neuralnetwork is None and structure.pipeline is None

main = structure.program.functions["main"]
counts = collections.Counter(operation.operator_name for operation in main.block.operations)
assert counts["relu"] == counts["matmul"] == 1, counts
assert [value.name for value in main.inputs] == ["x"]
assert main.block.output_names == ["product"]
(product,) = (op for op in main.block.operations if op.operator_name == "matmul")
bound = {name: [b.name for b in value.bindings] for name, value in product.inputs.items()}
(relu,) = (op for op in main.block.operations if op.operator_name == "relu")
assert bound["x"] == [value.name for value in relu.outputs], bound

x = np.arange(-7, 8, dtype=np.float32).reshape(3, 5)
result = model.predict({"x": x})["product"]
np.testing.assert_array_equal(result, np.maximum(x, 0) @ x.T)

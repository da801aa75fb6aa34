"""Predict with a function of a Core ML package: `predict.py PACKAGE [FUNCTION]`.

Core ML computes on a Mac. On Linux, `harness shim -- python predict.py PACKAGE` runs this script,
unchanged, with the executor of this project.
"""

import sys

import coremltools as ct
import numpy as np

package, *function = sys.argv[1:]
model = ct.models.MLModel(package, function_name=function[0] if function else None)

description = model.get_spec().description
described = {entry.name: entry for entry in description.functions}
interface = described[function[0]] if function else description
ones = {
    feature.name: np.ones(tuple(feature.type.multiArrayType.shape), np.float32)
    for feature in interface.input
}
for name, value in model.predict(ones).items():
    print(name, value.shape, value.dtype)

"""The end of a classifier: its most probable label, and the probabilities of all labels."""

from __future__ import annotations

from torch import Tensor

from harness.mil.operation import Operation, Run, operation


@operation("classify", inputs=("probabilities",), moves_data=True)
def classify(op: Operation) -> Run:
    """Return the label, a str or an int, and a dict from label to probability."""
    labels = op.required("classes")

    def run(probabilities: Tensor) -> tuple[str | int, dict[str | int, float]]:
        values = probabilities.reshape(-1).tolist()
        if len(values) != len(labels):
            raise op.error(f"{len(values)} probabilities for {len(labels)} labels")
        best = max(range(len(values)), key=values.__getitem__)
        return labels[best], dict(zip(labels, values, strict=True))

    return run

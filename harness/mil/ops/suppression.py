"""Non-maximum suppression: boxes that overlap a better one are left out."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.mil.operation import Operation, Run, operation


@operation("non_maximum_suppression", inputs=("boxes", "scores"), moves_data=True)
def non_maximum_suppression(op: Operation) -> Run:
    """Select boxes [n, B, 4] (center x, center y, width, height) by scores [n, B, K], best first.

    A box's score is the best of its classes'; with `per_class_suppression` only boxes of the
    same best class suppress each other. Results are padded with zeros, indices with -1; where no
    box passes the threshold, the best one is selected. Until iOS 16 there are a score threshold
    and a fourth result, the number of boxes; from iOS 17 on the boxes stand on the last axis.
    """
    overlap, most = op.required("iou_threshold"), op.required("max_boxes")
    by_class = op.constant("per_class_suppression", False)
    boxes_last = op.since("CoreML7")
    least = float("-inf") if boxes_last else op.required("score_threshold")

    def run(boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        if boxes_last:
            boxes, scores = boxes.mT, scores.mT
        op.checked_shape((len(boxes), most, 4), f"max_boxes {most}")
        chosen_boxes = boxes.new_zeros(len(boxes), most, 4)
        chosen_scores = scores.new_zeros(len(boxes), most, scores.shape[2])
        indices = torch.full((len(boxes), most), -1, dtype=torch.int32)
        counts = torch.zeros(len(boxes), dtype=torch.int32)
        for batch, (some, marks) in enumerate(zip(boxes, scores, strict=True)):
            best, classes = marks.max(1)
            chosen = _select(some, best, classes if by_class else None, overlap, least, most)
            count = len(chosen)
            chosen_boxes[batch, :count], chosen_scores[batch, :count] = some[chosen], marks[chosen]
            indices[batch, :count] = torch.tensor(chosen, dtype=torch.int32)
            counts[batch] = count
        if boxes_last:
            return chosen_boxes.mT, chosen_scores.mT, indices
        return chosen_boxes, chosen_scores, indices, counts

    return run


def _select(
    boxes: Tensor, best: Tensor, classes: Tensor | None, overlap: float, least: float, most: int
) -> list[int]:
    chosen: list[int] = []
    order = torch.argsort(best, descending=True, stable=True).tolist()
    for index in order:
        if len(chosen) == most or best[index] <= least:
            break
        rivals = [k for k in chosen if classes is None or classes[k] == classes[index]]
        if not rivals or bool((_overlaps(boxes[index], boxes[rivals]) <= overlap).all()):
            chosen.append(index)
    return chosen or order[: min(1, most)]


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union; boxes without area overlap nothing."""
    low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
    lows, highs = others[:, :2] - others[:, 2:] / 2, others[:, :2] + others[:, 2:] / 2
    sides = (torch.minimum(high, highs) - torch.maximum(low, lows)).clamp(min=0)
    shared = sides.prod(1)
    union = box[2:].prod() + others[:, 2:].prod(1) - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(shared))

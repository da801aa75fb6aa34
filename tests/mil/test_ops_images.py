"""Operations on images, against PyTorch's own: convolution, pooling, resizing, sampling, boxes."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.mil.programs import execute, run, save
from tests.mil.rows import Row, each

RNG = np.random.default_rng(13)
IMAGE = RNG.standard_normal((2, 4, 7, 9)).astype(np.float32)
LINE = RNG.standard_normal((2, 4, 11)).astype(np.float32)
VOLUME = RNG.standard_normal((1, 2, 4, 5, 6)).astype(np.float32)
KERNEL = RNG.standard_normal((4, 2, 3, 2)).astype(np.float32)
BIAS = np.float32([1, -2, 3, -4])
T = torch.from_numpy


def transposed(stride, dilation=1, groups=2):
    return functional.conv_transpose2d(
        T(IMAGE), T(KERNEL), T(BIAS), stride, 0, 0, groups, dilation
    ).numpy()


def same_windows(x, size, step, lower, value):
    """Pad the last two axes as `same` does: ceil(size / step) windows."""
    pads = []
    for length in reversed(x.shape[-2:]):
        total = max(0, (-(-length // step) - 1) * step + size - length)
        pads += [total - total // 2, total // 2] if lower else [total // 2, total - total // 2]
    return functional.pad(T(x), pads, value=value)


def sampled(x, grid, mode="bilinear", padding="zeros", align=True):
    return functional.grid_sample(T(x), T(grid), mode, padding, align).numpy()


GRID = (RNG.random((2, 3, 5, 2)).astype(np.float32) - 0.5) * 2.8  # some of it lies outside
RESAMPLE = {"padding_value": np.float32(0), "coordinates_mode": "normalized_minus_one_to_one"}
PADDINGS = [("constant", "zeros", True), ("border", "border", True), ("border", "border", False)]
PADDINGS += [("reflection", "reflection", True), ("symmetric", "reflection", False)]


def box(x, top, left, bottom, right, high, wide):
    """Sample a box of one image [C, H, W], including its corners."""
    rows, columns = np.linspace(top, bottom, high), np.linspace(left, right, wide)
    along = np.stack([[np.interp(columns, range(x.shape[2]), row) for row in c] for c in x])
    return np.stack(
        [np.stack([np.interp(rows, range(x.shape[1]), r) for r in c.T], 1) for c in along]
    )


BOXES = np.float32([[1, 0, 4, 6], [0.5, 2.25, 5, 3]])


def same_means(x, kernel, step):
    """Return the means over one axis of the elements in each window of `pad_type` same."""
    size = x.shape[2]
    count = -(-size // step)
    before = max(0, (count - 1) * step + kernel - size) // 2
    starts = [place * step - before for place in range(count)]
    return np.stack([x[:, :, max(0, n) : n + kernel].mean(2) for n in starts], 2)


ROWS = [
    Row(
        "conv_transpose",
        {"x": IMAGE},
        transposed((2, 3)),
        weight=KERNEL,
        bias=BIAS,
        strides=[2, 3],
        groups=2,
        pad_type="valid",
    ),
    Row(
        "conv_transpose",
        {"x": IMAGE},
        transposed((2, 1), (1, 2))[:, :, 1:-2, :-1],
        note="cut and dilated",
        weight=KERNEL,
        bias=BIAS,
        strides=[2, 1],
        dilations=[1, 2],
        groups=2,
        pad_type="custom",
        pad=[1, 2, 0, 1],
    ),
    Row(
        "conv_transpose",
        {"x": IMAGE},
        transposed((2, 1))[:, :, :14, :9],
        note="same",
        weight=KERNEL,
        bias=BIAS,
        strides=[2, 1],
        groups=2,
        pad_type="same",
    ),
    Row(
        "conv_transpose",
        {"x": IMAGE},
        functional.conv_transpose2d(
            T(IMAGE), T(KERNEL), T(BIAS), (3, 2), (1, 0), (1, 1), 2
        ).numpy(),
        note="beyond the full result",
        weight=KERNEL,
        bias=BIAS,
        strides=[3, 2],
        groups=2,
        pad_type="custom",
        pad=[1, 1, 0, 0],
        output_shape=[2, 4, 20, 19],
    ),
    Row(
        "conv_transpose",
        {"x": LINE},
        functional.conv_transpose1d(T(LINE), T(KERNEL[..., 0]), stride=2, groups=2).numpy(),
        note="in one axis",
        weight=KERNEL[..., 0],
        strides=[2],
        groups=2,
    ),
    Row(
        "max_pool",
        {"x": IMAGE},
        functional.max_pool2d(T(IMAGE), (3, 2), 2, (1, 0)).numpy(),
        kernel_sizes=[3, 2],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 0, 0],
    ),
    Row(
        "max_pool",
        {"x": IMAGE},
        functional.max_pool2d(T(IMAGE), (2, 3), (3, 2), 1, ceil_mode=True).numpy(),
        note="upward",
        kernel_sizes=[2, 3],
        strides=[3, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
    ),
    Row(
        "max_pool",
        {"x": IMAGE},
        functional.max_pool2d(same_windows(IMAGE, 3, 2, False, -np.inf), 3, 2).numpy(),
        note="same",
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="same",
    ),
    Row(
        "max_pool",
        {"x": IMAGE},
        functional.max_pool2d(same_windows(IMAGE, 4, 2, True, -np.inf), 4, 2).numpy(),
        note="same_lower",
        kernel_sizes=[4, 4],
        strides=[2, 2],
        pad_type="same_lower",
    ),
    Row(
        "max_pool",
        {"x": VOLUME},
        functional.max_pool3d(T(VOLUME), (2, 3, 2), (1, 2, 2)).numpy(),
        note="in three axes",
        kernel_sizes=[2, 3, 2],
        strides=[1, 2, 2],
        pad_type="valid",
    ),
    *(
        Row(
            "avg_pool",
            {"x": IMAGE},
            functional.avg_pool2d(T(IMAGE), 3, 2, 1, True, counted).numpy(),
            note=f"padding {'counted' if counted else 'left out'}",
            kernel_sizes=[3, 3],
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            exclude_padding_from_average=not counted,
            ceil_mode=True,
        )
        for counted in (True, False)
    ),
    Row(
        "avg_pool",
        {"x": LINE},
        functional.avg_pool1d(T(LINE), 3, 2).numpy(),
        note="in one axis",
        kernel_sizes=[3],
        strides=[2],
        pad_type="valid",
    ),
    Row(
        "l2_pool",
        {"x": IMAGE},
        np.sqrt(functional.avg_pool2d(T(IMAGE) ** 2, (2, 3), (2, 1)).numpy() * 6),
        kernel_sizes=[2, 3],
        strides=[2, 1],
        pad_type="valid",
    ),
    Row(
        "max_pool",
        {"x": IMAGE},
        np.broadcast_to(IMAGE.max(2, keepdims=True), IMAGE.shape).copy(),
        note="of windows far larger than the input",
        kernel_sizes=[2_000_001, 1],
        strides=[1, 1],
        pad_type="custom",
        pad=[1_000_000, 1_000_000, 0, 0],
    ),
    *(
        Row(
            "avg_pool",
            {"x": IMAGE},
            np.broadcast_to(
                IMAGE.sum(2, keepdims=True) / (2_000_001 if counted else IMAGE.shape[2]),
                IMAGE.shape,
            ).copy(),
            note=f"of large windows, padding {'counted' if counted else 'left out'}",
            kernel_sizes=[2_000_001, 1],
            strides=[1, 1],
            pad_type="custom",
            pad=[1_000_000, 1_000_000, 0, 0],
            exclude_padding_from_average=not counted,
        )
        for counted in (True, False)
    ),
    Row(
        "avg_pool",
        {"x": LINE},
        same_means(LINE, 12, 4),
        note="of windows that the input cuts at both ends",
        kernel_sizes=[12],
        strides=[4],
        pad_type="same",
        exclude_padding_from_average=True,
    ),
    Row(
        "resize_bilinear",
        {"x": IMAGE},
        functional.interpolate(T(IMAGE), (5, 13), mode="bilinear", align_corners=True).numpy(),
        target_size_height=5,
        target_size_width=13,
        sampling_mode="STRICT_ALIGN_CORNERS",
    ),
    Row(
        "resize_bilinear",
        {"x": IMAGE},
        functional.interpolate(T(IMAGE), (4, 20), mode="bilinear").numpy(),
        note="corners not aligned",
        target_size_height=4,
        target_size_width=20,
        sampling_mode="UNALIGN_CORNERS",
    ),
    *(
        Row(
            "resize_bilinear",
            {"x": np.float32([[[[0, 1]]]])},
            np.float64([[[positions]]]),
            note=f"{mode} to {len(positions)}",
            target_size_height=1,
            target_size_width=len(positions),
            sampling_mode=mode,
        )
        for mode, positions in [
            ("DEFAULT", [0, 0.4, 0.8, 1, 1]),
            ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
            ("UNALIGN_CORNERS", [0, 0, 1 / 3, 2 / 3, 1, 1]),
            ("ALIGN_CORNERS", [0.5]),
            ("STRICT_ALIGN_CORNERS", [0]),
        ]
    ),
    Row(
        "resize_nearest_neighbor",
        {"x": IMAGE},
        functional.interpolate(T(IMAGE), (3, 27)).numpy(),
        target_size_height=3,
        target_size_width=27,
    ),
    Row(
        "upsample_nearest_neighbor",
        {"x": IMAGE},
        IMAGE.repeat(2, 2).repeat(3, 3),
        scale_factor_height=2,
        scale_factor_width=3,
    ),
    Row(
        "upsample_bilinear",
        {"x": IMAGE},
        functional.interpolate(T(IMAGE), scale_factor=(2, 3), mode="bilinear").numpy(),
        scale_factor_height=2,
        scale_factor_width=3,
        align_corners=False,
    ),
    Row(
        "upsample_bilinear",
        {"x": IMAGE},
        functional.interpolate(
            T(IMAGE), scale_factor=(2, 3), mode="bilinear", align_corners=True
        ).numpy(),
        note="aligned",
        scale_factor_height=2,
        scale_factor_width=3,
    ),
    Row(
        "resize",
        {"x": IMAGE},
        IMAGE.repeat(2, 3),
        shape=[0, 18],
        resized_dims=np.uint32(2),
        interpolation_mode="NEAREST_NEIGHBOR",
        sampling_mode="UNALIGN_CORNERS",
    ),
    *(
        Row(
            "resample",
            {"x": IMAGE, "coordinates": GRID},
            sampled(IMAGE, GRID, mode, theirs, align),
            note=f"{mode}, {ours}, {align}",
            sampling_mode=mode,
            padding_mode=ours,
            align_corners=align,
            **RESAMPLE,
        )
        for ours, theirs, align in PADDINGS
        for mode in ("bilinear", "nearest")
    ),
    Row(
        "resample",
        {"x": IMAGE[:1], "coordinates": np.int32([[[[8, 0], [9, 1], [3, 6]]]])},
        np.stack([IMAGE[0, :, 0, 8], np.full(4, -5), IMAGE[0, :, 6, 3]], 1)[None, :, None],
        note="at pixels",
        sampling_mode="nearest",
        padding_mode="constant",
        padding_value=np.float32(-5),
        coordinates_mode="unnormalized",
        align_corners=True,
    ),
    Row(
        "affine",
        {"x": IMAGE},
        sampled(
            IMAGE,
            functional.affine_grid(
                torch.tensor([[[0.8, 0.3, 0.1], [-0.2, 1.1, 0]]] * 2), (2, 4, 5, 4), True
            ).numpy(),
        ),
        transform_matrix=np.float32([[0.8, 0.3, 0.1, -0.2, 1.1, 0]]),
        output_height=5,
        output_width=4,
        sampling_mode="bilinear",
        padding_mode="constant",
        padding_value=np.float32(0),
        align_corners=True,
        coordinates_mode="normalized_minus_one_to_one",
    ),
    Row(
        "crop_resize",
        {"x": IMAGE},
        np.stack([box(IMAGE[1], *BOXES[0], 3, 4), box(IMAGE[0], *BOXES[1], 3, 4)]),
        note="of boxes",
        target="iOS17",
        boxes=BOXES,
        box_indices=np.int32([1, 0]),
        target_height=3,
        target_width=4,
        sampling_mode="ALIGN_CORNERS",
    ),
    Row(
        "crop_resize",
        {"x": IMAGE},
        np.stack([[box(image, *b, 3, 4) for image in IMAGE] for b in BOXES]),
        note="of every image",
        target="iOS15",
        roi=BOXES.reshape(2, 1, 4, 1, 1),
        target_height=3,
        target_width=4,
        sampling_mode="STRICT_ALIGN_CORNERS",
    ),
    Row(
        "crop_resize",
        {"x": IMAGE[1:]},
        box(IMAGE[1], 3 - 0.75, 4 - 2, 3 + 0.75, 4 + 2, 2, 3)[None, None],
        note="of centers, normalized",
        target="iOS16",
        roi=np.float32([0, 0.5, 0.5, 0.5, 0.25]).reshape(1, 1, 5, 1, 1),
        target_height=2,
        target_width=3,
        box_coordinate_mode="CENTER_SIZE_WIDTH_FIRST",
        normalized_coordinates=True,
        sampling_mode="ALIGN_CORNERS",
    ),
    Row(
        "crop_resize",
        {"x": IMAGE[:1]},
        np.concatenate([IMAGE[0][:, [0, 6]][:, :, [6, 8]], np.full((4, 2, 1), 9)], 2)[None],
        note="beyond an image",
        target="iOS17",
        boxes=np.float32([[0, 6, 6, 10]]),
        target_height=2,
        target_width=3,
        sampling_mode="ALIGN_CORNERS",
        pad_value=np.float32(9),
    ),
    Row(
        "resize",
        {"x": IMAGE, "size": np.int32([1_000_000])},
        note="beyond any machine",
        error=r"sizes \[1000000, 1000000\] ask for",
        build=lambda mb, x, size: mb.resize(
            x=x, shape=mb.concat(values=[size, size], axis=0), resized_dims=np.uint32(2)
        ),
    ),
]


@each(ROWS)
def test_an_operation_gives_what_torch_gives(row):
    row.check(1e-5)


@pytest.mark.executes("upsample_bilinear")
def test_a_pixel_beside_an_infinite_one_is_infinite():
    x = np.float32([[[[1, np.inf, np.inf, 2, -3e38, 3e38]]]])
    scales = {"scale_factor_height": 1, "scale_factor_width": 2, "align_corners": False}
    (found,) = execute(lambda mb, x: mb.upsample_bilinear(x=x, **scales), x)
    wanted = [*[np.inf] * 6, -7.5e37, -2.25e38, -1.5e38, 1.5e38, 3e38]
    np.testing.assert_allclose(found[0, 0, 0, 1:], wanted, rtol=1e-6)


SQUARES = np.float32([[[0, 0, 2, 2], [0.2, 0, 2, 2], [5, 5, 2, 2], [5, 5.1, 2, 2], [9, 9, 1, 1]]])
SCORES = np.float32([[[0.1, 0.9], [0.8, 0.1], [0.2, 0.6], [0.1, 0.7], [0.05, 0.01]]])


def suppressed(target, by_class, **options):
    boxes, scores = (SQUARES, SCORES) if target < "iOS17" else (SQUARES.mT, SCORES.mT)

    def build(mb, a, b):
        return mb.non_maximum_suppression(
            boxes=a,
            scores=b,
            iou_threshold=np.float32(0.5),
            max_boxes=6,
            per_class_suppression=by_class,
            **options,
        )

    return execute(build, boxes, scores, target=target)


@pytest.mark.executes("non_maximum_suppression")
def test_boxes_that_overlap_a_better_one_are_left_out():
    boxes, scores, indices, counts = suppressed("iOS15", False, score_threshold=np.float32(0.3))
    assert indices.tolist() == [[0, 3, -1, -1, -1, -1]] and counts.tolist() == [2]
    np.testing.assert_array_equal(boxes[0, :2], SQUARES[0, [0, 3]])
    np.testing.assert_array_equal(scores[0, :2], SCORES[0, [0, 3]])
    assert not boxes[0, 2:].any() and not scores[0, 2:].any()


@pytest.mark.executes("non_maximum_suppression")
def test_boxes_of_other_classes_do_not_suppress_when_asked():
    boxes, _, indices = suppressed("iOS17", True)
    assert indices.tolist() == [[0, 1, 3, 4, -1, -1]]
    np.testing.assert_array_equal(boxes[0, :, :4].T, SQUARES[0, [0, 1, 3, 4]])


@pytest.mark.executes("crop_resize")
def test_samples_taken_in_bands_are_those_taken_at_once(monkeypatch):
    from harness.mil.ops import sampling

    def build(mb, a):
        boxes = np.array([[0, 0, 2, 3], [1, 1, 3, 3]], np.float32)
        indices = np.int32([0, 0])
        return mb.crop_resize(
            x=a, boxes=boxes, box_indices=indices, target_height=5, target_width=3
        )

    image = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    package = save(build, [image.shape])
    (at_once,) = run(package, image)
    monkeypatch.setattr(sampling, "_BAND", 1)
    np.testing.assert_array_equal(run(package, image)[0], at_once)
    assert at_once.shape == (2, 2, 5, 3) and np.ptp(at_once) > 5

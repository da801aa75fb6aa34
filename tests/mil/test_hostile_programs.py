"""Five thousand mutated programs: each is executed or refused, in bounded time and memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import save


def many_operations(mb, a):
    weight = np.linspace(-1, 1, 64, dtype=np.float32).reshape(16, 4)
    x = mb.reshape(x=mb.relu(x=mb.linear(x=a, weight=weight)), shape=[2, 4, 4])
    x = mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 1]), axes=[0])
    first, second = mb.split(x=mb.squeeze(x=x, axes=[0]), num_splits=2, axis=1)
    x = mb.concat(values=[first, second], axis=2)
    x = mb.slice_by_index(x=x, begin=[0, 0, 0], end=[2, 2, 4], stride=[1, 1, 2])
    x = mb.gather(x=mb.tile(x=x, reps=[1, 2, 1]), indices=np.int32([1, 0]), axis=1)
    x = mb.softmax(x=x, axis=-1)
    x = mb.mul(x=x, y=mb.reduce_mean(x=x, axes=[1], keep_dims=True))
    x = mb.pad(x=mb.matmul(x=x, y=x, transpose_y=True), pad=[1, 1])
    x = mb.cast(x=mb.cast(x=x, dtype="int32"), dtype="fp32")
    x = mb.gelu(x=mb.layer_norm(x=mb.clip(x=x, alpha=-1.0, beta=1.0), axes=[-1]), mode="EXACT")
    _, places = mb.topk(x=x, k=2, axis=-1)
    counts = mb.reduce_sum(x=mb.one_hot(indices=places, one_hot_vector_size=5), axes=[-1])
    scaled = mb.constexpr_blockwise_shift_scale(
        data=np.ones((4, 4), np.int8), scale=np.ones((2, 1), np.float32)
    )
    return mb.cast(x=counts, dtype="fp32"), mb.matmul(x=a, y=scaled)


@pytest.mark.timeout(120)
def test_a_mutated_program_is_executed_or_refused():
    package = save(many_operations, [(2, 4)])
    script = Path(__file__).parent / "mutating.py"
    done = subprocess.run(
        [sys.executable, str(script), package.what], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    executed, refused = map(int, done.stdout.split())
    assert executed > 500 and refused > 2000

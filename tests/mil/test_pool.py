"""Products by several threads: equal to those by one, at any moment, in any process."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from harness.mil.packed import PackedWeight, multiplied_by, vector
from harness.mil.packed.pool import Pool, pool
from tests.mil.test_packed import Scheme, make

pytestmark = pytest.mark.skipif(not vector.available(), reason="needs AVX2 or Neon")


@pytest.fixture(scope="module")
def weight():
    return PackedWeight(make(Scheme((4500, 1024), (4500, 1)))[0], torch.float32)


def xs(count):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, 1024, generator=generator) for _ in range(count)]


def products(weight, inputs, threads, pause=0.0):
    results = []
    with multiplied_by(threads):
        for x in inputs:
            time.sleep(pause)
            results.append(weight.linear(x))
    return results


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("pause", [0, 0.01], ids=["busy", "asleep"])
def test_threads_give_what_one_gives(weight, threads, pause):
    inputs = xs(8 if pause else 100)
    alone = products(weight, inputs, 1)
    assert all(map(torch.equal, products(weight, inputs, threads, pause), alone))


def test_callers_in_several_threads_do_not_disturb_each_other(weight):
    inputs, found = xs(20), {}
    alone = products(weight, inputs, 1)

    def call(number):
        found[number] = products(weight, inputs, 2)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    [caller.start() for caller in callers]
    [caller.join(120) for caller in callers]
    assert all(all(map(torch.equal, found[number], alone)) for number in range(3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_forks_multiplies_in_both(weight):
    inputs = xs(3)
    alone = products(weight, inputs, 1)
    products(weight, inputs, 2)
    child = os.fork()
    if child == 0:
        equal = all(map(torch.equal, products(weight, inputs, 2), alone))
        os._exit(0 if equal else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert all(map(torch.equal, products(weight, inputs, 2), alone))


def test_threads_that_have_no_work_use_no_time(weight):
    products(weight, xs(2), 2)
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.1


def test_a_pool_is_kept(weight):
    assert pool(1) is pool(1) and isinstance(pool(1), Pool)


def test_a_process_ends_while_its_threads_wait():
    code = (
        "import torch; from tests.mil.test_pool import *;"
        "w = PackedWeight(make(Scheme((4500, 1024), (4500, 1)))[0], torch.float32);"
        "products(w, xs(2), 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_row_is_computed_once(weight):
    """Rows that fill no chunk, and fewer rows than a chunk has."""
    for rows in (1, 63, 65, 4499):
        small = PackedWeight(make(Scheme((rows, 1024), (rows, 1)))[0], torch.float32)
        group = small._fast._alone
        x = xs(1)[0]
        out = [torch.full((2 * rows,), torch.nan) for _ in range(2)]
        for parts, result in zip((1, 3), out, strict=True):
            group.products(x, 2, result, parts)
        assert not out[0].isnan().any()
        np.testing.assert_array_equal(*out)

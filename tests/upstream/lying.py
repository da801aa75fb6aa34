"""A test file in ExecuTorch's style whose tests lie in the ways that the suite must detect."""

import os
import unittest

import torch

_TEST_RUNTIME = False
if _TEST_RUNTIME:
    from executorch.runtime import Runtime


class TestLying(unittest.TestCase):
    def load(self, variable):
        from pathlib import Path

        self.program = Runtime.get().load_program(Path(os.environ[variable]))
        return self.program.load_method("forward")

    def _compare(self, method, inputs):
        if not _TEST_RUNTIME:
            return
        outputs = method.execute(inputs)
        self.assertTrue(torch.isfinite(outputs[0]).all())

    def test_honest(self):
        if _TEST_RUNTIME:
            inputs = (torch.ones(2, 8), torch.zeros(2, 8))
            self._compare(self.load("DELEGATED"), inputs)
            self.assertTrue(torch.allclose(torch.ones(3), torch.ones(3)))

    def test_wrong_number(self):
        if _TEST_RUNTIME:
            outputs = self.load("DELEGATED").execute((torch.ones(2, 8), torch.zeros(2, 8)))
            self.assertTrue(torch.allclose(outputs[1], torch.zeros(2, 8), atol=1e-2))

    def test_never_executes_core_ml(self):
        if _TEST_RUNTIME:
            outputs = self.load("PORTABLE").execute((torch.ones(2),))
            self.assertTrue(torch.allclose(outputs[0], torch.ones(2) * 2))

    def test_leaves_out_an_assertion(self):
        if _TEST_RUNTIME:
            method = self.load("DELEGATED")
            outputs = method.execute((torch.ones(2, 8), torch.zeros(2, 8)))
            if outputs[0].shape == (7,):
                self.assertTrue(False)
            self.assertIsNotNone(outputs)

    def test_refused_where_it_should_be(self):
        if _TEST_RUNTIME:
            method = self.load("DELEGATED")
            self._compare(method, (torch.ones(2, 8), torch.zeros(2, 8)))
            self.assertRaises(RuntimeError, lambda: self._compare(method, (torch.ones(2),)))

    def test_asks_no_runtime(self):
        self.assertEqual(1 + 1, 2)

    def test_asserts_nothing(self):
        pass

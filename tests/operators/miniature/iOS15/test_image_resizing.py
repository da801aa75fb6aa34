"""Tests with names that the suite lists as impossible: the first passes, the second fails."""

from mini_ops import X, np, predict


class TestResample:
    def test_builder_to_backend_smoke(self):
        np.testing.assert_allclose(predict("fp32"), 1.1 * X, rtol=1e-6)


class TestCropResize:
    def test_builder_to_backend_smoke(self):
        np.testing.assert_allclose(predict("fp32"), 9 * X, rtol=1e-6)

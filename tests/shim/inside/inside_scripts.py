"""Scripts after coremltools' public documentation run unchanged, and check their numbers."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.shim.model import ModelProxy

SCRIPTS = sorted(Path(__file__).parents[1].joinpath("scripts").glob("*.py"))


@pytest.fixture
def compared(monkeypatch):
    """Return a list that collects the number of values of every comparison in a script."""
    sizes = []

    def counting(compare):
        def counted(actual, desired, *rest, **options):
            sizes.append(np.size(desired))
            return compare(actual, desired, *rest, **options)

        return counted

    for name in ("assert_allclose", "assert_array_equal"):
        monkeypatch.setattr(np.testing, name, counting(getattr(np.testing, name)))
    return sizes


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_unchanged(script, compared, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert sum(compared) > 0, "the script compared nothing"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_sees_a_wrong_prediction(script, monkeypatch):
    predict = ModelProxy.predict

    def wrong(self, *arguments):
        return {name: spoilt(value) for name, value in predict(self, *arguments).items()}

    monkeypatch.setattr(ModelProxy, "predict", wrong)
    with pytest.raises(AssertionError):
        runpy.run_path(str(script), run_name="__main__")


def spoilt(value):
    """Return a result that is 2 % off."""
    if isinstance(value, Image.Image):
        return Image.fromarray((np.array(value) * 0.98).astype(np.uint8))
    if isinstance(value, dict):
        return {label: 1.02 * probability for label, probability in value.items()}
    return 1.02 * value if isinstance(value, np.ndarray) else value

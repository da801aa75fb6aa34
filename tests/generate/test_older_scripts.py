"""What the suite of runners takes for the prompt of a script that it runs."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from harness.errors import HarnessError
from harness.suites.runners.older import Older


@pytest.mark.parametrize(
    ("ids", "after"),
    [
        ([1, 5, 6, 9], [9]),  # the prompt
        ([1, 2, 5, 6, 9], [9]),  # and with a BOS that the script adds
        ([1, 6, 5, 9], None),
        ([1, 5, 9, 9, 9], None),
        ([1, 5], None),
    ],
)
def test_a_script_that_feeds_another_prompt_is_caught(monkeypatch, ids, after):
    monkeypatch.setattr(Older, "given_ids", lambda self, prompt: [1, 2, 5, 6])
    older = Older(SimpleNamespace(vocabulary=SimpleNamespace(encode=lambda prompt: [1, 5, 6])))
    call = {"inputs": [torch.tensor([ids]), 0, len(ids)]}
    run = SimpleNamespace(status=0, problem="", calls=[call])
    with nullcontext() if after else pytest.raises(HarnessError, match="neither the prompt"):
        assert older.chosen(run, "") == (ids[: len(ids) - 1], after)

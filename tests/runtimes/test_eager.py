"""`eager:*` and `read_model` on programs without a known model; the suites judge the others."""

from types import SimpleNamespace

import pytest
import torch

from harness.artifact import open_artifact
from harness.errors import ArtifactError
from harness.models.llama import LLAMA
from harness.models.recognise import _config, _cut, _named, _Parts, read_model
from harness.runtimes import get_runtime


@pytest.mark.parametrize("option", ["fp16", "fp32", "fp64"])
def test_a_program_that_is_no_llama_is_refused_with_what_was_found(mixed_program, option):
    path = mixed_program[0]
    problem = (
        f"{path}, method 'forward': not recognised as a Llama or Qwen3: 0 embeddings, "
        r"1 groups of linears \(4 per layer and 1 are expected\), "
        r"0 norms \(2 or 4 per layer and 1 are expected\)"
    )
    with pytest.raises(ArtifactError, match=problem):
        get_runtime(f"eager:{option}").load(open_artifact(path), "forward")


@pytest.mark.parametrize("method", ["prefill", "answer"])
def test_a_method_that_is_not_executable_is_refused(mixed_program, method):
    with pytest.raises(ArtifactError, match=f"no program method '{method}' to read weights from"):
        read_model(open_artifact(mixed_program[0]), method)


def parts(**changes):
    """Return one layer of width 4 with 2 query heads and 1 key-value head of 2, vocabulary 6."""
    sizes = ((4, 2, 2), (4,), (5, 5), (4,), (6,))
    widths = (4, 4, 4, 5, 4)
    found = {
        "embeddings": [torch.rand(6, 4)],
        "norms": [torch.rand(4) for _ in range(3)],
        "epsilons": [1e-5] * 3,
        "groups": [
            [torch.rand(rows, width) for rows in group]
            for group, width in zip(sizes, widths, strict=True)
        ],
    }
    return _Parts(**found | changes)


def artifact(**constants):
    return SimpleNamespace(constants={"head_dim": 2, "n_heads_per_cache": 1} | constants)


def test_sizes_are_read_from_what_was_found():
    config = _config(artifact(), parts(), LLAMA, "here")
    assert (config.dim, config.n_heads, config.n_kv_heads, config.hidden_dim) == (4, 2, 1, 5)
    assert (config.vocab_size, config.head_dim, config.norm_eps) == (6, 2, 1e-5)


def named(found):
    """Return the weights by name, each made."""
    makers = _named(_config(artifact(), found, LLAMA, "here"), found, "here")
    return {name: make() for name, make in makers.items()}


def test_weights_are_named_and_joined_in_order():
    found = parts()
    weights = named(found)
    queries, keys, values = found.groups[0]
    assert torch.equal(weights["layers.0.attention.wk.weight"], keys)
    assert torch.equal(weights["layers.0.attention.wv.weight"], values)
    assert torch.equal(weights["layers.0.attention.wq.weight"], queries)
    assert torch.equal(weights["layers.0.feed_forward.w3.weight"], found.groups[2][1])
    assert torch.equal(weights["layers.0.ffn_norm.weight"], found.norms[1])
    assert torch.equal(weights["norm.weight"], found.norms[2])
    assert torch.equal(weights["output.weight"], found.groups[-1][0])


def test_a_layer_that_was_split_by_rows_is_joined():
    found = parts()
    split = [found.groups[0][0][:1], found.groups[0][0][1:], *found.groups[0][1:]]
    whole = named(found)
    found = parts(**(vars(found) | {"groups": [split, *found.groups[1:]]}))
    joined = named(found)
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("constants", "changes", "problem"),
    [
        ({"head_dim": "two"}, {}, "constant methods 'head_dim' and 'n_heads_per_cache' are needed"),
        ({"head_dim": (2, 2)}, {}, "constant methods 'head_dim'"),
        ({}, {"epsilons": [1e-5, 1e-6]}, "its norms have 2 epsilons, not one"),
        ({}, {"epsilons": []}, "its norms have 0 epsilons, not one"),
        ({"head_dim": 0}, {}, "8 rows of queries, keys and values do not divide into heads of 0"),
        ({"head_dim": 8}, {}, "do not divide into heads of 8"),
        ({"n_heads_per_cache": 3}, {}, "into heads of 2 rows with 3 key-value"),
        ({"n_heads_per_cache": -1}, {}, "do not divide into heads"),
        ({"head_dim": 1}, {}, "attention.wo.weight are made of .*are expected"),
    ],
)
def test_sizes_that_make_no_llama_are_refused(constants, changes, problem):
    with pytest.raises(ArtifactError, match=f"^here: .*{problem}"):
        found = parts(**changes)
        _named(_config(artifact(**constants), found, LLAMA, "here"), found, "here")


def test_weights_of_other_shapes_are_refused():
    config = _config(artifact(), parts(), LLAMA, "here")
    for shapes in ([(7, 4)], [(6, 5)], [(3, 4), (3, 5)], [(6,)], [(6, 4, 1)]):
        group = [torch.rand(shape) for shape in shapes]
        with pytest.raises(ArtifactError, match="here: not recognised.* output.weight are made of"):
            _cut(group, ["output.weight"], config, "here")

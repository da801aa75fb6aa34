"""Integers that lose their high bits in a cast to 16 bits (coremltools 2222, 2626)."""

import time

import numpy as np
import pytest
import tokenizers
from coremltools.converters.mil import Builder as mb

from harness.artifact.hazards.lint import Function
from harness.artifact.hazards.narrowing import check_ids, narrowed_data
from harness.cli import main
from harness.errors import ArtifactError
from tests.hazards.programs import assembled, converted, found, program
from tests.mil.programs import run, save

CODE = "H30"
IDS = np.array([5, 40000, 100000, 128255], np.int32)


def last_id(**options):
    """Pick an id by its position, inside the model: the id passes casts to 16 bits."""

    @program(((4,), "int32"), ((1,), "int32"), target="iOS17")
    def picks(ids, position):
        picked = mb.gather(x=ids, indices=position, axis=0)
        return mb.squeeze(x=mb.expand_dims(x=picked, axes=[0]), axes=[0], name="id")

    return converted(picks, target="iOS17", **options)


def lookup(rows, narrowed=True):
    """Look up a picked id in a table of `rows` rows."""
    table = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)

    @program(((4,), "int32"), ((1,), "int32"), target="iOS17")
    def looks(ids, position):
        picked = mb.gather(x=ids, indices=position, axis=0) if narrowed else ids
        return mb.gather(x=table, indices=picked, axis=0)

    return converted(looks, target="iOS17")


def test_ids_above_16_bits_wrap_and_the_cast_is_named():
    package = last_id()
    got = [int(run(package, IDS, np.array([n], np.int32))[0][0]) for n in range(4)]
    assert got == [5, 40000, 34464, 62719]  # what the bytes say; right is IDS
    (place,) = found(package)[CODE]
    assert place.startswith("cast ")


def test_without_the_pass_the_ids_are_right_and_nothing_is_named():
    import coremltools as ct

    pipeline = ct.PassPipeline()
    pipeline.remove_passes({"common::add_int16_cast"})
    package = last_id(pass_pipeline=pipeline)
    got = [int(run(package, IDS, np.array([n], np.int32))[0][0]) for n in range(4)]
    assert got == IDS.tolist()
    assert CODE not in found(package)


@pytest.mark.parametrize(("rows", "is_named"), [(32000, False), (40000, True), (128256, True)])
def test_a_picked_id_is_bounded_by_the_table_that_it_is_looked_up_in(rows, is_named):
    assert (CODE in found(lookup(rows))) == is_named


@pytest.mark.parametrize("rows", [32000, 128256])
def test_ids_that_are_only_looked_up_are_not_named(rows):
    assert CODE not in found(lookup(rows, narrowed=False))


def argmax_of(width):
    """Return the index of the largest score, which the axis bounds."""

    @program(((2, width), "fp32"), ((1,), "int32"), target="iOS17")
    def searches(scores, row):
        best = mb.reduce_argmax(x=scores, axis=1)
        return mb.gather(x=best, indices=row, axis=0)

    return converted(searches, target="iOS17")


@pytest.mark.parametrize(("width", "is_named"), [(32000, False), (49152, True)])
def test_an_index_is_bounded_by_the_axis_that_it_was_found_on(width, is_named):
    assert (CODE in found(argmax_of(width))) == is_named


def test_arithmetic_keeps_bounds():
    @program(((2, 100), "fp32"), ((1,), "int32"), target="iOS17")
    def scaled(scores, row):
        best = mb.mul(x=mb.reduce_argmax(x=scores, axis=1), y=np.int32(300))
        return mb.gather(x=best, indices=row, axis=0)

    @program(((2, 100), "fp32"), ((1,), "int32"), target="iOS17")
    def large(scores, row):
        best = mb.mul(x=mb.reduce_argmax(x=scores, axis=1), y=np.int32(400))
        return mb.gather(x=best, indices=row, axis=0)

    assert CODE not in found(converted(scaled, target="iOS17"))
    assert CODE in found(converted(large, target="iOS17"))


@pytest.mark.parametrize(("largest", "is_named"), [(30000, False), (40000, True)])
def test_clamped_integers_are_bounded(largest, is_named):
    """`ids.clamp(0, 30000)` is a maximum of a minimum."""
    package = assembled(
        {"ids": ("INT32", (1, 4))},
        [
            ("minimum", {"x": "ids", "y": np.int32(largest)}, [("few", "INT32", (1, 4))]),
            ("maximum", {"x": "few", "y": np.int32(0)}, [("clamped", "INT32", (1, 4))]),
            ("cast", {"x": "clamped"}, [("narrow", "INT16", (1, 4))]),
        ],
    )
    assert (CODE in found(package)) == is_named
    if not is_named:
        assert check_ids([package], 40000) is None


@pytest.mark.parametrize("kind", ["minimum", "maximum"])
def test_integers_with_one_bound_are_named(kind):
    package = assembled(
        {"ids": ("INT32", (4,))},
        [
            (kind, {"x": "ids", "y": np.int32(7)}, [("bounded", "INT32", (4,))]),
            ("cast", {"x": "bounded"}, [("narrow", "INT16", (4,))]),
        ],
    )
    assert CODE in found(package)


@pytest.mark.parametrize(
    ("kind", "by", "dtype", "is_named"),
    [
        ("floor_div", 2, "UINT16", False),
        ("floor_div", 1, "INT16", True),
        ("mod", 32768, "INT16", False),
        ("mod", 32769, "INT16", True),
    ],
)
def test_quotients_and_remainders_are_bounded(kind, by, dtype, is_named):
    package = assembled(
        {"scores": ("FLOAT32", (1, 100_000))},
        [
            ("reduce_argmax", {"x": "scores", "axis": np.int32(1)}, [("best", "INT32", (1,))]),
            (kind, {"x": "best", "y": np.int32(by)}, [("part", "INT32", (1,))]),
            ("cast", {"x": "part"}, [("narrow", dtype, (1,))]),
        ],
    )
    assert (CODE in found(package)) == is_named


def shifted(name, shape, dtype="INT16"):
    """Add 1 to an input and cast the sum to 16 bits."""
    return assembled(
        {name: ("INT32", shape)},
        [
            ("add", {"x": name, "y": np.int32(1)}, [("sum", "INT32", shape)]),
            ("cast", {"x": "sum"}, [("narrow", dtype, shape)]),
        ],
    )


def test_a_model_that_narrows_its_ids_is_refused():
    narrowing = shifted("tokens", (1, 4))
    with pytest.raises(ArtifactError, match=r"cast 'narrow': the integers .* vocabulary of 40000"):
        check_ids([lookup(32000), narrowing], 40000)
    assert check_ids([narrowing], 32768) is None  # no id needs more than 15 bits
    assert check_ids([lookup(32000)], 40000) is None


@pytest.mark.parametrize(
    "package",
    [
        shifted("cache_position", (4,)),
        shifted("position_ids", (1, 4)),
        shifted("tokens", (1, 4), "UINT16"),
    ],
)
def test_other_integers_that_are_narrowed_are_a_warning(package):
    assert "cast 'narrow': the integers" in check_ids([package], 40000)


def test_no_command_feeds_ids_to_a_model_that_narrows_them(tmp_path, capsys):
    shifted("tokens", (1, 4)).write(tmp_path / "model.mlpackage")
    (tmp_path / "text").write_text("some text to measure")
    words = {f"w{number}": number for number in range(40000)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    call = [str(tmp_path / "model.mlpackage"), "--tokenizer", str(tmp_path / "tokenizer.json")]
    for command in (["run", *call, "--prompt", "a"], ["text", *call, "--text", f"{tmp_path}/text"]):
        assert main(command) == 2
        assert "vocabulary of 40000 cannot be trusted" in capsys.readouterr().err


def test_a_long_chain_of_copies_is_walked_once():
    """Each of 20,000 copies was followed to the end of the chain before: minutes."""
    package = save(lambda mb, a: mb.identity(x=a, name="last"), [(4,)], dtypes=["int32"])
    function = package.model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    (copy,) = [operation for operation in block.operations if operation.type == "identity"]
    for number in range(20_000):
        added = block.operations.add()
        added.CopyFrom(copy)
        added.inputs["x"].arguments[0].name = f"v{number - 1}" if number else "last"
        added.outputs[0].name = f"v{number}"
    start = time.process_time()
    assert not list(narrowed_data(Function(package, "main")))
    assert time.process_time() - start < 30


def sliced(end_of, positions):
    """Slice a cache up to an int16 position plus 1, of a position in range."""
    parameters = {"x": "cache", "end": "narrow", "begin": np.array([0], np.int32)}
    if end_of == "slice_by_size":
        parameters = {"x": "cache", "size": "narrow", "begin": np.array([0], np.int32)}
    return assembled(
        {"cache": ("FLOAT16", (positions,)), "position": ("INT32", (1,))},
        [
            ("add", {"x": "position", "y": np.array([1], np.int32)}, [("end", "INT32", (1,))]),
            ("cast", {"x": "end", "dtype": np.int32(0)}, [("narrow", "INT16", (1,))]),
            (end_of, parameters, [("out", "FLOAT16", (1,))]),
        ],
    )


@pytest.mark.parametrize("kind", ["slice_by_index", "slice_by_size"])
@pytest.mark.parametrize(("positions", "is_named"), [(32767, False), (32768, True)])
def test_an_end_and_a_size_may_be_the_size_of_the_axis(kind, positions, is_named):
    assert (CODE in found(sliced(kind, positions))) == is_named

"""Weight blobs, compared with coremltools' native writer, and broken ones."""

import random
import struct

import numpy as np
import pytest

from harness.artifact.blob import ENTRY_SIZE, HEADER_SIZE, file_problems, read_blob
from harness.errors import ArtifactError

WEIGHTS = {
    "float": np.float32([1.5, -2, 3]),
    "fp16": np.float16([0.5, 65504]),
    "int8": np.int8([-128, 127, 0]),
    "uint8": np.uint8([255, 0, 7, 9]),
    "int16": np.int16([-32768, 5]),
    "uint16": np.uint16([65535, 49152]),
    "int32": np.int32([-(1 << 31), 9]),
    "uint32": np.uint32([(1 << 32) - 1]),
}
DTYPES = {"float": "FLOAT32", "fp16": "FLOAT16"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A weight file by the native writer: its bytes, and the offset of each weight by kind."""
    from coremltools.libmilstoragepython import _BlobStorageWriter

    path = tmp_path_factory.mktemp("weights") / "weight.bin"
    writer = _BlobStorageWriter(str(path))
    offsets = {}
    for kind, array in WEIGHTS.items():
        # the writer takes the bits of fp16
        data = array.view(np.uint16) if kind == "fp16" else array
        offsets[kind] = getattr(writer, f"write_{kind}_data")(data)
    del writer
    return path.read_bytes(), offsets


@pytest.mark.parametrize("kind", WEIGHTS)
def test_it_reads_what_coremltools_wrote(written, kind):
    data, offsets = written
    blob = read_blob(memoryview(data), offsets[kind], "here")
    assert blob.dtype == DTYPES.get(kind, kind.upper())
    assert bytes(blob.data) == WEIGHTS[kind].tobytes()
    assert blob.padding_bits == 0


@pytest.mark.parametrize("kind", ["uint1", "uint2", "uint3", "uint4", "uint6", "int4"])
def test_small_integers_are_unpacked_as_the_native_writer_packs_them(tmp_path, kind):
    from coremltools.libmilstoragepython import _BlobStorageWriter

    from harness.artifact.proto import mil_types
    from harness.mil.types import TensorType
    from harness.mil.values import Constant, _from_bytes

    bits = int(kind[-1])
    values = (np.arange(13) * 5 % (1 << bits)).astype(np.uint8)
    if kind == "int4":
        values = (values.astype(np.int8) - 8).astype(np.int8)
    path = tmp_path / "weight.bin"
    writer = _BlobStorageWriter(str(path))
    offset = getattr(writer, f"write_{kind}_data")(values)
    del writer
    blob = read_blob(memoryview(path.read_bytes()), offset, "here")
    assert blob.dtype == kind.upper()
    assert blob.padding_bits == -len(values) * bits % 8
    dtype = next(found for found in mil_types().values() if found.name == blob.dtype)
    declared = TensorType(dtype, (13,))
    constant = Constant(declared, _from_bytes(blob.data, declared, "here"))
    np.testing.assert_array_equal(constant.array, values)


def entry(sentinel=0xDEADBEEF, number=2, size=4, start=HEADER_SIZE + ENTRY_SIZE):
    header = struct.pack("<II", 1, 2).ljust(HEADER_SIZE, b"\0")
    return (
        header + struct.pack("<IIQQQ", sentinel, number, size, start, 0).ljust(64, b"\0") + b"data"
    )


def test_an_entry_names_its_bytes():
    assert bytes(read_blob(memoryview(entry()), 64, "here").data) == b"data"


@pytest.mark.parametrize(
    ("data", "offset", "problem"),
    [
        (entry(sentinel=1), 64, "no weight at offset 64"),
        (entry(number=99), 64, "no weight at offset 64"),
        (entry(size=5), 64, "the weight at offset 64 claims bytes 128 to 133, but only 132"),
        (entry(start=1 << 63), 64, "claims bytes"),
        (entry(size=(1 << 64) - 1), 64, "claims bytes"),
        (entry(), 1 << 62, "the entry of a weight claims bytes"),
        (entry(), 100, "the entry of a weight claims bytes 100"),
        (entry()[:30], 64, "not a version 2 blob file"),
        (b"", 0, "not a version 2 blob file"),
        (b"\1\0\0\0\1" + entry()[5:], 64, "not a version 2 blob file"),
    ],
)
def test_a_damaged_weight_is_refused(data, offset, problem):
    with pytest.raises(ArtifactError, match=f"here: .*{problem}"):
        read_blob(memoryview(data), offset, "here")


def test_mutated_entries_give_a_sentence_or_bytes_of_the_file(written):
    data, offsets = written
    rng = random.Random(11)
    refused = 0
    for _ in range(5000):
        kind = rng.choice(list(offsets))
        broken = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            # the header's eight bytes, or those of the entry
            place = rng.choice([rng.randrange(8), offsets[kind] + rng.randrange(32)])
            broken[place] = rng.randrange(256)
        try:
            blob = read_blob(memoryview(bytes(broken)), offsets[kind], "here")
            assert len(blob.data) <= len(data)
        except ArtifactError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 1000 < refused < 5000


def test_the_layout_of_the_native_writer_is_sound_and_padding_is_zero(written):
    file, offsets = bytearray(written[0]), sorted(written[1].values())
    assert not list(file_problems(memoryview(file)))
    file[offsets[1] - 1] = 1
    (problem,) = file_problems(memoryview(file))
    assert problem == f"the padding after the weight at offset {offsets[0]} is not zero"

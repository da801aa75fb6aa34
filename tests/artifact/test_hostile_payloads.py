"""A cut or mutated payload of a real program gives a result or an error in one sentence."""

import contextlib
import random
import tracemalloc

import pytest

from harness.artifact import Bundle, open_artifact
from harness.artifact.facts import package_facts
from harness.errors import ArtifactError


@pytest.fixture(scope="module")
def payload(mixed_program):
    """Return the first delegate's flattened package, about 20 kB."""
    return bytes(open_artifact(mixed_program[0]).bundles[0].data)


def look(data):
    """Read all facts of a payload; return the size of its files together."""
    bundle = Bundle(memoryview(data), "here")
    package_facts(bundle.package, bundle.metadata.identifier)
    return sum(len(content) for content in bundle.files.values())


def test_the_whole_payload_is_read(payload):
    assert 0 < look(payload) < len(payload)


@pytest.mark.parametrize("share", range(64))
def test_a_payload_cut_at_the_end_is_refused(payload, share):
    with pytest.raises(ArtifactError, match="not a flattened package"):
        look(payload[: len(payload) * share // 64])


@pytest.mark.parametrize("share", range(1, 64))
def test_a_payload_cut_at_the_beginning_is_refused(payload, share):
    with pytest.raises(ArtifactError, match="here"):
        look(payload[len(payload) * share // 64 :])


def test_a_mutated_payload_gives_a_sentence_or_a_result(payload):
    rng = random.Random(3)
    refused = read = 0
    for number in range(2500):
        broken = bytearray(payload)
        for _ in range(rng.randint(1, 4)):
            # every other mutation is at the end: the file tree is a small part of the payload
            first = len(payload) - 1500 if number % 2 else 0
            broken[rng.randrange(first, len(payload))] = rng.randrange(256)
        try:
            look(bytes(broken))
            read += 1
        except ArtifactError:
            refused += 1
    assert refused > 200 and read > 200


def test_a_mutated_payload_does_not_fill_the_memory(payload):
    rng = random.Random(4)
    look(payload)  # imports the protobuf classes
    tracemalloc.start()
    for _ in range(300):
        broken = bytearray(payload)
        broken[len(payload) - rng.randrange(1, 1500)] = rng.randrange(256)
        with contextlib.suppress(ArtifactError):
            look(bytes(broken))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(payload) + (1 << 20)

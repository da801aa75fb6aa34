"""The limits of sizes that an artifact may ask for, far beyond the needs of any real model.

An artifact is not trusted. One that asks for more is damaged or hostile; the harness refuses it
before it reads or allocates anything for it.
"""

from __future__ import annotations

# Files
MAX_PACKAGE_FILES = 10_000
MAX_MANIFEST_BYTES = 1 << 20
MAX_SPEC_BYTES = 1 << 30  # of model.mlmodel; protobuf itself ends at 2 GB
MAX_METADATA_BYTES = 1 << 24  # of metadata.json; a model of 1,000 layers has under 1 MB
MAX_PROGRAM_BYTES = 1 << 26  # of program.json; a model of 1,000 layers has under 1 MB
MAX_REFERENCE_BYTES = 1 << 16  # of a payload that refers to named data

# The file tree of a flattened package
MAX_TREE_BYTES = 1 << 26  # of JSON; a package has a few files
MAX_TREE_DEPTH = 64

# Tensors
MAX_AXES = 16  # ExecuTorch's runtime has the same limit
MAX_AXIS_SIZE = (1 << 31) - 1
MAX_ELEMENTS = 1 << 26  # of a value in a package of any size; 256 MB in fp32
MAX_ELEMENTS_PER_BYTE = 4  # of a value, for each byte of a package's files; 4-bit weights have 2


def max_elements(package_bytes: int) -> int:
    """Return how many elements a value may have in a program whose files have `package_bytes`.

    A larger package may ask for larger values, such as the fp32 caches of a 1B model.
    """
    return max(MAX_ELEMENTS, MAX_ELEMENTS_PER_BYTE * package_bytes)

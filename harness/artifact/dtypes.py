"""The dtypes of the three formats, under numpy's names.

Sources: ExecuTorch's `scalar_type.fbs`; coremltools' `MIL.proto` (`DataType`) and
`FeatureTypes.proto`; MILBlob's `BlobDataType.hpp`.
"""

from __future__ import annotations

from dataclasses import dataclass

SCALAR_TYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
    15: "bfloat16",
    27: "uint16",
    28: "uint32",
    29: "uint64",
}
"""The number of a .pte tensor's `scalar_type` -> its dtype."""


@dataclass(frozen=True)
class MilType:
    """A MIL dtype: its own name, numpy's name for what holds a value, its size in bits."""

    name: str
    numpy: str
    bits: int


MIL_TYPES = {
    1: MilType("BOOL", "bool", 8),
    2: MilType("STRING", "str", 0),
    10: MilType("FLOAT16", "float16", 16),
    11: MilType("FLOAT32", "float32", 32),
    12: MilType("FLOAT64", "float64", 64),
    21: MilType("INT8", "int8", 8),
    22: MilType("INT16", "int16", 16),
    23: MilType("INT32", "int32", 32),
    24: MilType("INT64", "int64", 64),
    25: MilType("INT4", "int8", 4),
    31: MilType("UINT8", "uint8", 8),
    32: MilType("UINT16", "uint16", 16),
    33: MilType("UINT32", "uint32", 32),
    34: MilType("UINT64", "uint64", 64),
    35: MilType("UINT4", "uint8", 4),
    36: MilType("UINT2", "uint8", 2),
    37: MilType("UINT1", "uint8", 1),
    38: MilType("UINT6", "uint8", 6),
    39: MilType("UINT3", "uint8", 3),
}
"""The number of a MIL `DataType` -> the type."""

BLOB_TYPES = {
    1: "FLOAT16",
    2: "FLOAT32",
    3: "UINT8",
    4: "INT8",
    5: "BFLOAT16",
    6: "INT16",
    7: "UINT16",
    8: "INT4",
    9: "UINT1",
    10: "UINT2",
    11: "UINT4",
    12: "UINT3",
    13: "UINT6",
    14: "INT32",
    15: "UINT32",
}
"""The number in a weight blob's entry -> the name of the MIL dtype."""

FEATURE_TYPES = {
    65568: "float32",
    65600: "float64",
    131104: "int32",
    65552: "float16",
    131080: "int8",
}
"""The number of a feature description's array dtype -> its dtype."""

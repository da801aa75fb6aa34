"""The messages of `MIL.proto`."""

from google.protobuf.internal.containers import (
    MessageMap,
    RepeatedCompositeFieldContainer,
    RepeatedScalarFieldContainer,
)
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

DataType: EnumTypeWrapper
UNUSED_TYPE: int
BOOL: int
STRING: int
FLOAT8E4M3FN: int
FLOAT8E5M2: int
FLOAT16: int
FLOAT32: int
FLOAT64: int
BFLOAT16: int
INT8: int
INT16: int
INT32: int
INT64: int
INT4: int
UINT8: int
UINT16: int
UINT32: int
UINT64: int
UINT4: int
UINT2: int
UINT1: int
UINT6: int
UINT3: int

class Program(Message):
    version: int
    @property
    def functions(self) -> MessageMap[str, Function]: ...
    docString: str
    @property
    def attributes(self) -> MessageMap[str, Value]: ...

class Function(Message):
    @property
    def inputs(self) -> RepeatedCompositeFieldContainer[NamedValueType]: ...
    opset: str
    @property
    def block_specializations(self) -> MessageMap[str, Block]: ...
    @property
    def attributes(self) -> MessageMap[str, Value]: ...

class Block(Message):
    @property
    def inputs(self) -> RepeatedCompositeFieldContainer[NamedValueType]: ...
    @property
    def outputs(self) -> RepeatedScalarFieldContainer[str]: ...
    @property
    def operations(self) -> RepeatedCompositeFieldContainer[Operation]: ...
    @property
    def attributes(self) -> MessageMap[str, Value]: ...

class Argument(Message):
    class Binding(Message):
        name: str
        @property
        def value(self) -> Value: ...

    @property
    def arguments(self) -> RepeatedCompositeFieldContainer[Argument.Binding]: ...

class Operation(Message):
    type: str
    @property
    def inputs(self) -> MessageMap[str, Argument]: ...
    @property
    def outputs(self) -> RepeatedCompositeFieldContainer[NamedValueType]: ...
    @property
    def blocks(self) -> RepeatedCompositeFieldContainer[Block]: ...
    @property
    def attributes(self) -> MessageMap[str, Value]: ...

class NamedValueType(Message):
    name: str
    @property
    def type(self) -> ValueType: ...

class ValueType(Message):
    @property
    def tensorType(self) -> TensorType: ...
    @property
    def listType(self) -> ListType: ...
    @property
    def tupleType(self) -> TupleType: ...
    @property
    def dictionaryType(self) -> DictionaryType: ...
    @property
    def stateType(self) -> StateType: ...

class TensorType(Message):
    dataType: int
    rank: int
    @property
    def dimensions(self) -> RepeatedCompositeFieldContainer[Dimension]: ...
    @property
    def attributes(self) -> MessageMap[str, Value]: ...

class TupleType(Message):
    @property
    def types(self) -> RepeatedCompositeFieldContainer[ValueType]: ...

class ListType(Message):
    @property
    def type(self) -> ValueType: ...
    @property
    def length(self) -> Dimension: ...

class DictionaryType(Message):
    @property
    def keyType(self) -> ValueType: ...
    @property
    def valueType(self) -> ValueType: ...

class StateType(Message):
    @property
    def wrappedType(self) -> ValueType: ...

class Dimension(Message):
    class ConstantDimension(Message):
        size: int

    class UnknownDimension(Message):
        variadic: bool

    @property
    def constant(self) -> Dimension.ConstantDimension: ...
    @property
    def unknown(self) -> Dimension.UnknownDimension: ...

class Value(Message):
    class ImmediateValue(Message):
        @property
        def tensor(self) -> TensorValue: ...
        @property
        def tuple(self) -> TupleValue: ...
        @property
        def list(self) -> ListValue: ...
        @property
        def dictionary(self) -> DictionaryValue: ...

    class BlobFileValue(Message):
        fileName: str
        offset: int

    docString: str
    @property
    def type(self) -> ValueType: ...
    @property
    def immediateValue(self) -> Value.ImmediateValue: ...
    @property
    def blobFileValue(self) -> Value.BlobFileValue: ...

class TensorValue(Message):
    class RepeatedFloats(Message):
        @property
        def values(self) -> RepeatedScalarFieldContainer[float]: ...

    class RepeatedDoubles(Message):
        @property
        def values(self) -> RepeatedScalarFieldContainer[float]: ...

    class RepeatedInts(Message):
        @property
        def values(self) -> RepeatedScalarFieldContainer[int]: ...

    class RepeatedLongInts(Message):
        @property
        def values(self) -> RepeatedScalarFieldContainer[int]: ...

    class RepeatedBools(Message):
        @property
        def values(self) -> RepeatedScalarFieldContainer[bool]: ...

    class RepeatedStrings(Message):
        @property
        def values(self) -> RepeatedScalarFieldContainer[str]: ...

    class RepeatedBytes(Message):
        values: bytes

    @property
    def floats(self) -> TensorValue.RepeatedFloats: ...
    @property
    def ints(self) -> TensorValue.RepeatedInts: ...
    @property
    def bools(self) -> TensorValue.RepeatedBools: ...
    @property
    def strings(self) -> TensorValue.RepeatedStrings: ...
    @property
    def longInts(self) -> TensorValue.RepeatedLongInts: ...
    @property
    def doubles(self) -> TensorValue.RepeatedDoubles: ...
    @property
    def bytes(self) -> TensorValue.RepeatedBytes: ...

class TupleValue(Message):
    @property
    def values(self) -> RepeatedCompositeFieldContainer[Value]: ...

class ListValue(Message):
    @property
    def values(self) -> RepeatedCompositeFieldContainer[Value]: ...

class DictionaryValue(Message):
    class KeyValuePair(Message):
        @property
        def key(self) -> Value: ...
        @property
        def value(self) -> Value: ...

    @property
    def values(self) -> RepeatedCompositeFieldContainer[DictionaryValue.KeyValuePair]: ...

"""The messages of `FeatureTypes.proto`."""

from google.protobuf.internal.containers import (
    RepeatedCompositeFieldContainer,
    RepeatedScalarFieldContainer,
)
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

class Int64FeatureType(Message): ...
class DoubleFeatureType(Message): ...
class StringFeatureType(Message): ...

class SizeRange(Message):
    lowerBound: int
    upperBound: int

class ImageFeatureType(Message):
    ColorSpace: EnumTypeWrapper
    INVALID_COLOR_SPACE: int
    GRAYSCALE: int
    RGB: int
    BGR: int
    GRAYSCALE_FLOAT16: int
    class ImageSize(Message):
        width: int
        height: int

    class EnumeratedImageSizes(Message):
        @property
        def sizes(self) -> RepeatedCompositeFieldContainer[ImageFeatureType.ImageSize]: ...

    class ImageSizeRange(Message):
        @property
        def widthRange(self) -> SizeRange: ...
        @property
        def heightRange(self) -> SizeRange: ...

    width: int
    height: int
    @property
    def enumeratedSizes(self) -> ImageFeatureType.EnumeratedImageSizes: ...
    @property
    def imageSizeRange(self) -> ImageFeatureType.ImageSizeRange: ...
    colorSpace: int

class ArrayFeatureType(Message):
    ArrayDataType: EnumTypeWrapper
    INVALID_ARRAY_DATA_TYPE: int
    FLOAT32: int
    DOUBLE: int
    INT32: int
    INT8: int
    FLOAT16: int
    class Shape(Message):
        @property
        def shape(self) -> RepeatedScalarFieldContainer[int]: ...

    class EnumeratedShapes(Message):
        @property
        def shapes(self) -> RepeatedCompositeFieldContainer[ArrayFeatureType.Shape]: ...

    class ShapeRange(Message):
        @property
        def sizeRanges(self) -> RepeatedCompositeFieldContainer[SizeRange]: ...

    @property
    def shape(self) -> RepeatedScalarFieldContainer[int]: ...
    dataType: int
    @property
    def enumeratedShapes(self) -> ArrayFeatureType.EnumeratedShapes: ...
    @property
    def shapeRange(self) -> ArrayFeatureType.ShapeRange: ...
    intDefaultValue: int
    floatDefaultValue: float
    doubleDefaultValue: float

class DictionaryFeatureType(Message):
    @property
    def int64KeyType(self) -> Int64FeatureType: ...
    @property
    def stringKeyType(self) -> StringFeatureType: ...

class SequenceFeatureType(Message):
    @property
    def int64Type(self) -> Int64FeatureType: ...
    @property
    def stringType(self) -> StringFeatureType: ...
    @property
    def sizeRange(self) -> SizeRange: ...

class StateFeatureType(Message):
    @property
    def arrayType(self) -> ArrayFeatureType: ...

class FeatureType(Message):
    @property
    def int64Type(self) -> Int64FeatureType: ...
    @property
    def doubleType(self) -> DoubleFeatureType: ...
    @property
    def stringType(self) -> StringFeatureType: ...
    @property
    def imageType(self) -> ImageFeatureType: ...
    @property
    def multiArrayType(self) -> ArrayFeatureType: ...
    @property
    def dictionaryType(self) -> DictionaryFeatureType: ...
    @property
    def sequenceType(self) -> SequenceFeatureType: ...
    @property
    def stateType(self) -> StateFeatureType: ...
    isOptional: bool

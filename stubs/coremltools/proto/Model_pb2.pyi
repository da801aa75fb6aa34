"""The messages of `Model.proto` that describe an ML Program; other models are left out."""

from coremltools.proto.FeatureTypes_pb2 import FeatureType
from coremltools.proto.MIL_pb2 import Program
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer, ScalarMap
from google.protobuf.message import Message

class FeatureDescription(Message):
    name: str
    shortDescription: str
    @property
    def type(self) -> FeatureType: ...

class Metadata(Message):
    shortDescription: str
    versionString: str
    author: str
    license: str
    @property
    def userDefined(self) -> ScalarMap[str, str]: ...

class FunctionDescription(Message):
    name: str
    @property
    def input(self) -> RepeatedCompositeFieldContainer[FeatureDescription]: ...
    @property
    def output(self) -> RepeatedCompositeFieldContainer[FeatureDescription]: ...
    @property
    def state(self) -> RepeatedCompositeFieldContainer[FeatureDescription]: ...
    predictedFeatureName: str
    predictedProbabilitiesName: str

class ModelDescription(Message):
    @property
    def functions(self) -> RepeatedCompositeFieldContainer[FunctionDescription]: ...
    defaultFunctionName: str
    @property
    def metadata(self) -> Metadata: ...
    @property
    def input(self) -> RepeatedCompositeFieldContainer[FeatureDescription]: ...
    @property
    def output(self) -> RepeatedCompositeFieldContainer[FeatureDescription]: ...
    @property
    def state(self) -> RepeatedCompositeFieldContainer[FeatureDescription]: ...
    predictedFeatureName: str
    predictedProbabilitiesName: str
    @property
    def trainingInput(self) -> RepeatedCompositeFieldContainer[FeatureDescription]: ...

class Model(Message):
    specificationVersion: int
    @property
    def description(self) -> ModelDescription: ...
    isUpdatable: bool
    @property
    def mlProgram(self) -> Program: ...

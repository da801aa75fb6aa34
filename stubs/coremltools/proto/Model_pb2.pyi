"""The messages of `Model.proto` that ML Programs and pipelines of them use; others are left out."""

from coremltools.proto.FeatureTypes_pb2 import FeatureType
from coremltools.proto.MIL_pb2 import Program
from coremltools.proto.NonMaximumSuppression_pb2 import NonMaximumSuppression
from google.protobuf.internal.containers import (
    RepeatedCompositeFieldContainer,
    RepeatedScalarFieldContainer,
    ScalarMap,
)
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

class Pipeline(Message):
    @property
    def models(self) -> RepeatedCompositeFieldContainer[Model]: ...
    @property
    def names(self) -> RepeatedScalarFieldContainer[str]: ...

class PipelineClassifier(Message):
    @property
    def pipeline(self) -> Pipeline: ...

class PipelineRegressor(Message):
    @property
    def pipeline(self) -> Pipeline: ...

class Model(Message):
    specificationVersion: int
    @property
    def pipeline(self) -> Pipeline: ...
    @property
    def pipelineClassifier(self) -> PipelineClassifier: ...
    @property
    def pipelineRegressor(self) -> PipelineRegressor: ...
    @property
    def nonMaximumSuppression(self) -> NonMaximumSuppression: ...
    @property
    def description(self) -> ModelDescription: ...
    isUpdatable: bool
    @property
    def mlProgram(self) -> Program: ...

"""Core ML's own model that removes overlapping boxes."""

from google.protobuf.message import Message

class NonMaximumSuppression(Message):
    class PickTop(Message):
        perClass: bool

    @property
    def pickTop(self) -> PickTop: ...
    iouThreshold: float
    confidenceThreshold: float
    confidenceInputFeatureName: str
    coordinatesInputFeatureName: str
    iouThresholdInputFeatureName: str
    confidenceThresholdInputFeatureName: str
    confidenceOutputFeatureName: str
    coordinatesOutputFeatureName: str

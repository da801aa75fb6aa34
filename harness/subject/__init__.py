"""An artifact with what it is held against: its model, checkpoint, scheme and reference."""

from harness.subject.subject import Subject

__all__ = ["Subject"]

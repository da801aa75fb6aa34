"""The conformance suite: exports of the fixture models, checked and executed."""

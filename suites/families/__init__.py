"""The families suite: small models of many architectures, through coremltools and our executor."""

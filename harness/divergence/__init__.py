"""Names the first operation at which an artefact leaves its reference."""

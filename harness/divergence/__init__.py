"""Names the first operation at which an artifact leaves its reference."""

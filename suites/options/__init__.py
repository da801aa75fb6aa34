"""Options leave traces: each one changes the artifact as it promises, or the export reports it."""

"""The messages of the files that coremltools' `mlmodel/format` defines, those of an ML Program."""

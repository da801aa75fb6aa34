"""From a checkpoint to an artefact.

:mod:`harness.export.options` says what can be asked for, :mod:`harness.export.executorch` runs
ExecuTorch's own exporter. Neither imports torch.
"""

"""Judges ExecuTorch's own scripts for Core ML models, which run unmodified under our stand-ins.

`script.py` starts a script and records its calls, `places.py` judges them, place by place,
`scenarios.py` says what is run, and `faults.py` breaks the runner to see each place caught.
"""

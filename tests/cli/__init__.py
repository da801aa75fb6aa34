"""Tests of the commands, as a user types them."""

import re

PROGRESS = re.compile(r"^ *\d+\.\d s  .*\n", re.MULTILINE)
"""The lines of a command that takes long, as on a busy machine, or when a Mac's children start."""

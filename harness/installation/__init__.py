"""Whether an installed ExecuTorch carries what a native runner of Core ML models needs. No torch.

Each check takes an `Installation` and returns findings. To add one: write it in the module of its
theme, add a row here, and break a copy of an installation in `tests/installation`.
"""

from __future__ import annotations

from functools import partial

from harness.checks.run import Check
from harness.installation.files import check_files
from harness.installation.headers import check_compile, check_headers
from harness.installation.libraries import check_flattening, check_libraries
from harness.installation.modules import check_modules
from harness.installation.tree import Installation

INSTALLATION_CHECKS: dict[str, Check[Installation]] = {
    name: Check(name, find)
    for name, find in (
        ("install-files", check_files),
        ("install-exporter", partial(check_modules, "install-exporter")),
        ("install-runner", partial(check_modules, "install-runner")),
        ("install-extraction", partial(check_modules, "install-extraction")),
        ("install-flattening", check_flattening),
        ("install-runtime-headers", partial(check_headers, "install-runtime-headers")),
        ("install-module-headers", partial(check_headers, "install-module-headers")),
        ("install-coreml-headers", partial(check_headers, "install-coreml-headers")),
        ("install-compile", check_compile),
        ("install-libraries", check_libraries),
    )
}

__all__ = ["INSTALLATION_CHECKS", "Installation"]

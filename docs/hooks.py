"""Gives mkdocs the project's pages under their paths in the repository.

Links then lead to the same place on GitHub and on the site: from `docs/` to `README.md`, and from a
page to a file of code, of which the site gets a copy.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md"]
PAGES += ["suites/benchmarks/README.md"]
_LINK = re.compile(r"\]\((?!https?:)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the project's pages, and the files to which they link, in place of those of `docs/`."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = {*PAGES, *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))}
    paths |= {target for page in paths for target in _linked(page)}
    own = [File(p, str(ROOT), config.site_dir, config.use_directory_urls) for p in sorted(paths)]
    return Files([*theme, *own])


def _linked(page: str) -> set[str]:
    """Return the files of the repository to which a page links; mkdocs warns of any other."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = {((ROOT / page).parent / target).resolve() for target in _LINK.findall(text)}
    return {path.relative_to(ROOT).as_posix() for path in found if path.is_file()}

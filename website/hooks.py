"""What mkdocs does besides showing ``docs/``: home is the README, the reference is made, links into the tree leave."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # mkdocs takes it away again

from website.reference import pages  # noqa: E402

_LINK = re.compile(r"\]\((?!\w+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in ``docs/``."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    for path, content in [("index.md", _LINK.sub(_seen_from_docs, readme)), ("changes.md", changes), *pages()]:
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files beside ``docs/`` lead into the repository."""
    here = posixpath.dirname(page.file.src_uri)

    def absolute(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, match[1]))
        if not target.startswith("../"):
            return match[0]
        return f"]({config.repo_url}/blob/main/{target.removeprefix('../')}"

    return _LINK.sub(absolute, markdown)


def _seen_from_docs(link: re.Match[str]) -> str:
    return f"]({posixpath.relpath(link[1], 'docs')}"

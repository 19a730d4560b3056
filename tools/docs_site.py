"""Hooks of MkDocs (mkdocs.yml): pages from anywhere in the repository, links that fit both readers.

A Markdown file is written for those who read it in the repository: its links are relative to it,
and may lead to any file. On the site, links to pages lead to pages; of links to other files the
text stays, with the file's path.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"

# Pages of the site that lie elsewhere in the repository.
ELSEWHERE = {
    "index.md": "README.md",
    "data.md": "datasets/README.md",
    "results.md": "RESULTS.md",
    "ablations.md": "configs/ablations/README.md",
    "video_detectors.md": "projects/VideoDetectors/README.md",
    "free_lunch.md": "projects/FreeLunch/README.md",
    "runtime.md": "projects/Runtime/README.md",
    "paper.md": "projects/V2IDETR/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PAGE_OF = {source: page for page, source in ELSEWHERE.items()}

FENCE = re.compile(r"(?ms)^( *)(```+).*?^\1\2 *$")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
ROLE = re.compile(r":(?:class|func|meth|mod|attr):(?=<code>)")  # of docstrings


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside the folder of the site."""
    from mkdocs.structure.files import File

    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    source = ELSEWHERE.get(page.file.src_uri, f"{DOCS}/{page.file.src_uri}")
    return site_links(markdown, source, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave the roles of docstrings out."""
    return ROLE.sub("", html)


def site_links(markdown: str, source: str, page: str) -> str:
    """Markdown of a file of the repository with the links of a page of the site.

    Args:
        markdown: text; code blocks stay as they are.
        source: path of the file in the repository.
        page: path of the page in the site.

    Raises:
        ValueError: a link leads to a file that does not exist.
    """
    parts, end = [], 0
    for block in FENCE.finditer(markdown):
        parts += [_linked(markdown[end : block.start()], source, page), block.group()]
        end = block.end()
    return "".join([*parts, _linked(markdown[end:], source, page)])


def _linked(text: str, source: str, page: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if not path or ":" in path:
            return match.group()
        found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (ROOT / found).exists():
            raise ValueError(f"{source}: links to {target}, but there is no {found}")
        if found in PAGE_OF:
            there = PAGE_OF[found]
        elif found.startswith(f"{DOCS}/"):
            there = found.removeprefix(f"{DOCS}/")
        else:
            return words if found in words else f"{words} (`{found}`)"
        relative = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{image}[{words}]({relative}{hash_sign}{anchor})"

    return LINK.sub(replaced, text)

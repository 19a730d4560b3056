"""The site has pages from all over the repository, whose links lead to its pages."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.docs.pages import ROOT
from tools.docs_site import ELSEWHERE, on_page_content, site_links


@pytest.mark.parametrize(
    ("markdown", "source", "page", "wanted"),
    [
        ("[r](RESULTS.md#a-b)", "README.md", "index.md", "[r](results.md#a-b)"),
        ("[r](../RESULTS.md)", "docs/faq.md", "faq.md", "[r](results.md)"),
        ("[d](docs/faq.md)", "README.md", "index.md", "[d](faq.md)"),
        ("![p](docs/demo.jpg)", "README.md", "index.md", "![p](demo.jpg)"),
        ("[t](training.md#configs)", "docs/faq.md", "faq.md", "[t](training.md#configs)"),
        (
            "[d](../../datasets/README.md)",
            "projects/Runtime/README.md",
            "runtime.md",
            "[d](data.md)",
        ),
        ("[l](LICENSE)", "README.md", "index.md", "l (`LICENSE`)"),
        ("[CITATION.cff](CITATION.cff)", "README.md", "index.md", "CITATION.cff"),
        ("[a](#here) [b](https://arxiv.org)", "README.md", "index.md", None),
        ("```\n[r](RESULTS.md)\n```", "README.md", "index.md", None),
        ("```python\nx[0](missing.md)\n```\n", "README.md", "index.md", None),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(
    markdown: str, source: str, page: str, wanted: str | None
) -> None:
    assert site_links(markdown, source, page) == (markdown if wanted is None else wanted)


def test_a_link_to_nothing_is_an_error_that_names_both_files() -> None:
    with pytest.raises(ValueError, match=r"docs/faq\.md: links to gone\.md, .* no docs/gone\.md"):
        site_links("[x](gone.md)", "docs/faq.md", "faq.md")


@given(st.text(alphabet="ab`[]()!#\n ", max_size=40))
def test_text_without_links_stays_as_it_is(text: str) -> None:
    if "](" not in text:
        assert site_links(text, "README.md", "index.md") == text


def test_every_page_is_in_the_navigation_and_exists() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w/]+\.md", str(yaml.safe_load(text)["nav"])))
    own = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert listed == own | set(ELSEWHERE)
    assert all((ROOT / source).is_file() for source in ELSEWHERE.values())


def test_roles_of_docstrings_are_left_out() -> None:
    html = "see :func:<code>load</code> and <code>:class:x</code>"
    assert (
        on_page_content(html, None, None, None) == "see <code>load</code> and <code>:class:x</code>"
    )


def test_the_version_in_the_citation_is_that_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert version is not None and str(citation["version"]) == version[1]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert "2408.14051" in citation["preferred-citation"]["url"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="requirements-docs.txt")
def test_the_site_is_built_strictly_and_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = list(site.glob("*.html"))
    assert len(pages) > 20
    fetched = re.compile(
        r'<(?:script|img|iframe)[^>]+src="?(?:https?:)?//|<link[^>]+href="?https?://'
    )
    assert not [page.name for page in pages if fetched.search(page.read_text())]
    assert "score_threshold" in (site / "reference.html").read_text()
    shutil.rmtree(site)

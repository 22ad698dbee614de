"""Hooks of MkDocs: the changelog and the result pages that documents link to become pages of the site.

Documents link to what lies beside their folder, `../CHANGELOG.md` and `../benchmarks/results/...`, which a reader of the repository
can follow (from a folder of documents, `../../benchmarks/results/...`). On the site the same files stand at `CHANGELOG/` and
`benchmarks/...`; nothing is copied within the repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

RESULTS = "benchmarks/results/"
CHANGELOG = "CHANGELOG.md"
_OUTSIDE = re.compile(r"(\]\((?:\.\./)*)\.\./(benchmarks/|CHANGELOG\.md)")
_HEADER = re.compile(r'(<div class="md-header__topic">\s*<span class="md-ellipsis">\s*relax_rl)')
_DIALOG = 'class="md-search" data-md-component="search" role="dialog" aria-label="Search"'
_SEVERAL = re.compile(r"(\w+),((?:</span>)?</code></b>)\s*\(<code>\(?((?:<span[^>]*>|</span>|[\w, ])+)\)?</code>\)")
_TAG = re.compile(r"<[^>]*>")
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every page says of which version it tells."""
    package = Path(config.config_file_path).parent / "relax_rl" / "__init__.py"
    found = _VERSION.search(package.read_text(encoding="utf-8"))
    config.copyright = f"{config.site_name} {found[1]}, MIT licence" if found else None
    config.extra["told_version"] = found[1] if found else ""
    if os.environ.get("MIKE_DOCS_VERSION"):  # one of several versions, among which the header lets readers choose
        config.extra |= {"told_version": "", "version": {"provider": "mike"}}
    if not config.repo_url:
        config.edit_uri = None
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog, the benchmarks' own page, and what can be reached from the documents by links."""
    root = Path(config.config_file_path).parent
    files.append(File.generated(config, CHANGELOG, abs_src_path=str(root / CHANGELOG)))
    waiting = {(root / "benchmarks" / "README.md").resolve()}
    for file in files.documentation_pages():
        waiting |= _linked(Path(file.abs_src_path), root) if file.abs_src_path else set()
    added: set[Path] = set()
    while waiting:
        path = waiting.pop()
        added.add(path)
        files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
        if path.suffix == ".md":
            waiting |= _linked(path, root) - added
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to results to their place on the site, and leave single results out of the search."""
    if page.file.src_uri.startswith(RESULTS):
        page.meta["search"] = {"exclude": True}
        return markdown
    return _OUTSIDE.sub(r"\1\2", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Pictures are fetched as they are scrolled to."""
    return html.replace("<img ", '<img loading="lazy" ')


def on_post_page(output: str, config: MkDocsConfig, **_: Any) -> str:
    """Put the version into the header, and give the dialog of the search the name that readers of screens ask for.

    Several attributes before one colon are no type of the first.
    """
    output = _HEADER.sub(rf"\1 {config.extra['told_version']}", output, count=1)
    output = _SEVERAL.sub(lambda found: f"{found[1]}, {_TAG.sub('', found[3])}{found[2]}", output)
    return output.replace('class="md-search" data-md-component="search" role="dialog"', _DIALOG, 1)


def _linked(page: Path, root: Path) -> set[Path]:
    """Files under `benchmarks/` that a page links to."""
    targets = {(page.parent / link).resolve() for link in _LINK.findall(page.read_text(encoding="utf-8"))}
    return {target for target in targets if target.is_relative_to(root / "benchmarks") and target.is_file()}

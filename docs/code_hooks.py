"""Hooks of MkDocs: the examples become pages of the site, and names of code lead to the reference or to the repository.

Documents link to an example where it lies, `../examples/ppo.py`; on the site its page is `examples/ppo/`. A page that shows all
of one has a line `<!-- source: examples/ppo.py -->`. Where the variable REPO_URL says where the repository is, files that
documents name lead there.
"""

from __future__ import annotations

import ast
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

_EXAMPLE = re.compile(r"(\]\((?:\.\./)*)\.\./(examples/\w+)\.py\)")
_SOURCE = re.compile(r"^<!-- source: (examples/\w+\.py) -->$", re.MULTILINE)
_NAMED = re.compile(r"(?<!\[)`(?:examples/)?(\w+)\.py`")
_DOCUMENT = re.compile(r"`docs/([\w/]+\.md)`")
_PLACE = re.compile(r"<code>(relax_rl/[\w/]+)\.py</code>: (<code>[\w.]+</code>(?:, <code>[\w.]+</code>)*)")
_NAME = re.compile(r"<code>([\w.]+)</code>")
_FILE = re.compile(r"<code>((?:relax_rl|tests|benchmarks)/[\w/]+\.py)</code>(?!</a>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each example."""
    for path in sorted((_root(config) / "examples").glob("*.py")):
        content = example_page(path.name, path.read_text(encoding="utf-8"))
        files.append(File.generated(config, f"examples/{path.stem}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Lead links to examples to their pages, show sources where a page asks for them, and link what is only named."""
    root, place = _root(config), page.file.src_uri
    markdown = _EXAMPLE.sub(r"\1\2.md)", markdown)
    markdown = _SOURCE.sub(lambda found: _block((root / found[1]).read_text(encoding="utf-8")), markdown)
    if place == "CHANGELOG.md":
        markdown = markdown.replace("](docs/", "](")
        markdown = _DOCUMENT.sub(lambda found: _linked(found, root / "docs" / found[1], found[1]), markdown)
    if place == "CHANGELOG.md" or place.startswith("examples/"):
        folder = "" if place.startswith("examples/") else "examples/"
        head, fence, code = markdown.partition("\n````python\n")
        names = {path.stem for path in (root / "examples").glob("*.py")} - {Path(place).stem}
        head = _NAMED.sub(lambda found: f"[{found[0]}]({folder}{found[1]}.md)" if found[1] in names else found[0], head)
        markdown = head + fence + code
    if config.repo_url:
        markdown = markdown.replace("clone of the repository", f"clone of [the repository]({config.repo_url})")
    return markdown


def on_env(env: Any, config: MkDocsConfig, files: Files) -> Any:
    """Link the names of code, now that all of the reference is known."""
    autorefs: Any = config.plugins["autorefs"]
    repository, root = (config.repo_url or "").rstrip("/"), _root(config)

    def stored(file: str) -> str | None:
        return f"{repository}/blob/HEAD/{file}" if repository and (root / file).is_file() else None

    for file in files.documentation_pages():
        if (page := file.page) is not None and page.content and not file.src_uri.startswith("benchmarks/results/"):
            page.content = names_linked(page.content, partial(_entry, autorefs, page.url), stored)
    return env


def on_post_page(output: str, **_: Any) -> str:
    """The link to the repository is but a link: the theme's script would ask a forge for numbers of stars."""
    return output.replace(' class="md-source" data-md-component="source"', ' class="md-source"')


def example_page(name: str, code: str) -> str:
    """A script as a page: its docstring as text, and below it the whole of it."""
    told = ast.get_docstring(ast.parse(code)) or ""
    return f"# {name}\n\n{told}\n\n{_block(code)}\n"


def names_linked(html: str, entry: Callable[[str], str | None], stored: Callable[[str], str | None]) -> str:
    """A page on which names of code are links.

    Args:
        html: of the page.
        entry: the address of a name's entry in the reference, None where it has none.
        stored: the address of a file in the repository, None where there is none; it is that of names without an entry too.
    """

    def link(text: str, address: str | None) -> str:
        return f'<a href="{address}">{text}</a>' if address else text

    def place(found: re.Match[str]) -> str:
        file, module = f"{found[1]}.py", found[1].removesuffix("/__init__").replace("/", ".")

        def name(each: re.Match[str]) -> str:
            return link(each[0], entry(f"{module}.{each[1]}") or stored(file))

        return f"<code>{file}</code>: {_NAME.sub(name, found[2])}"

    return _FILE.sub(lambda found: link(found[0], stored(found[1])), _PLACE.sub(place, html))


def _entry(autorefs: Any, page: str, name: str) -> str | None:
    try:
        return str(autorefs.get_item_url(name, from_url=page)[0])
    except KeyError:
        return None


def _block(code: str) -> str:
    return f"````python\n{code.rstrip()}\n````"


def _linked(found: re.Match[str], path: Path, target: str) -> str:
    return f"[{found[0]}]({target})" if path.is_file() else found[0]


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent

"""Notebooks: pages whose blocks of Python are run by markdown-exec when the site is built, and that can be downloaded for Jupyter.

A notebook is plain Markdown under `notebooks/`, its blocks plain `python`. What a block prints and draws stands below it on the site;
a block that fails is a warning, at which a strict build ends. A page may name a module that it `needs` in its head, and is shown
as it stands where that is missing; so are all where the variable EXECUTE_NOTEBOOKS is `false`, for a quick look at the others.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

FOLDER = "notebooks/"
_BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
_HEAD = re.compile(r"\A---\n.*?^---\n+", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^]]*)\]\((?!https?:)[^)]*\)")
_FIGURES = """```python exec="1" html="1" session="{session}"
import base64
import io
import matplotlib.pyplot

for number in matplotlib.pyplot.get_fignums():
    drawn = matplotlib.pyplot.figure(number)
    titles = [axes.get_title() for axes in drawn.axes if axes.get_title()]
    assert titles, "a figure of a notebook says in a title what it shows"
    content = io.BytesIO()
    drawn.savefig(content, format="png", dpi=130)
    encoded = base64.b64encode(content.getvalue()).decode()
    print(f'<p><img src="data:image/png;base64,{{encoded}}" alt="{{titles[0]}}" width="{{round(drawn.get_figwidth() * 100)}}"></p>')
matplotlib.pyplot.close("all")
```
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put each notebook beside its page, as a file for Jupyter."""
    for file in list(files.documentation_pages()):
        if _is_notebook(file):
            text = Path(file.abs_src_path or "").read_text(encoding="utf-8")
            name = file.src_uri.replace(".md", ".ipynb")
            files.append(File.generated(config, name, content=json.dumps(notebook(text), indent=1) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Have the blocks of a notebook run, each with its figures below it, and lead to the file for Jupyter."""
    if not _is_notebook(page.file):
        return markdown
    needs, session = page.meta.get("needs"), Path(page.file.src_uri).stem
    if needs and find_spec(needs) is None:
        markdown = f"{markdown}\n*Not run here: this notebook needs {needs}, which was missing.*\n"
    elif config.extra["execute_notebooks"]:
        markdown = _BLOCK.sub(lambda block: _run(block[1], session), markdown)
    button = f"[Download for Jupyter]({session}.ipynb){{ .md-button .md-button--primary download }}"
    return re.sub(r"\A(\s*# .*\n)", rf"\1\n{button}\n", markdown)


def notebook(text: str) -> dict[str, Any]:
    """A page as a notebook of Jupyter's format 4.5; links within the site become their text."""
    parts = _BLOCK.split(_HEAD.sub("", text))  # what is no code, code, and so on
    cells = []
    for number, part in enumerate(parts):
        code = number % 2 == 1
        source = (part if code else _LINK.sub(r"\1", part)).strip()
        if source:
            cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)}
            cell["cell_type"] = "code" if code else "markdown"
            if code:
                cell |= {"execution_count": None, "outputs": []}
            cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _is_notebook(file: File) -> bool:
    return file.src_uri.startswith(FOLDER) and file.src_uri.endswith(".md") and file.name != "index"


def _run(code: str, session: str) -> str:
    """A block that markdown-exec runs, and another one behind it that shows what was drawn; both share the page's names."""
    result = ' result="text"' if re.search(r"^\s*print\(", code, re.MULTILINE) else ""
    shown = f'```python exec="1" source="above" session="{session}"{result}\n{code}```\n'
    return f"{shown}\n{_FIGURES.format(session=session)}" if "plt." in code else shown

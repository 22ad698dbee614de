"""The site that MkDocs builds of the documents: no warning, and everything that a page leads to is there."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import relax_rl
from relax_rl import distributions
from tests.shown import blocks
from tests.surface import MODULES

for needed in ("material", "mkdocstrings_handlers.python", "markdown_exec"):
    pytest.importorskip(needed, reason="needs the extra docs")

ROOT = Path(relax_rl.__file__).parent.parent


class Page(HTMLParser):
    """What a page leads to, what it loads to be shown, the anchors in it, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.loads += [given["src"]] if "src" in given else []
        self.loads += [given["href"]] if tag == "link" and given.get("rel") != "canonical" else []

    def handle_data(self, data: str) -> None:
        self.text += data


def hooks_of(name: str) -> ModuleType:
    """A file of hooks, which lies outside of all packages."""
    spec = spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as by `mkdocs build --strict`, which ends with an error after the first warning."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


NOTEBOOKS = sorted(path for path in (ROOT / "docs" / "notebooks").glob("*.md") if path.stem != "index")


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_link_anchor_and_image_resolves(site: Path, pages: dict[Path, Page]) -> None:
    found: dict[str, int] = defaultdict(int)
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            start = site if parts.path.startswith("/") else path.parent
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_relative_to(site) and target.is_file(), f"{path.relative_to(site)} leads to {link}"
            if parts.fragment and target in pages:
                known = pages[target].anchors | {"__toc"}
                assert unquote(parts.fragment) in known, f"{path.relative_to(site)} leads to {link}"
            found[target.suffix] += 1
    assert found[".html"] > 1_000 and found[".png"] > 50, "pages and images were looked at"


def test_results_are_pages_of_the_site(site: Path, pages: dict[Path, Page]) -> None:
    surrogate = pages[site / "surrogate" / "index.html"]
    assert "../benchmarks/results/against_ppo/LunarLander-v3-further-seeds/report/" in surrogate.links
    assert "../benchmarks/results/larger_batches.png" in surrogate.loads
    assert (site / "benchmarks" / "results" / "larger_batches.png").is_file()
    assert (site / "benchmarks" / "index.html").is_file()


def test_nothing_is_fetched_from_elsewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not [load for load in page.loads if urlsplit(load).netloc], path
        assert "mermaid" not in path.read_text(encoding="utf-8"), "drawings load a script from elsewhere"


def test_every_example_has_its_page(site: Path, pages: dict[Path, Page]) -> None:
    """With its source, and led to from the list of all; the page on exporting shows one of them whole."""
    overview = pages[site / "examples" / "index.html"]
    scripts = sorted((ROOT / "examples").glob("*.py"))
    assert len(scripts) >= 15
    for script in scripts:
        page = pages[site / "examples" / script.stem / "index.html"]
        assert f"{script.stem}/" in overview.links, script
        assert script.read_text(encoding="utf-8").splitlines()[-1].strip() in page.text, script
    assert "onnxruntime.InferenceSession(args.policy)" in pages[site / "export" / "index.html"].text
    for path, page in pages.items():
        assert "<!-- source" not in path.read_text(encoding="utf-8"), path
        assert not [link for link in page.links if link.endswith(".py") and "://" not in link], path


def test_names_of_code_lead_to_the_reference(site: Path, pages: dict[Path, Page]) -> None:
    """Without an address of the repository, files lead nowhere, and the header shows no link to it."""
    links = pages[site / "algorithms" / "relax" / "index.html"].links
    assert "../../reference/estimators/#relax_rl.estimators.relax" in links
    for path in pages:
        html = path.read_text(encoding="utf-8")
        assert "/blob/HEAD/" not in html and 'class="md-source"' not in html and 'rel="edit"' not in html, path


def test_with_an_address_files_lead_to_the_repository() -> None:
    hooks = hooks_of("code_hooks")
    known = {"relax_rl.a.b": "../reference/#relax_rl.a.b"}
    html = "<td><code>relax_rl/a.py</code>: <code>b</code>, <code>c</code></td><code>tests/x.py</code>"
    linked = hooks.names_linked(html, known.get, {"relax_rl/a.py": "forge/a.py"}.get)
    for text, address in {"relax_rl/a.py": "forge/a.py", "b": known["relax_rl.a.b"], "c": "forge/a.py"}.items():
        assert f'<a href="{address}"><code>{text}</code></a>' in linked
    assert linked.endswith("<code>tests/x.py</code>"), "a file that is no longer there"
    assert hooks.names_linked(html, lambda name: None, lambda file: None) == html


def test_the_changelog_is_a_page(site: Path, pages: dict[Path, Page]) -> None:
    page = pages[site / "CHANGELOG" / "index.html"]
    assert "../compare/" in page.links and "../examples/run_exported/" in page.links
    assert "../CHANGELOG/" in pages[site / "versioning" / "index.html"].links


def test_what_typesets_formulas_is_there(site: Path, pages: dict[Path, Page]) -> None:
    folder = site / "assets" / "katex"
    css = (folder / "katex.min.css").read_text(encoding="utf-8")
    named = set(re.findall(r"url\(([^)]*)\)", css))
    assert {path.name for path in (folder / "fonts").iterdir()} == {Path(font).name for font in named}
    assert all(font.endswith(".woff2") and (folder / font).is_file() for font in named)
    assert "MIT" in (folder / "LICENSE").read_text(encoding="utf-8")
    for path, page in pages.items():
        loaded = [Path(urlsplit(load).path).name for load in page.loads]
        assert {"katex.min.css", "katex.min.js", "site.js"} <= set(loaded), path
        assert loaded.index("katex.min.js") < loaded.index("site.js"), path
        outside = re.sub(r"\\\(.*?\\\)|\\\[.*?\\\]", "", page.text, flags=re.DOTALL)
        assert "$$" not in outside, f"{path} has a formula that is not marked as one"


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_its_place(pages: dict[Path, Page], site: Path, module: str) -> None:
    page = pages[site / "reference" / module.rpartition(".")[2] / "index.html"]
    here = page.anchors | pages[site / "reference" / "relax_rl" / "index.html"].anchors
    for name in import_module(module).__all__:
        # Where a file has the name of a function of its own, its page names both.
        assert here & {f"{module}.{name}", f"relax_rl.{name}", f"{module}.{name}.{name}"}, f"{module}.{name}"


def test_distributions_show_or_lead_to_all_of_their_methods(pages: dict[Path, Page], site: Path) -> None:
    page = site / "reference" / "distributions" / "index.html"
    things = {name: getattr(distributions, name) for name in distributions.__all__}
    kinds = {name: kind for name, kind in things.items() if inspect.isclass(kind)}
    protocols = {name: kind for name, kind in kinds.items() if getattr(kind, "_is_protocol", False)}
    html = page.read_text(encoding="utf-8")
    for part in re.split(r'(?=<h3 id="relax_rl\.distributions\.)', html)[1:]:
        name = part.partition('"')[2].partition('"')[0].rpartition(".")[2]
        for protocol, described in protocols.items() if name not in protocols else ():
            for method in (
                each for each in vars(described) if not each.startswith("_") and hasattr(things[name], each)
            ):
                found = f'id="relax_rl.distributions.{name}.{method}"', f'#relax_rl.distributions.{protocol}.{method}"'
                assert any(each in part for each in found), f"{name}.{method}"
        kinds.pop(name, None)
    assert not kinds, "have no heading"


def test_reference_is_cross_linked(pages: dict[Path, Page], site: Path) -> None:
    page = pages[site / "reference" / "relax_rl" / "index.html"]
    assert "#relax_rl.AgentConfig" in page.links, "types of signatures lead to their classes"
    assert "steps, updates, episodes" in page.text, "several attributes before one colon"
    assert "Grathwohl" in page.text and "Raises:" in page.text, "docstrings are there"


def test_every_page_says_of_which_version_it_tells(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert f"relax_rl {relax_rl.__version__}, MIT licence" in page.text, path
        header = page.text.partition("MIT licence")[0]
        assert f"relax_rl {relax_rl.__version__}" in header, path


def test_nothing_but_documents_and_results_is_published(site: Path) -> None:
    beside = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.suffix in (".py", ".csv", ".json")}
    assert beside == {"search/search_index.json"}


def test_pages_come_with_what_readers_expect(site: Path, pages: dict[Path, Page]) -> None:
    text = (site / "library" / "index.html").read_text(encoding="utf-8")
    assert '<span class="kn">from</span>' in text, "code is highlighted"
    assert "content.code.copy" in text and 'data-md-color-scheme="slate"' in text and "md-search" in text


def test_markdown_comes_out_as_on_the_forge(pages: dict[Path, Page]) -> None:
    """Lists need an empty line before them and tables their pipes, which not every renderer asks for; headings may have numbers."""
    for path, page in pages.items():
        stray = re.findall(r"^(?:[-*] |\d\. ).*\S|^\|.*\||^#+ .*|^```.*|!\[.*?\]\(.*?\)", page.text, re.MULTILINE)
        found = [line for line in stray if not line.endswith("¶")]
        assert not [line for line in found if "results" not in path.parts], (path, found)


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_run(site: Path, pages: dict[Path, Page], source: Path) -> None:
    """The build is strict, so that nothing in them has failed; what they say and draw is on the page."""
    page = pages[site / "notebooks" / source.stem / "index.html"]
    code = blocks(source, "python")
    figures = [load for load in page.loads if load.startswith("data:image/png;base64,")]
    assert len(figures) == sum("plt.subplots" in block for block in code) >= 1
    html = (site / "notebooks" / source.stem / "index.html").read_text(encoding="utf-8")
    said = sum(re.search(r"^\s*print\(", block, re.MULTILINE) is not None for block in code)
    assert html.count("<pre><span></span><code>") == len(code) + said > len(code), (
        "what it prints stands below each block"
    )
    assert 'alt=""' not in html
    assert f"../{source.stem}.ipynb" in page.links
    assert f"{source.name}" in (source.parent / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_can_be_downloaded(site: Path, source: Path) -> None:
    found = json.loads((site / "notebooks" / f"{source.stem}.ipynb").read_text(encoding="utf-8"))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5) and found["metadata"]["kernelspec"][
        "name"
    ] == "python3"
    code = ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "code"]
    assert code == [block.strip() for block in blocks(source, "python")]
    words = ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "markdown"]
    assert words[0].startswith("# ") and not any("```" in text or ".md" in text for text in words)
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])


def test_a_site_of_several_versions_lets_readers_choose(tmp_path: Path) -> None:
    pytest.importorskip("mike", reason="needs the extra docs")
    files = {
        "mkdocs.yml": f"site_name: relax_rl\ntheme: {{name: material, font: false}}\nhooks: [{ROOT}/docs/site_hooks.py]\n",
        "docs/index.md": "# Home\n",
        "CHANGELOG.md": "# Changelog\n",
        "benchmarks/README.md": "# Benchmarks\n",
        "relax_rl/__init__.py": '__version__ = "1.2.3"\n',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def run(*command: str) -> str:
        who = {f"GIT_{role}_{what}": f"a@{what}" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, **who, "PATH": path}
        return subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, text=True).stdout

    run("git", "init", "--quiet")
    run("git", "commit", "--quiet", "--allow-empty", "--message", "Begin")
    run("mike", "deploy", "--update-aliases", "--alias-type", "copy", "1.2.3", "latest")
    told = json.loads(run("git", "show", "gh-pages:versions.json"))
    assert [(each["version"], each["aliases"]) for each in told] == [("1.2.3", ["latest"])]
    page = run("git", "show", "gh-pages:1.2.3/index.html")
    assert '"provider": "mike"' in page and "relax_rl 1.2.3, MIT licence" in page
    header = re.search(r'md-header__topic">.*?</div>', page, re.DOTALL)
    assert header is not None and "1.2.3" not in header[0]

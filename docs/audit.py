"""`make docs-audit`: looks at pages of the built site as a reader's browser shows them, and fails on what shuts readers out.

Each page is opened light and dark, wide and as narrow as a telephone. axe-core looks for violations of WCAG; those that it
calls serious or critical fail, and so do formulas that are not typeset, images that do not load, pages that are wider than the
window, errors of scripts and of the console, and anything that is asked of another host. Of the rules of WCAG and of those that
axe-core calls best practice, at least 95% must pass each. Screenshots lie in `build/audit`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

PAGES = ("", "algorithms/relax/", "estimators/", "reference/relax_rl/", "results/")
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SIZES = ((1280, 900), (380, 800))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
GRAVE = ("serious", "critical")
LEAST = 95
"""Per cent of rules that must pass."""
_NOT_TYPESET = "() => [...document.querySelectorAll('.arithmatex:not(:has(.katex))')].map(x => x.textContent)"
_TOO_WIDE = "() => document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
_NOT_LOADED = "() => [...document.images].filter(x => x.naturalWidth === 0).map(x => x.src)"
_ALL_IMAGES = "() => document.querySelectorAll('img').forEach(image => image.loading = 'eager')"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing of each file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit pages; returns the exit code."""
    parser = argparse.ArgumentParser(description="Audit pages of the built site.")
    parser.add_argument("pages", nargs="*", default=PAGES, help="paths on the site (default: five of them)")
    parser.add_argument("--site", type=Path, default=Path("build/site"), help="folder of the built site")
    parser.add_argument("--out", type=Path, default=Path("build/audit"), help="folder of the screenshots")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        found = browser_of(playwright.chromium.executable_path)
        if found is None:
            print(
                f"docs-audit: no browser was found, and playwright could install none; install one of {', '.join(BROWSERS)}"
            )
            return 1
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        with serving(given.site) as address:
            faults = [fault for page in given.pages for fault in audited(browser, address, page, given.out)]
        browser.close()
    print(*faults, f"{len(faults)} faults; screenshots in {given.out}", sep="\n")
    return 1 if faults else 0


def browser_of(own: str) -> str | None:
    """A Chromium: one that is installed, else playwright's own, which is fetched where it is not there."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and not Path(own).is_file():
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)
    return found or (own if Path(own).is_file() else None)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address at which a folder is served meanwhile."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def audited(browser: Browser, address: str, path: str, out: Path) -> Iterator[str]:
    """Faults of a page in every scheme and size, a line each; leaves a screenshot of each."""
    for scheme in SCHEMES:
        for width, height in SIZES:
            name = f"{path.strip('/').replace('/', '-') or 'index'}-{scheme}-{width}"
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
            page, told = context.new_page(), list[str]()
            _listen(page, address, told)
            answer = page.goto(address + path, wait_until="load")
            if answer is None or not answer.ok:
                told.append("there is no such page")
            page.evaluate(_ALL_IMAGES)
            page.wait_for_load_state("networkidle")
            told += [f"not typeset: {formula}" for formula in page.evaluate(_NOT_TYPESET)]
            beyond = page.evaluate(_TOO_WIDE)
            told += [f"{beyond} pixels wider than the window"] if beyond > 0 else []
            told += [f"not loaded: {image}" for image in page.evaluate(_NOT_LOADED)]
            page.screenshot(path=out / f"{name}.png", full_page=True)
            found = Axe().run(page).response
            told += [_in_a_line(violation) for violation in found["violations"] if violation["impact"] in GRAVE]
            shares = shares_of(found)
            told += [
                f"{share:.0f}% of {what} pass, expected {LEAST}" for what, share in shares.items() if share < LEAST
            ]
            print(f"{name}: " + ", ".join(f"{what} {share:.0f}%" for what, share in shares.items()), flush=True)
            context.close()
            yield from (f"{name}: {fault}" for fault in told)


def shares_of(found: dict[str, Any]) -> dict[str, float]:
    """Per cent of axe-core's rules that a page passes, of WCAG and of best practice."""
    shares = {}
    for what, practice in (("accessibility", False), ("best practices", True)):
        counts = [
            sum(("best-practice" in rule["tags"]) == practice for rule in found[outcome])
            for outcome in ("passes", "violations")
        ]
        shares[what] = 100.0 * counts[0] / max(1, sum(counts))
    return shares


def _listen(page: Page, address: str, told: list[str]) -> None:
    """Tells what goes wrong in a page's scripts, and what it asks of other addresses."""

    def failed(error: Any) -> None:
        told.append(f"script: {error}")

    def logged(message: Any) -> None:
        if message.type == "error":
            told.append(f"console: {message.text}")

    def asked(request: Any) -> None:
        if _is_elsewhere(request.url, address):
            told.append(request.url)

    page.on("pageerror", failed)
    page.on("console", logged)
    page.on("request", asked)


def _in_a_line(violation: dict[str, Any]) -> str:
    """What a violation is, how often, and the first place, with its colours where they are the matter."""
    nodes = violation["nodes"]
    data = [each["data"] for node in nodes for each in node["any"] if isinstance(each.get("data"), dict)]
    colours = {f"{known['fgColor']} on {known['bgColor']}" for known in data if known.get("fgColor")}
    place = " ".join(nodes[0]["html"].split())[:120]
    return f"{violation['id']}, {len(nodes)} times: {place} {' '.join(sorted(colours))}"


def _is_elsewhere(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))


if __name__ == "__main__":
    sys.exit(main())

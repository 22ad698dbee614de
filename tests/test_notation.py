"""Symbols of the documents: one page explains them, pages with formulas lead there, and none has its own for them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.shown import ROOT

DOCS = ROOT / "docs"
NOTATION = DOCS / "learn" / "notation.md"
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$]+\$", re.DOTALL)
OTHERS = {
    r"\hat c": "c, the surrogate",
    r"\epsilon_": r"\varepsilon, noise",
    r"/ \lambda": r"\tau, the temperature",
    r"\sigma_\lambda": r"\tau, the temperature",
    r"\frac{1}{B}": "N rows",
}
"""What would be another symbol for something, and what it is called here."""
PLAIN = re.compile(r"c\^|z~|\bdlog|\bd log|sigma\(|\bsum_|E_[a-z]\b|\blambda\b(?!-return)")
"""Formulas that are not typeset."""


def words(page: Path) -> str:
    """A page without its code."""
    return _CODE.sub("", page.read_text(encoding="utf-8"))


PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if page != NOTATION and page.parent.name not in ("reference", "notebooks") and _FORMULA.search(words(page))
]


def test_pages_with_formulas_are_found() -> None:
    assert {"policy.md", "relax.md", "critics.md", "vae.md", "estimators.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_with_formulas_lead_to_the_notation(page: Path) -> None:
    assert re.search(r"\]\((?:\.\./|learn/)*(?:learn/)?notation\.md", page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_formulas_have_the_symbols_of_all_pages(page: Path) -> None:
    formulas = "".join(_FORMULA.findall(words(page)))
    assert not [f"{symbol}: {meant}" for symbol, meant in OTHERS.items() if symbol in formulas]
    assert not PLAIN.findall(_FORMULA.sub("", words(page))), "to be typeset"

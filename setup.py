"""The one thing about the package that `pyproject.toml` cannot say: its description is the README, readable outside the repository."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

NOTE = """
---

Files that are named in brackets, such as (docs/training.md), lie in the source distribution.
"""


def outside(readme: str) -> str:
    """A README whose links lead nowhere in the repository: pictures are left out, files are named behind their text."""
    readme = re.sub(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n+", "", readme, flags=re.MULTILINE)
    return re.sub(r"\[([^]]*)\]\((?!https?:|#)([^)#]*)[^)]*\)", r"\1 (\2)", readme) + NOTE


setup(
    long_description=outside((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)

"""Published code that this package is compared with, imported from where a reader has put it; none of it is kept here.

A folder, `--peers PATH`, holds checkouts under their repositories' names, and in `packages` what was installed there:

    git clone https://github.com/agadetsky/pytorch-pl-variance-reduction PATH/pytorch-pl-variance-reduction
    git clone https://github.com/wouterkool/estimating-gradients-without-replacement PATH/estimating-gradients-without-replacement
    git clone https://github.com/wouterkool/stochastic-beam-search PATH/stochastic-beam-search
    git clone https://github.com/ermongroup/subsets PATH/subsets
    pip install --no-deps --target PATH/packages relaxit storchastic pyro-ppl pyro-api entmax opt-einsum

Packages that are installed anyhow are found too. What is absent is left out, and said so.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

__all__ = ["PEERS", "load", "on_cpu"]

PEERS = {
    "pytorch-pl-variance-reduction": ("", ("estimators", "distributions", "critics", "utils")),
    "estimating-gradients-without-replacement": ("bernoulli", ("baselines_lib", "gumbel")),
    "stochastic-beam-search": ("fairseq", ("gumbel",)),
    "subsets": ("subsets/knn", ("sorting_operator", "pl")),
    "relaxit": (None, ("relaxit.distributions",)),
    "storchastic": (None, ("storch", "storch.method", "storch.util")),
}
"""By the name of a repository or package: the folder of its modules, None for a package, and the modules that are used."""


def load(root: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The modules of each peer that is there, by its name, and of every peer what it is: a version, a commit, or why not."""
    found: dict[str, Any] = {}
    about: dict[str, str] = {}
    for name, (folder, modules) in PEERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if folder is None:
                    found[name], about[name] = _package(name, modules, root)
                else:
                    found[name], about[name] = _checkout(name, folder, modules, root)
        except (ImportError, OSError) as problem:
            about[name] = f"left out, {problem}"
    return found, about


def _checkout(name: str, folder: str, modules: Sequence[str], root: Path | None) -> tuple[Any, str]:
    """Modules of a checkout, which import each other by their bare names: these are forgotten afterwards."""
    place = root / name / folder if root is not None else None
    if place is None or not place.is_dir():
        raise ImportError(f"no checkout {name} in {root or '--peers'}")
    before = set(sys.modules)
    with _first_on_path(place):
        loaded = {each: importlib.import_module(each) for each in modules}
    for added in set(sys.modules) - before:
        if str(place) in str(getattr(sys.modules[added], "__file__", "")):
            del sys.modules[added]
    return SimpleNamespace(**loaded), _commit(place)


def _package(name: str, modules: Sequence[str], root: Path | None) -> tuple[Any, str]:
    """Modules of a package, by the last part of their names."""
    inside = [root / "packages"] if root is not None and (root / "packages").is_dir() else []
    with _first_on_path(*inside):
        loaded: dict[str, ModuleType] = {each.rpartition(".")[2]: importlib.import_module(each) for each in modules}
        try:
            told = version(name)
        except PackageNotFoundError:
            told = "unknown version"
    return SimpleNamespace(**loaded), told


@contextmanager
def _first_on_path(*folders: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def _commit(place: Path) -> str:
    """Of the checkout, where it is one."""
    command = ["git", "-C", str(place), "log", "-1", "--format=%h %cs"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "a copy without history"


def on_cpu(function: Callable[[], Any]) -> Any:
    """What code gives that calls `.cuda()` on its tensors, on a machine without a GPU."""
    with patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self):
        return function()

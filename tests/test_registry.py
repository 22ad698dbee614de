"""Estimators by name: that each entry is what it says, and that the documentation's table is the registry's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import relax_rl
from relax_rl.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    Gamma,
    Matching,
    MultiCategorical,
    Ordinal,
    PlackettLuce,
    Poisson,
    Subset,
)
from relax_rl.estimators import ESTIMATORS, Estimate, MovingAverage, describe, estimator_table, make_estimator

DOCUMENT = Path(relax_rl.__file__).parent.parent / "docs" / "estimators.md"
ROWS = 6
DISTS: dict[str, Any] = {
    "bits": Bernoulli(torch.randn(ROWS, 3)),
    "categories": Categorical(torch.randn(ROWS, 3), one_hot=True),
    "factors": MultiCategorical(torch.randn(ROWS, 5), (2, 3), one_hot=True),
    "counts": Poisson(torch.randn(ROWS, 3)),
    "ranks": Ordinal(torch.randn(ROWS, 3)),
    "orders": PlackettLuce(torch.randn(ROWS, 3), one_hot=True),
    "subsets": Subset(torch.randn(ROWS, 3), 2, one_hot=True),
    "matchings": Matching(torch.randn(ROWS, 9), one_hot=True),
    "continuous": DiagGaussian(torch.randn(ROWS, 6)),
    "positive": Gamma(torch.randn(ROWS, 6)),
}
GIVEN: dict[str, Any] = {
    "surrogate": lambda z: torch.tanh(z).sum(-1),
    "baseline": torch.zeros(ROWS),
    "average": MovingAverage(),
}
every = pytest.mark.parametrize("name", ESTIMATORS)


class Counted:
    """f, that counts the rows it was asked for and refuses to be differentiated unless allowed."""

    def __init__(self, *, differentiable: bool) -> None:
        self.differentiable, self.rows = differentiable, 0

    def __call__(self, b: Tensor) -> Tensor:
        self.rows += b.shape[:-1].numel()
        value = torch.sin(2 * b) @ torch.linspace(-1.0, 2.0, b.shape[-1]) + b[..., 0] * b[..., -1]
        return value if self.differentiable else value.detach()


def estimate(name: str, kind: str, f: Any) -> Estimate:
    options = {need: GIVEN[need] for need in describe(name).needs}
    if name != "enumerated":
        options["generator"] = torch.Generator().manual_seed(0)
    return make_estimator(name, **options)(f, DISTS[kind])


@every
def test_defined_for_the_outcomes_it_names_and_refused_elsewhere(name: str) -> None:
    info = describe(name)
    f = Counted(differentiable=True)
    for kind, dist in DISTS.items():
        if kind in info.outcomes:
            found = estimate(name, kind, f)
            assert found.grad.shape == dist.params.shape and found.value.shape == (ROWS,)
            assert found.grad.isfinite().all() and found.grad.detach().abs().max() > 0
        else:
            with pytest.raises(ValueError):
                estimate(name, kind, f)


@every
def test_evaluations_of_f_and_whether_it_must_be_differentiable(name: str) -> None:
    info = describe(name)
    f = Counted(differentiable=info.differentiable)
    kind = info.outcomes[0]
    estimate(name, kind, f)
    samples = {"K": {"rloo": 2, "vimco": 5, "arms": 4, "dreg": 5}.get(name, 2), "M": 8}
    count = samples.get(info.evaluations) or int(info.evaluations.split()[0])
    assert f.rows == count * ROWS
    if info.differentiable:
        with pytest.raises(RuntimeError, match="grad"):
            estimate(name, kind, Counted(differentiable=False))


def test_what_the_registry_refuses() -> None:
    with pytest.raises(ValueError, match="unknown estimator 'relaxx'; there are reinforce"):
        make_estimator("relaxx")
    with pytest.raises(ValueError, match="relax needs surrogate"):
        make_estimator("relax")
    with pytest.raises(ValueError, match="no option temperature; it has baseline"):
        make_estimator("reinforce", temperature=0.5)


def test_entries_with_defaults_are_those_of_their_function() -> None:
    names = ("straight-through", "straight-through-gumbel")
    plain, gumbel = (estimate(name, "bits", lambda b: b.sum(-1)) for name in names)
    assert not torch.allclose(plain.grad, gumbel.grad)
    probs = DISTS["bits"].mean
    torch.testing.assert_close(plain.grad, probs * (1 - probs))


def test_the_table_of_the_documentation_is_that_of_the_registry() -> None:
    """But for the formulas, which are typeset there."""
    table = DOCUMENT.read_text(encoding="utf-8").split("<!-- estimators -->\n")[1]
    for shown, known in zip(table.splitlines(), estimator_table().splitlines(), strict=True):
        cells = zip(*(re.split(r"(?<!\\) \| ", line) for line in (shown, known)), strict=True)
        assert all(ours == its or "$" in ours for ours, its in cells), "run `make docs-tables`"
    assert all(f"| `{name}` |" in table for name in ESTIMATORS)

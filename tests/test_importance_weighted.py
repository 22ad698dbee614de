"""The measurement of gradients of the importance-weighted bound: every contestant aims at the same gradient, which is the bound's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import importance_weighted
from benchmarks.importance_weighted import PROBLEMS, SIZE, drawn, log_joint, main
from relax_rl.distributions import Bernoulli, DiagGaussian


def exact(problem: str) -> torch.Tensor:
    """The gradient with one sample: of E[log p(x, b)] plus the entropy of q, by a sum, or by one that is exact for squares."""
    params = PROBLEMS[problem][1].double().clone().requires_grad_()
    if problem == "Bernoulli":
        outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * SIZE).double()
        log_q = Bernoulli(params.expand(len(outcomes), -1)).log_prob(outcomes)
        bound = (log_q.exp() * (log_joint(outcomes.float()).double() - log_q)).sum()
    else:
        mean, log_std = params.chunk(2, -1)
        steps = torch.cat([torch.eye(SIZE), -torch.eye(SIZE)]).double() * SIZE**0.5  # of a cubature rule of degree 3
        points = mean + log_std.exp() * steps
        prior = DiagGaussian(torch.zeros(1, 2 * SIZE).double()).log_prob(points)
        off = importance_weighted.X.double() - points @ importance_weighted.WEIGHTS.T.double()
        bound = (prior - 0.5 * off.square().sum(-1)).mean() + DiagGaussian(params).entropy().sum()
    (gradient,) = torch.autograd.grad(bound, params)
    return gradient[0]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradients_aim_at_that_of_the_bound(problem: str) -> None:
    names = PROBLEMS[problem][2]
    for name in names if problem == "Gaussian" else names[:1]:
        if not name.startswith("vimco"):
            found = drawn(problem, name, 1, 20_000, seed=0)
            error = found.std(0) / len(found) ** 0.5
            assert ((found.mean(0) - exact(problem)).abs() < 4.5 * error).all(), name
    of_five = {name: drawn(problem, name, 5, 20_000, seed=0) for name in names[1:]}
    for name, found in of_five.items():
        off = found.mean(0) - of_five[names[-1]].mean(0)
        error = (found.var(0) + of_five[names[-1]].var(0)).sqrt() / len(found) ** 0.5
        assert (off.abs() <= 4.5 * error).all(), name


def test_results_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance_weighted, "RESULTS", tmp_path)
    monkeypatch.setattr(importance_weighted, "CHUNK", 20)
    monkeypatch.setattr(sys, "argv", ["importance_weighted", "--rows", "20"])
    main()
    found = json.loads((tmp_path / "importance_weighted.json").read_text())["found"]
    assert {each["estimator"] for each in found if each["k"] == 1} == {
        "score of the bound",
        "pathwise gradient of the bound",
        "dreg",
    }
    assert "## Bernoulli" in (tmp_path / "importance_weighted.md").read_text()
    assert (tmp_path / "importance_weighted.png").stat().st_size > 5_000

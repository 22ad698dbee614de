"""The measurement behind docs/choosing.md: its gradients are exact, and its tables take what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

from benchmarks import decision
from benchmarks.decision import BUDGETS, LEFT_OUT, about, measure, names_for, spread
from benchmarks.decision_problems import FUNCTIONS, KINDS, problem
from benchmarks.decision_tables import choices, pick, report
from relax_rl.estimators import ESTIMATORS, enumerated


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_exact_and_f_is_scaled(kind: str, function: str) -> None:
    """By enumeration; for counts and positive numbers by scipy's densities at parameters on either side."""
    found = problem(kind, function)
    params = found.dist.params.double()
    if hasattr(found.dist, "support"):
        expected = enumerated(found.f, found.dist.with_params(params)).grad[0]
        torch.testing.assert_close(found.exact, expected, rtol=1e-6, atol=1e-8)
        return

    def moments(row: list[float]) -> tuple[float, float]:
        if kind == "counts":
            axes = [torch.arange(60.0, dtype=torch.float64)] * 2
            weights = [torch.from_numpy(stats.poisson.pmf(axes[0], torch.tensor(x).exp())) for x in row]
        else:
            root = torch.linspace(1e-3, 6.0, 500, dtype=torch.float64)  # of the numbers, which are denser near 0
            axes = [root.square()] * 2
            shape, rate = torch.tensor(row, dtype=torch.float64).exp().chunk(2)
            weights = [
                root * torch.from_numpy(stats.gamma.pdf(axes[0], float(a), scale=1 / float(r)))
                for a, r in zip(shape, rate, strict=True)
            ]
            weights = [w / w.sum() for w in weights]
        values = found.f(torch.cartesian_prod(*axes)).reshape(len(axes[0]), -1)
        mean, square = (float(weights[0] @ x @ weights[1]) for x in (values, values.square()))
        return mean, square - mean**2

    row = params[0].tolist()
    assert moments(row) == pytest.approx((1.0, 1.0), abs=2e-3)
    for k, slope in enumerate(found.exact.tolist()):
        up, down = ([x + (1e-3 if j == k else 0.0) * sign for j, x in enumerate(row)] for sign in (1, -1))
        assert (moments(up)[0] - moments(down)[0]) / 2e-3 == pytest.approx(slope, abs=5e-3)


def test_everything_the_registry_allows_is_asked() -> None:
    for kind in KINDS:
        allowed = {name for name, info in ESTIMATORS.items() if kind in info.outcomes}
        assert {name for name in names_for(kind) if ", " not in name} == allowed - LEFT_OUT.keys()
    assert about("relax, c = f + r")["asked"] == "3" and about("relax, c = f + r")["differentiable"]
    assert about("concrete")["biased"] and not about("rebar")["biased"]


def test_errors_are_those_of_the_budget() -> None:
    """Unbiased ones divide their variance, the others keep their bias; what the budget does not allow is not there."""
    found = measure(problem("bits", "smooth"), ["rloo", "arm", "straight-through", "rebar"], 5, 4_000)
    by = {(entry["estimator"], entry["budget"]): entry for entry in found}
    assert ("rloo", 1) not in by and ("rebar", 2) not in by and ("arm", 1) not in by
    assert by["arm", 16]["mse"] == pytest.approx(by["arm", 2]["mse"] / 8)
    assert by["rebar", 4]["estimates"] == 1 and by["rebar", 16]["estimates"] == 5
    through = [by["straight-through", budget] for budget in BUDGETS]
    assert through[0]["bias2"] > 0 and through[-1]["mse"] > through[-1]["bias2"]
    assert through[0]["mse"] - through[0]["bias2"] == pytest.approx(16 * (through[-1]["mse"] - through[-1]["bias2"]))
    exact = torch.tensor([1.0, -2.0])
    rows = exact * 1.1 + torch.randn(100_000, 2, generator=torch.Generator().manual_seed(1))
    told = spread(rows, exact)
    assert told["variance"] == pytest.approx(2.0 / 5.0, rel=0.02) and told["bias2"] == pytest.approx(0.01, rel=0.2)


def entry(estimator: str, function: str, mse: float, **more: Any) -> dict[str, Any]:
    base = {"kind": "bits", "budget": 2, "differentiable": False, "kept": False, "mse_error": 0.01}
    return base | {"estimator": estimator, "function": function, "mse": mse} | more


def test_a_choice_is_what_does_well_on_both_functions() -> None:
    found = [
        *(entry("rloo", g, x) for g, x in (("smooth", 2.0), ("rough", 3.0))),
        *(entry("lucky", g, x) for g, x in (("smooth", 1.0), ("rough", 9.0))),
        *(entry("steady", g, x) for g, x in (("smooth", 1.5), ("rough", 2.4))),
        *(entry("slopes", g, x, differentiable=True) for g, x in (("smooth", 0.9), ("rough", 2.0))),
        *(entry("trained", g, x, kept=True) for g, x in (("smooth", 1.0), ("rough", 1.5))),
    ]
    name, ratios = pick(found, "bits", 2, differentiable=False, kept=False) or ("", {})
    assert name == "steady" and ratios == pytest.approx({"smooth": 0.75, "rough": 0.8})
    assert (pick(found, "bits", 2, differentiable=True, kept=False) or ("",))[0] == "slopes"
    assert (pick(found, "bits", 2, differentiable=False, kept=True) or ("",))[0] == "trained"
    results = {"found": found, "kinds": {"bits": "some"}, "rows": 1, "steps": 1, "left_out": {}}
    assert "| bits | 2 | `steady` 0.75 / 0.8 | `trained` 0.5 / 0.5 | `slopes` 0.45 / 0.67 |" in choices(results)
    assert "| trained † | 1 ± 0.01 | **1.5 ± 0.01** |" in report(results)  # 0.9 with slopes is the best of the first


def test_the_whole_runs_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["decision", "--kinds", "positive", "--steps", "2", "--rows", "50"])
    decision.main()
    assert json.loads((tmp_path / "decision.json").read_text())["steps"] == 2
    assert (
        "## Positive" in (tmp_path / "decision.md").read_text() and (tmp_path / "decision.png").stat().st_size > 5_000
    )

"""The pages that explain: what their figures and the one with sliders show is what the estimators give."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from relax_rl.distributions import Bernoulli, Categorical
from relax_rl.estimators import marginal, relax

DOCS = Path(__file__).parent.parent / "docs"
SETTINGS = ((0.7, 0.45, 1.0, 0.5, 0.0), (0.3, 0.2, 2.0, 2.0, -0.4), (0.9, 0.5, 0.0, 0.1, 0.25))
"""theta, target, eta, temperature, constant."""


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    pytest.importorskip("matplotlib", reason="draws with it")
    spec = importlib.util.spec_from_file_location("draw_figures", DOCS / "draw_figures.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_estimate_under_the_sliders_is_relax(figures: ModuleType, setting: tuple[float, ...]) -> None:
    theta, target, eta, temperature, constant = setting
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    dist = Bernoulli(torch.logit(torch.tensor(theta, dtype=torch.float64)).repeat(len(u), 1))

    def surrogate(z: torch.Tensor) -> torch.Tensor:
        return constant + eta * (torch.sigmoid(z[..., 0] / temperature) - target) ** 2

    noise = torch.logit(u)[:, None]  # standard logistic
    found = relax(lambda b: (b[..., 0] - target) ** 2, dist, surrogate, noise=noise, coupling="coupled")
    ours = figures.estimates_of_bit(theta, target, eta, temperature, u.numpy(), constant=constant)
    np.testing.assert_allclose(ours, found.grad[:, 0].detach().numpy(), rtol=1e-7, atol=1e-12)


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's script in Node.js")
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_page_computes_the_same(figures: ModuleType, setting: tuple[float, ...]) -> None:
    names = ("theta", "target", "eta", "temperature", "constant")
    code = f"console.log(JSON.stringify(require({str(DOCS / 'learn' / 'explorer.js')!r}).moments({json.dumps(dict(zip(names, setting, strict=True)))})))"
    found = json.loads(subprocess.run(["node", "-e", code], check=True, capture_output=True, text=True).stdout)
    u = (np.arange(2000) + 0.5) / 2000
    expected = figures.estimates_of_bit(*setting[:4], u, constant=setting[4])
    assert found["mean"] == pytest.approx(expected.mean(), rel=1e-9)
    assert found["variance"] == pytest.approx(expected.var(), rel=1e-6)


def test_every_figure_is_drawn_by_the_script(
    figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    figures.main()
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in (DOCS / "learn" / "figures").glob("*.png")}


@pytest.mark.parametrize("actions", [2, 3])
def test_what_the_estimate_of_marginal_sees_of_its_surrogate(actions: int) -> None:
    """Of two actions one number, their values with the probabilities exchanged; of more all: see notebooks/variance.md."""
    dist = Categorical(torch.randn(1, actions, dtype=torch.float64))
    probs = dist.params.softmax(-1)[0]

    def grads(c: torch.Tensor) -> torch.Tensor:
        at_each = (
            torch.full((1, actions), -9.0).index_fill(1, torch.tensor([a]), 99.0).double() for a in range(actions)
        )
        return torch.cat(
            [marginal(torch.ones(1).double(), dist, lambda b: b @ c, noise=noise).grad for noise in at_each]
        )

    nothing = grads(torch.zeros(actions).double())
    seen = torch.stack([(grads(c) - nothing).flatten() for c in torch.eye(actions).double()], -1)
    assert torch.linalg.matrix_rank(seen) == (1 if actions == 2 else actions)
    if actions == 2:
        torch.testing.assert_close(grads(probs * torch.tensor([5.0, -5.0])), nothing)

"""The figures of the papers: progress, variance, the learned surrogate, the densities behind a bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.distributions.noise import logistic_noise
from relax_rl.experiments.toy.problem import Problem
from relax_rl.experiments.toy.training import NEAR, Run
from relax_rl.runs.plotting import make_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["densities_figure", "progress_figure", "surrogate_figure", "variance_figure"]

DRAWS = 20_000
"""Samples in a histogram."""

MAX_BANDS = 8
"""Estimators up to which the quartiles are shaded; more would hide each other."""


def progress_figure(runs: Mapping[str, Run], problem: Problem, title: str) -> bytes:
    """Expected loss and theta against steps, median and quartiles over seeds, as PNG."""
    figure = make_figure(10, 4.2 + 0.05 * len(runs))
    loss, theta = figure.subplots(1, 2)
    styles = _styles(list(runs))
    for name, run in runs.items():
        _band(loss, run, run.expected_loss, name, styles[name], len(runs) <= MAX_BANDS)
        _band(theta, run, run.theta, name, styles[name], len(runs) <= MAX_BANDS)
    loss.axhline(problem.optimum, color="0.3", linestyle="--", linewidth=1, label="optimum")
    loss.axhline(problem.optimum + NEAR, color="0.3", linestyle=":", linewidth=1, label=f"optimum + {NEAR:g}")
    loss.set_ylabel("expected loss E[f(b)]")
    loss.ticklabel_format(axis="y", useOffset=False)
    if problem.values[0] != problem.values[1]:
        theta.axhline(0.0 if problem.values[0] < problem.values[1] else 1.0, color="0.3", linestyle="--", linewidth=1)
    theta.set_ylabel("theta = P(b = 1)" if problem.outcomes == 2 else "theta = P(not the first outcome)")
    theta.set_ylim(-0.03, 1.03)
    _finish_steps(figure, (loss, theta), runs, title)
    return png(figure)


def variance_figure(runs: Mapping[str, Run], title: str, floors: Mapping[str, float]) -> bytes:
    """Log variance of one gradient estimate against steps, median and quartiles over seeds, as PNG.

    Args:
        runs: by estimator; those without variance are left out.
        floors: variances to draw as dashed lines, where they are above 0.
    """
    figure = make_figure(8, 4.6 + 0.07 * len(runs))
    axes = figure.subplots()
    styles = _styles(list(runs))
    for name, run in runs.items():
        if not (run.variance > 0).any():
            continue
        _band(axes, run, run.log_variance, name, styles[name], len(runs) <= MAX_BANDS)
        if run.exact is not None and (run.exact > 0).any():
            median = torch.quantile(run.exact.log(), 0.5, dim=1)
            axes.plot(run.steps, median, color="black", linestyle=":", linewidth=1, zorder=3)
        if floors.get(name, 0.0) > 0:
            level = float(torch.tensor(floors[name]).log())
            axes.axhline(level, color=styles[name]["color"], linewidth=0.8, label=f"floor of {name}")
    axes.plot([], [], color="black", linestyle=":", linewidth=1, label="by quadrature")
    axes.set_ylabel("log variance of one gradient estimate (natural log)")
    _finish_steps(figure, (axes,), runs, title)
    return png(figure)


def surrogate_figure(runs: Mapping[str, Run], problem: Problem, theta: float, order: Sequence[str] = ()) -> bytes:
    """The learned control variates of the first seed against the uniform number behind z, as PNG.

    Args:
        runs: of estimators with a control variate c(z), trained at this theta.
        problem: of one bit.
        theta: fixed.
        order: all estimators of the run, so that each keeps its colour.
    """
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    z = torch.logit(u) + problem.params_at(theta, 1)
    soft = problem.f(torch.sigmoid(z).T)
    first, second = problem.values.tolist()
    constant = (1 - theta) * second + theta * first
    controls = {name: _control(run, z) for name, run in runs.items()}
    styles = _styles(order or list(runs))
    figure = make_figure(10, 4.4)
    whole, zoom = figure.subplots(1, 2)
    for axes in (whole, zoom):
        for value, side in ((first, u < 1 - theta), (second, u > 1 - theta)):
            label = "f(H(z))" if value == first else None
            axes.plot(u[side], torch.full_like(u[side], value), color="black", linewidth=1.5, label=label)
        axes.plot(u, soft, color="0.6", linewidth=1.5, label="f(sigmoid(z))")
        for name, control in controls.items():
            axes.plot(u, control, linewidth=1.5, label=f"c(z) learned by {name}", color=styles[name]["color"])
        axes.axhline(constant, color="black", linestyle=":", linewidth=1.2, label="constant c of variance 0 (RELAX)")
        axes.axvline(1 - theta, color="0.8", linewidth=1, zorder=0)
        axes.set_xlabel("u, with z = logit θ + logit u")
        axes.set_xlim(0, 1)
    whole.set_ylabel("value")
    whole.set_title("all of it", fontsize="medium")
    # The steps of f, and all of that control which comes nearest to the one of variance 0.
    nearest = min(float((control - constant).abs().max()) for control in controls.values())
    half = max(1.5 * abs(second - first), 1.1 * nearest, 1e-4)
    zoom.set_ylim(constant - half, constant + half)
    zoom.ticklabel_format(axis="y", useOffset=False)
    zoom.set_title("near f", fontsize="medium")
    figure.suptitle(f"Control variates at θ = {theta:g}, t = {problem.target:g} (first seed)")
    _legend_below(figure, whole)
    return png(figure)


def densities_figure(theta: float, seed: int) -> bytes:
    """p(z) and p(z | b) beside histograms of relaxed samples and of conditional ones, as PNG."""
    generator = torch.Generator().manual_seed(seed)
    dist = Bernoulli(torch.logit(torch.full((DRAWS, 1), theta, dtype=torch.float64)))
    z = dist.relax(dist.sample_noise(generator))
    grid = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    density = Bernoulli(dist.params[0]).relaxed_log_prob(grid.unsqueeze(-1)).exp()
    figure = make_figure(10, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot(grid, density, color="black", linewidth=1.5, label="p(z)")
    histogram = {"bins": 90, "range": (-9, 9), "density": True, "alpha": 0.45}
    left.hist(z.flatten().numpy(), color="tab:blue", label="relaxed samples z", **histogram)
    for bit, prob, color in ((0.0, 1 - theta, "tab:orange"), (1.0, theta, "tab:green")):
        side = grid > 0 if bit else grid <= 0
        right.plot(grid[side], density[side] / prob, color="black", linewidth=1.5, label=None if bit else "p(z | b)")
        noise = logistic_noise((DRAWS, 1), generator)
        z_tilde = dist.relax_given(torch.full_like(z, bit), noise)
        label = f"conditional samples, b = {bit:.0f}"
        right.hist(z_tilde.flatten().numpy(), color=color, label=label, **histogram)
    for axes in (left, right):
        axes.axvline(0, color="0.7", linewidth=1, zorder=0)
        axes.set_xlabel("z")
        axes.set_xlim(-9, 9)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", frameon=False, fontsize="small")
    left.set_ylabel("density")
    left.set_title("z = logit θ + logistic noise", fontsize="medium")
    right.set_title("z given b = H(z) = 1[z > 0]", fontsize="medium")
    figure.suptitle(f"Densities behind one bit, θ = {theta:g}, {DRAWS:,} samples each")
    return png(figure)


def _control(run: Run, z: Tensor) -> Tensor:
    """c of the first seed at `[1, N]` relaxed samples."""
    assert run.contestant.control is not None
    seeds = run.theta.shape[1]
    with torch.no_grad():
        return run.contestant.control(z.T.unsqueeze(-1).expand(-1, seeds, 1))[:, 0]


def _band(axes: Axes, run: Run, values: Tensor, name: str, style: Mapping[str, Any], shaded: bool) -> None:
    """Median over seeds `[M, S]`, the quartiles around it if `shaded`; infinite values are left out."""
    finite = torch.where(torch.isinf(values), torch.full_like(values, torch.nan), values)
    low, median, high = torch.nanquantile(finite, torch.tensor([0.25, 0.5, 0.75], dtype=finite.dtype), dim=1)
    axes.plot(run.steps, median, label=name, linewidth=1.5, **style)
    if shaded:
        axes.fill_between(run.steps, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of every estimator, by its place in the run: lines may lie on top of each other."""
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(names) <= 10 else "tab20"]
    lines = ("-", (0, (6, 2)), "-", (0, (8, 2, 2, 2)))
    return {name: {"color": palette(k % palette.N), "linestyle": lines[k % len(lines)]} for k, name in enumerate(names)}


def _finish_steps(figure: Figure, panels: Sequence[Axes], runs: Mapping[str, Run], title: str) -> None:
    for axes in panels:
        axes.set_xlabel("steps (one sample each)")
        axes.set_xlim(0, max(run.steps[-1] for run in runs.values()))
        axes.grid(alpha=0.25)
    shown = "median over seeds, shaded: quartiles" if len(runs) <= MAX_BANDS else "median over seeds"
    figure.suptitle(f"{title}\n{shown}", fontsize="medium")
    _legend_below(figure, panels[0])


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize="small"
    )

"""Draws the figures of the pages under `docs/learn`: `python docs/draw_figures.py`.

Everything is exact: enumeration over outcomes, quadrature over the noise, or numbers that `benchmarks/results` holds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["main"]

HERE = Path(__file__).parent
FIGURES = HERE / "learn" / "figures"
RESULTS = HERE.parent / "benchmarks" / "results"
TASKS = ("CartPole-v1", "InvertedPendulum-v5", "Acrobot-v1", "LunarLander-v3", "HalfCheetah-v5", "Hopper-v5")
_BLUE, _ORANGE, _GREEN, _GREY = "#3b6fb6", "#d9822b", "#3a8f5d", "0.55"


def main() -> None:
    """Write every figure."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("baseline", _baseline()),
        ("densities", _densities()),
        ("explorer", _explorer()),
        ("parts", _parts()),
    ):
        figure.savefig(FIGURES / f"{name}.png", dpi=120)


def _panels(columns: int, *, width: float = 4.2, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * columns, height), layout="constrained", facecolor="white")
    found = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found


def _variance(probs: np.ndarray, costs: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """`[N]` variance of (f(b) - B) s(b), summed over the logits of one choice, at baselines `[N]`."""
    scores = np.eye(len(probs)) - probs  # a row for each outcome
    estimates = (costs[None, :, None] - baseline[:, None, None]) * scores
    mean = np.einsum("b,nbl->nl", probs, estimates)
    found: np.ndarray = np.einsum("b,nbl->n", probs, estimates**2) - (mean**2).sum(-1)
    return found


def _baseline() -> Figure:
    figure, panels = _panels(2)
    problems = (
        ("one bit, P(b = 1) = 0.3", np.array([0.7, 0.3]), np.array([1.0, 3.0])),
        ("one of three", np.array([0.5, 0.3, 0.2]), np.array([1.0, 3.0, 2.0])),
    )
    for axes, (title, probs, costs) in zip(panels, problems, strict=True):
        at = np.linspace(-1.0, 5.0, 301)
        found = _variance(probs, costs, at)
        axes.plot(at, found, color=_BLUE)
        best = at[found.argmin()]
        axes.plot(best, found.min(), "o", color=_ORANGE)
        axes.annotate(
            f"B = {best:.1f}: {found.min():.2f}", (best, found.min()), (0, 14), textcoords="offset points", ha="center"
        )
        axes.plot(probs @ costs, _variance(probs, costs, np.array([probs @ costs])), "o", color=_GREEN)
        axes.annotate(
            "mean of f",
            (probs @ costs, _variance(probs, costs, np.array([probs @ costs]))[0]),
            (-16, -4),
            textcoords="offset points",
            ha="right",
        )
        axes.axvline(0.0, color=_GREY, linewidth=0.8, linestyle=":")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("baseline B")
        axes.set_ylabel("variance of an estimate")
        axes.set_ylim(bottom=0.0)
    return figure


def _logistic(z: np.ndarray, logit: float) -> np.ndarray:
    """`[N]` the density of z = logit + log u - log(1 - u)."""
    tail = np.exp(-np.abs(z - logit))
    return tail / (1.0 + tail) ** 2


def _densities() -> Figure:
    figure, panels = _panels(3, width=3.4, height=2.8)
    z = np.linspace(-7.0, 7.0, 701)
    for axes, theta in zip(panels, (0.5, 0.75, 0.95), strict=True):
        density = _logistic(z, float(np.log(theta / (1.0 - theta))))
        axes.plot(z, density, color="black", linewidth=1.2, label="p(z)")
        for outcome, colour in ((0, _ORANGE), (1, _BLUE)):
            within = (z > 0) if outcome else (z <= 0)
            share = theta if outcome else 1.0 - theta
            axes.fill_between(
                z, np.where(within, density / share, np.nan), color=colour, alpha=0.45, label=f"p(z | b = {outcome})"
            )
        axes.set_title(f"P(b = 1) = {theta:g}", fontsize=10)
        axes.set_xlabel("z")
    panels[0].set_ylabel("density")
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def estimates_of_bit(
    theta: float, target: float, eta: float, temperature: float, u: np.ndarray, *, constant: float = 0.0
) -> np.ndarray:
    """`[N]` RELAX's estimate at the logit of one bit, f(b) = (b - target)², at uniform noise `[N]`, the noises coupled.

    The surrogate is c(z) = constant + eta f(sigmoid(z / temperature)), REBAR's and a baseline. With z~ = z only the derivatives of the paths differ: dz = 1, dz~ = theta (1 - exp(-z)) above 0 and
    (1 - theta) (1 - exp(z)) below.
    """
    z = np.log(theta / (1.0 - theta)) + np.log(u) - np.log1p(-u)
    b = z > 0
    relaxed = 1.0 / (1.0 + np.exp(-z / temperature))
    value = constant + eta * (relaxed - target) ** 2
    slope = eta * 2.0 * (relaxed - target) * relaxed * (1.0 - relaxed) / temperature
    moved = np.where(b, theta * (1.0 - np.exp(-np.abs(z))), (1.0 - theta) * (1.0 - np.exp(-np.abs(z))))
    found: np.ndarray = ((b - target) ** 2 - value) * (b - theta) + slope * (1.0 - moved)
    return found


def _explorer() -> Figure:
    theta, target, eta, temperature = 0.7, 0.45, 1.0, 0.5
    figure, (left, right) = _panels(2)
    z = np.linspace(-6.0, 6.0, 601)
    density = _logistic(z, float(np.log(theta / (1.0 - theta))))
    left.fill_between(z, density / density.max() * 0.25, color=_GREY, alpha=0.4, label="p(z), to scale")
    left.plot(z, ((z > 0) - target) ** 2, color="black", label="f(H(z))")
    left.plot(z, eta * (1 / (1 + np.exp(-z / temperature)) - target) ** 2, color=_BLUE, label="c(z)")
    left.set_xlabel("z")
    left.legend(frameon=False, fontsize=8)
    u = (np.arange(2000) + 0.5) / 2000
    for scale, colour, label in ((0.0, _ORANGE, "REINFORCE"), (eta, _BLUE, "with c")):
        found = estimates_of_bit(theta, target, scale, temperature, u)
        right.plot(u, found, color=colour, label=f"{label}: variance {found.var():.5f}")
    right.axhline((1 - 2 * target) * theta * (1 - theta), color=_GREY, linestyle="--", linewidth=1, label="mean")
    right.set_xlabel("noise u")
    right.set_ylabel("estimate")
    right.legend(frameon=False, fontsize=8)
    return figure


def _parts() -> Figure:
    figure, panels = _panels(2, width=5.0, height=3.2)
    for axes, (key, title) in zip(
        panels, (("a2c", "with the V it has"), ("a2c, exact V", "with the true V")), strict=True
    ):
        for row, task in enumerate(TASKS):
            parts = json.loads((RESULTS / "headroom" / f"{task}.json").read_text(encoding="utf-8"))["parts"]
            unit = parts["a2c"]["total"]["value"]
            start = 0.0
            for part, colour in (("action", _BLUE), ("trajectory", _ORANGE), ("state", _GREEN)):
                share = max(0.0, parts[key][part]["value"] / unit)
                label = {"action": "the action", "trajectory": "what follows", "state": "the state"}[part]
                axes.barh(row, share, left=start, color=colour, height=0.65, label=label if row == 0 else "")
                start += share
        axes.set_yticks(range(len(TASKS)), TASKS if key == "a2c" else [""] * len(TASKS))
        axes.invert_yaxis()
        axes.set_xlim(0.0, 1.35)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("variance, times A2C's")
    panels[1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


if __name__ == "__main__":
    main()

"""The registry as the table of the documentation."""

from __future__ import annotations

from relax_rl.estimators.registry import ESTIMATORS

__all__ = ["estimator_table"]


def estimator_table() -> str:
    """The Markdown table of all estimators."""
    lines = [
        "| name | estimate | outcomes | bias | evaluations of f | backward passes | f differentiable | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for info in ESTIMATORS.values():
        formula = info.formula.replace("|", r"\|")
        cells = (
            f"`{info.name}`",
            formula,
            ", ".join(info.outcomes),
            info.bias,
            info.evaluations,
            info.backward_passes,
            "yes" if info.differentiable else "no",
            info.source,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

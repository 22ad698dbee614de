"""The command `variance`: how noisy the gradient of a saved agent is under each estimator, and where the noise comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from relax_rl.runs.displays import text_table
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.zoo import run_of
from relax_rl.settings.options import parse
from relax_rl.variance.measure import VarianceConfig, variance_run

__all__ = ["variance_command"]


def variance_command(args: Sequence[str], prog: str) -> int:
    """`variance`: read the options, measure, show."""
    description = (
        "Measure the variance of the policy gradient of a trained agent, with its parameters frozen: of every estimator "
        "that fits its actions, on the same rollouts, and what trajectory, action and state contribute to it."
    )
    config = parse(VarianceConfig, args, prog=prog, description=description)
    config = replace(config, run=run_of(config.run))
    result = variance_run(config)
    _show(result)
    folder = RunFolder(Path(config.run))
    print(f"  written to  {folder.variance}\n  figure      {folder.variance_figure}")
    return 0


def _show(result: Mapping[str, Any]) -> None:
    print(f"{result['env']} · {result['estimator']} · {result['checkpoint']}")
    rows: list[tuple[str, ...]] = []
    for name, found in result["applied"].items():
        ratio = found["ratio"]
        interval = f"{ratio['low']:.3g} to {ratio['high']:.3g}"
        bias = found["squared_bias"]
        told = f"{bias['value']:.3g} [{bias['low']:.3g}, {bias['high']:.3g}]" if bias else ""
        rows.append((name, f"{found['variance']['value']:.3g}", f"{ratio['value']:.3g}", interval, told))
    columns = ("estimator", "variance", "times A2C's", "95% interval", "squared bias")
    shown = len(columns) if any(row[-1] for row in rows) else len(columns) - 1
    print(text_table("Gradient of one update at frozen parameters", columns[:shown], [row[:shown] for row in rows]))
    print(
        f"over {result['batches']} rollouts of {result['rows_per_batch']} rows; the squared norm of the gradient itself "
        f"is {result['squared_gradient_norm']:.3g}"
    )
    if result["parts"] is None:
        print(f"no parts: {result['parts_left_out']}")
        return
    print(f"\n{_table_of_parts(result['parts'])}")
    print(f"over {result['states']} states with {result['actions']} actions each (value ± half the 95% interval)")


def _table_of_parts(parts: Mapping[str, Any]) -> str:
    unit = 10.0 ** math.floor(math.log10(max(parts["a2c"]["total"]["value"], 1e-30)))
    columns = ("trajectory", "action", "state", "total")
    rows = []
    for name, found in parts.items():
        cells = [
            (found[part]["value"] / unit, (found[part]["high"] - found[part]["low"]) / 2 / unit) for part in columns
        ]
        rows.append((name, *(f"{_short(value)} ± {_short(half)}" for value, half in cells)))
    return text_table(f"Parts of the variance of one row, in units of {unit:g}", ("estimator", *columns), rows)


def _short(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 100 else f"{number:.0f}" if abs(number) < 1e5 else f"{number:.0e}"

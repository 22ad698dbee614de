"""The command `variance`: how noisy the gradient of a saved agent is under each estimator, and where the noise comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.runs.folder import RunFolder
from relax_rl.settings.options import parse
from relax_rl.variance.measure import VarianceConfig, variance_run

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["variance_command"]


def variance_command(args: Sequence[str], prog: str) -> int:
    """`variance`: read the options, measure, show."""
    description = (
        "Measure the variance of the policy gradient of a trained agent, with its parameters frozen: of every estimator "
        "that fits its actions, on the same rollouts, and what trajectory, action and state contribute to it."
    )
    config = parse(VarianceConfig, args, prog=prog, description=description)
    result = variance_run(config)
    _show(result)
    folder = RunFolder(Path(config.run))
    print(f"  written to  {folder.variance}\n  figure      {folder.variance_figure}")
    return 0


def _show(result: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    print(f"{result['env']} · {result['estimator']} · {result['checkpoint']}")
    table = _table("Gradient of one update at frozen parameters", ("variance", "times A2C's", "95% interval"))
    for name, found in result["applied"].items():
        ratio = found["ratio"]
        table.add_row(
            name,
            f"{found['variance']['value']:.3g}",
            f"{ratio['value']:.3g}",
            f"{ratio['low']:.3g} to {ratio['high']:.3g}",
        )
    console.print(table)
    print(
        f"over {result['batches']} rollouts of {result['rows_per_batch']} rows; the squared norm of the gradient itself "
        f"is {result['squared_gradient_norm']:.3g}"
    )
    if result["parts"] is None:
        print(f"no parts: {result['parts_left_out']}")
        return
    print()
    console.print(_table_of_parts(result["parts"]))
    print(f"over {result['states']} states with {result['actions']} actions each (value ± half the 95% interval)")


def _table_of_parts(parts: Mapping[str, Any]) -> Table:
    unit = 10.0 ** math.floor(math.log10(max(parts["a2c"]["total"]["value"], 1e-30)))
    columns = ("trajectory", "action", "state", "total")
    table = _table(f"Parts of the variance of one row, in units of {unit:g}", columns)
    for name, found in parts.items():
        cells = [
            (found[part]["value"] / unit, (found[part]["high"] - found[part]["low"]) / 2 / unit) for part in columns
        ]
        table.add_row(name, *(f"{_short(value)} ± {_short(half)}" for value, half in cells))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    """A table of numbers with a row for each estimator."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("estimator", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _short(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 100 else f"{number:.0f}" if abs(number) < 1e5 else f"{number:.0e}"

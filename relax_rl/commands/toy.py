"""The command `toy`: estimators compared on the toy problem, in one run over several seeds."""

from __future__ import annotations

import math
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.runs.interruption import interruptible
from relax_rl.settings.options import parse

__all__ = ["toy_command"]


def toy_command(args: Sequence[str], prog: str) -> int:
    """`toy`: train, measure, write tables and figures; returns the exit code."""
    config = parse(ToyConfig, args, prog=prog, description="The toy problem of REBAR and RELAX.")
    with interruptible() as interruption:
        from relax_rl.experiments.toy.run import Interrupted, run_toy

        try:
            folder, result = run_toy(config, command=f"{prog} {shlex.join(args)}", interruption=interruption)
        except Interrupted:
            number = interruption.signal or signal.SIGINT
            print(f"error: interrupted by {number.name}, nothing was written", file=sys.stderr)
            return 128 + number
    print("\n".join(_summary(result, folder)), flush=True)
    return 0


def _summary(result: Mapping[str, Any], folder: Path) -> list[str]:
    """The lines that the command ends with."""
    width = max(map(len, result["estimators"]))
    lines = []
    for name, entry in result["estimators"].items():
        log_variance = entry["log_variance"]["median"]
        variance = f"{log_variance:8.2f}" if math.isfinite(log_variance) else f"{log_variance!s:>8}"
        solved = entry["steps_to_solve"]
        tail = f", log variance from step {result['late']:,} on {variance}"
        if result["fixed_theta"] is None:
            steps = "never" if solved < 0 else f"after {solved:,} steps"
            lines.append(
                f"{name:{width}}  loss {entry['final_loss']['median']:.6f}, theta {entry['theta']['median']:.3f}, "
                f"within {result['near']:g} of the optimum {steps}{tail}"
            )
        else:
            lines.append(f"{name:{width}}  theta {result['fixed_theta']:g}{tail}")
    return [*lines, f"  table    {folder / 'toy.md'}", f"  figures  {folder}/*.png"]

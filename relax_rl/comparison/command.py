"""The command `compare`: contestants over environments and seeds, in worker processes, with a report at the end."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from relax_rl.comparison.config import CompareConfig, own_code, read_settings
from relax_rl.errors import SettingsError
from relax_rl.runs.displays import describe_number
from relax_rl.runs.interruption import interruptible
from relax_rl.runs.record import named_by_a_file, option_of
from relax_rl.settings.options import parse

__all__ = ["compare_command"]


def compare_command(args: Sequence[str], prog: str) -> int:
    """`compare`: read the options, train everything, say what came of it; returns the exit code."""
    config = _config(args, prog)
    from relax_rl.comparison.results import UNSCORED
    from relax_rl.comparison.session import run_comparison

    with interruptible() as interruption:
        folder, result = run_comparison(config, command=f"{prog} {shlex.join(args)}", interruption=interruption)
    if result is None:
        number = interruption.signal or signal.SIGINT
        again = "".join(f" {option_of(name, texts)}" for name, texts in own_code(config).items())
        print(
            f"interrupted by {number.name}; go on with  {prog} --resume {shlex.quote(str(folder))}{again}", flush=True
        )
        return 128 + number
    print("\n".join(_told(result, folder)), flush=True)
    return 1 if any(failure["status"] != UNSCORED for failure in result["failures"]) else 0


def _config(args: Sequence[str], prog: str) -> CompareConfig:
    """The options; those of a comparison that is gone on with are the defaults of the ones that are not given."""

    def base(given: Mapping[str, Any]) -> CompareConfig:
        if given.get("resume") is None:
            return CompareConfig()
        # The folder may have been moved since.
        saved = read_settings(Path(given["resume"]) / "settings.json")
        for name, texts in own_code(saved).items():
            if name not in given:
                raise SettingsError(named_by_a_file(name, texts, "comparison"))
        return replace(saved, resume=given["resume"], run_dir=given["resume"], quiet=False)

    config = parse(CompareConfig, args, base=base, prog=prog)
    if config.resume and config.run_dir and Path(config.run_dir).resolve() != Path(config.resume).resolve():
        raise SettingsError(f"run_dir is {config.run_dir!r}, but a comparison stays in its folder, {config.resume!r}")
    return config


def _told(result: Mapping[str, Any], folder: Path) -> list[str]:
    """The lines that the command ends with."""
    if not result["options"]["seeds"]:
        return [f"  report   {folder / 'report.md'}", f"  trials   {folder / 'tuning'}/*/trials.csv"]
    lines = []
    for env, summary in result["environments"].items():
        lines.append(env)
        width = max(map(len, summary["contestants"]), default=0)
        for label, entry in summary["contestants"].items():
            final = entry["final"]
            line = f"  {label:{width}}  final score {describe_number(final['value'])}"
            if len(entry["runs"]) > 1:  # of a single one there is no interval
                line += f" [{describe_number(final['low'])}, {describe_number(final['high'])}]"
            if entry["solved"] is not None:
                line += f", solved {entry['solved']['solved']} of {entry['solved']['runs']}"
            lines.append(f"{line}, {entry['steps_per_second']:,.0f} steps/s")
    if result["failures"]:
        lines.append(f"{len(result['failures'])} failed or without a score, told in the report")
    lines.append(f"  report   {folder / 'report.md'}")
    some = any(summary["contestants"] for summary in result["environments"].values())
    return [*lines, f"  figures  {folder / 'figures'}/*.png"] if some else lines

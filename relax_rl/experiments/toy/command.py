"""The command `toy`: estimators compared on the toy problem, in one run over several seeds."""

from __future__ import annotations

import math
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.errors import SettingsError
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.interruption import Interruption, interruptible
from relax_rl.runs import default_run_dir, versions, write_json
from relax_rl.serialization import write_bytes_atomic, write_text_atomic, writing
from relax_rl.settings.options import parse

if TYPE_CHECKING:
    from relax_rl.experiments.toy.problem import Problem
    from relax_rl.experiments.toy.progress import Progress
    from relax_rl.experiments.toy.training import Run

__all__ = ["run_toy", "toy_command"]

SURROGATE_STEPS = 2000
"""Steps for which control variates are trained at a fixed theta for their figure."""


class _Interrupted(Exception):
    """A signal asked to leave."""


def toy_command(args: Sequence[str], prog: str) -> int:
    """`toy`: train, measure, write tables and figures; returns the exit code."""
    config = parse(ToyConfig, args, prog=prog, description="The toy problem of REBAR and RELAX.")
    with interruptible() as interruption:
        try:
            folder, result = run_toy(config, command=f"{prog} {shlex.join(args)}", interruption=interruption)
        except _Interrupted:
            number = interruption.signal or signal.SIGINT
            print(f"error: interrupted by {number.name}, nothing was written", file=sys.stderr)
            return 128 + number
    print("\n".join(_told(result, folder)), flush=True)
    return 0


def run_toy(
    config: ToyConfig, *, command: str = "", interruption: Interruption | None = None
) -> tuple[Path, dict[str, Any]]:
    """Run the comparison and write its results.

    All files are written at the end, each of them atomically; an interrupted or failed run leaves none.

    Returns:
        the folder, and what its `toy.json` holds.

    Raises:
        SettingsError: an estimator that is unknown or not for this problem; a folder that is in use.
        RelaxRLError: the folder cannot be written.
        TrainingDiverged: a gradient is no longer a finite number.
    """
    path = Path(config.run_dir) if config.run_dir else default_run_dir("toy", f"t{config.target:g}", config.seed)
    _check_unused(path)
    from relax_rl.experiments.toy.contestants import check_estimators
    from relax_rl.experiments.toy.problem import Problem
    from relax_rl.experiments.toy.progress import make_progress
    from relax_rl.experiments.toy.report import curves_csv, markdown, summary

    problem = Problem(config.target, config.outcomes)
    check_estimators(config.estimators, problem)
    progress = make_progress(quiet=config.quiet)
    with _folder(path), _one_thread():
        try:
            progress.say(f"toy problem, t = {config.target:g}, {config.seeds} seeds, results in {path}")
            runs = _train_all(config.estimators, problem, config, config.fixed_theta, progress, interruption)
            at_shown = _surrogates(runs, problem, config, progress, interruption)
        finally:
            progress.end()
        result = summary(runs, problem, config)
        figures = _figures(runs, at_shown, problem, config)
        write_json(path / "config.json", {**asdict(config), "versions": versions(("torch",)), "command": command})
        write_json(path / "toy.json", result)
        write_text_atomic(path / "toy.md", markdown(result))
        write_text_atomic(path / "curves.csv", curves_csv(runs, config))
        for name, png in figures.items():
            write_bytes_atomic(path / f"{name}.png", png)
    return path, result


def _train_all(
    names: Sequence[str],
    problem: Problem,
    config: ToyConfig,
    theta: float | None,
    progress: Progress,
    interruption: Interruption | None,
) -> dict[str, Run]:
    from relax_rl.experiments.toy.training import median, train

    def after_step(step: int, mean_theta: float) -> None:
        progress.step(step, mean_theta)
        if interruption:
            raise _Interrupted

    runs = {}
    for name in names:
        progress.begin(name if theta is None else f"{name} at theta {theta:g}", config.steps)
        runs[name] = run = train(name, problem, config, theta=theta, after_step=after_step)
        progress.say(
            f"{name}: theta {median(run.theta[-1]):.3f}, log variance {median(run.log_variance[-1]):.2f} "
            f"(medians over seeds after {config.steps:,} steps), {run.seconds * 1e6:,.0f} µs a step"
        )
    return runs


def _surrogates(
    runs: Mapping[str, Run],
    problem: Problem,
    config: ToyConfig,
    progress: Progress,
    interruption: Interruption | None,
) -> dict[str, Run]:
    """Estimators with a control variate c(z), trained at a fixed theta: for one bit alone, where it can be drawn."""
    names = [name for name, run in runs.items() if run.contestant.control is not None]
    if problem.outcomes > 2:
        return {}
    if config.fixed_theta is not None:
        return {name: runs[name] for name in names}
    steps = min(config.steps, SURROGATE_STEPS)
    brief = replace(config, steps=steps, seeds=1, log_interval=steps)
    return _train_all(names, problem, brief, config.shown_theta, progress, interruption)


def _figures(
    runs: Mapping[str, Run], at_shown: Mapping[str, Run], problem: Problem, config: ToyConfig
) -> dict[str, bytes]:
    from relax_rl.experiments.toy import figures
    from relax_rl.experiments.toy.report import floors

    what = "one bit" if problem.outcomes == 2 else f"{problem.outcomes} outcomes"
    title = f"Toy problem, t = {config.target:g}, {what}, {config.seeds} seeds"
    drawn: dict[str, Callable[[], bytes]] = {}
    if config.fixed_theta is None:
        drawn["expected_loss"] = lambda: figures.progress_figure(runs, problem, title)
        drawn["log_variance"] = lambda: figures.variance_figure(runs, title, {})
    else:
        theta = config.fixed_theta
        known = floors(problem, theta, list(runs), coupling=config.coupling)
        drawn["log_variance"] = lambda: figures.variance_figure(runs, f"{title}, theta fixed at {theta:g}", known)
    if problem.outcomes == 2:
        shown = config.shown_theta if config.fixed_theta is None else config.fixed_theta
        drawn["densities"] = lambda: figures.densities_figure(shown, config.seed)
        if at_shown:
            drawn["surrogate"] = lambda: figures.surrogate_figure(at_shown, problem, shown, config.estimators)
    return {name: draw() for name, draw in drawn.items()}


def _told(result: Mapping[str, Any], folder: Path) -> list[str]:
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


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the folder, so that one that cannot be written is told of at once; on a failure take it away if empty."""
    existed = path.exists()
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not existed and not any(path.iterdir()):
            path.rmdir()
        raise


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors here are so small that threads would only wait for each other, and sums depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_unused(path: Path) -> None:
    if (path / "config.json").exists() or (path / "toy.json").exists():
        raise SettingsError(f"run_dir is {str(path)!r}, which already holds a run; choose another --run-dir")

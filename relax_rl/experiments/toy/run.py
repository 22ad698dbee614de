"""A run of the toy problem: every estimator trained over several seeds, then tables and figures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from relax_rl.compute.host import set_threads
from relax_rl.compute.serialization import write_bytes_atomic, write_json, write_text_atomic
from relax_rl.experiments.toy import figures
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.toy.contestants import check_estimators
from relax_rl.experiments.toy.problem import Problem, outcomes_in_words
from relax_rl.experiments.toy.report import curves_csv, floors, markdown, summary
from relax_rl.experiments.toy.training import Run, median, train
from relax_rl.runs.displays import Display, make_display
from relax_rl.runs.folder import RunFolder, default_run_dir
from relax_rl.runs.interruption import Interruption
from relax_rl.runs.plotting import never_fatal
from relax_rl.runs.record import write_config

__all__ = ["Interrupted", "run_toy"]

SURROGATE_STEPS = 2000
"""Steps for which control variates are trained at a fixed theta for their figure."""


class Interrupted(Exception):
    """A signal asked to leave."""


def run_toy(
    config: ToyConfig, *, command: str = "", interruption: Interruption | None = None
) -> tuple[Path, dict[str, Any]]:
    """Run the comparison and write its results.

    All files are written at the end, each of them atomically, `config.json` last: where it is not, the same run may be made
    again. An interrupted or failed run leaves none.

    Returns:
        the folder, and what its `toy.json` holds.

    Raises:
        SettingsError: an estimator that is unknown or not for this problem; a folder that is in use.
        RelaxRLError: the folder cannot be written.
        TrainingDiverged: a gradient is no longer a finite number.
        Interrupted: the interruption holds.
    """
    problem = Problem(config.target, config.outcomes)
    check_estimators(config.estimators, problem)
    given, names = config.run_dir, ("toy", f"t{config.target:g}", f"s{config.seed}")
    folder = RunFolder(Path(given) if given else default_run_dir(*names))
    path = folder.path
    with _made(folder, ours=not given or not os.path.exists(path)), ExitStack() as stack:
        folder.check_unused(resumable=False)
        folder.sweep()
        display = make_display("mean theta {:.3f}".format, quiet=config.quiet)
        stack.callback(display.end)
        # Tensors here are so small that threads would only wait for each other, and sums depend on their number.
        set_threads(1, stack)
        display.say(f"toy problem, t = {config.target:g}, {config.seeds} seeds, results in {path}")
        # An interruption that has not come yet is false.
        train_all = partial(_train_all, problem, display, Interruption() if interruption is None else interruption)
        runs = train_all(config.estimators, config, config.fixed_theta)
        # A control variate c(z) of a bit is drawn as trained at a fixed theta.
        at_shown = {name: run for name, run in runs.items() if run.contestant.control is not None}
        if problem.outcomes > 2:
            at_shown = {}
        elif config.fixed_theta is None:
            steps = min(config.steps, SURROGATE_STEPS)
            shortly = replace(config, steps=steps, seeds=1, log_interval=steps)
            at_shown = train_all(list(at_shown), shortly, config.shown_theta)
        display.end()
        result = summary(runs, problem, config)
        write_json(path / "toy.json", result)
        write_text_atomic(path / "toy.md", markdown(result))
        write_text_atomic(path / "curves.csv", curves_csv(runs, config))
        with never_fatal("a figure"):
            for name, png in _figures(runs, at_shown, problem, config).items():
                write_bytes_atomic(path / f"{name}.png", png)
        write_config(folder, config, {"command": command}, packages=("torch",))
    return path, result


def _train_all(
    problem: Problem,
    display: Display,
    interruption: Interruption,
    names: Sequence[str],
    config: ToyConfig,
    theta: float | None,
) -> dict[str, Run]:
    """Train one estimator after the other, all seeds at once; at a fixed theta if one is given."""

    def after_step(step: int, mean_theta: float) -> None:
        display.update(step, mean_theta)
        if interruption:
            raise Interrupted

    runs = {}
    for name in names:
        at = name if theta is None else f"{name} at theta {theta:g}"
        display.begin("", name=at, total=config.steps)
        runs[name] = run = train(name, problem, config, theta=theta, after_step=after_step)
        display.say(
            f"{name}: theta {median(run.theta[-1]):.3f}, log variance {median(run.log_variance[-1]):.2f} "
            f"(medians over seeds after {config.steps:,} steps), {run.seconds * 1e6:,.0f} µs a step"
        )
    return runs


def _figures(
    runs: Mapping[str, Run], at_shown: Mapping[str, Run], problem: Problem, config: ToyConfig
) -> dict[str, bytes]:
    title = f"Toy problem, t = {config.target:g}, {outcomes_in_words(config.outcomes)}, {config.seeds} seeds"
    theta = config.fixed_theta
    if theta is None:
        drawn = {
            "expected_loss": figures.progress_figure(runs, problem, title),
            "log_variance": figures.variance_figure(runs, title, {}),
        }
    else:
        known = floors(problem, theta, list(runs), coupling=config.coupling)
        drawn = {"log_variance": figures.variance_figure(runs, f"{title}, theta fixed at {theta:g}", known)}
    if problem.outcomes == 2:
        shown = config.shown_theta if theta is None else theta
        drawn["densities"] = figures.densities_figure(shown, config.seed)
        if at_shown:
            drawn["surrogate"] = figures.surrogate_figure(at_shown, problem, shown, config.estimators)
    return drawn


@contextmanager
def _made(folder: RunFolder, *, ours: bool) -> Iterator[None]:
    """Make the folder and hold it; on a failure take it away, if it is `ours` and empty."""
    with folder.locked():
        try:
            yield
        except BaseException:
            if ours and all(left.name == ".lock" for left in folder.path.iterdir()):
                shutil.rmtree(folder.path, ignore_errors=True)
            raise

"""The command `train`: start or resume a run of an agent, and say where its results lie."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.compute import distributed
from relax_rl.compute.installation import typed
from relax_rl.runs.displays import describe_number
from relax_rl.runs.folder import RunFolder, refuse_used
from relax_rl.runs.interruption import exit_code
from relax_rl.runs.record import logged_again, named_again, read_config, resumed_config, settings_to_resume
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import flat, with_settings
from relax_rl.settings.options import parse
from relax_rl.settings.presets import find_preset, preset_base

if TYPE_CHECKING:
    from relax_rl.runs.training import TrainingResult

__all__ = ["train_command", "train_config"]

ENDS = {
    "total_steps": "all steps taken",
    "return": "reached a mean return of {target:g}",
    "step": "paused at step {step:,}",
    "callback": "stopped by a callback",
}
"""What is said of a run that ended in one of these ways; all other ways are signals."""


def train_command(args: Sequence[str], prog: str) -> int:
    """`train`: start or resume a run, and say where its results lie."""
    config = train_config(args, prog)
    refuse_used(config)
    from relax_rl.runs.training import train

    started = time.perf_counter()
    result = train(config, command=f"{prog} {shlex.join(args)}")
    if distributed.is_first():
        print(_summary(result, config, prog.rpartition(" ")[0], time.perf_counter() - started), flush=True)
    return exit_code(result.stopped_by)


def train_config(args: Sequence[str], prog: str) -> TrainConfig:
    """The settings: what is given, over what the preset or the resumed run says."""
    saved: TrainConfig | None = None

    def base(given: Mapping[str, Any]) -> TrainConfig:
        nonlocal saved
        wanted = {**flat(automatic), **given}
        if wanted["resume"] is not None:
            saved = settings_to_resume(wanted["resume"], TrainConfig)
            return saved
        return preset_base(wanted["env"], wanted["estimator"], preset=wanted["preset"], given=given)

    automatic = with_settings(TrainConfig(), {"preset": "auto"})
    config = parse(TrainConfig, args, default=automatic, base=base, prog=prog)
    if saved is None:
        from relax_rl.backends.registry import with_version

        preset = find_preset(config.env.env, config.run.preset).name
        return with_settings(config, {"preset": preset, "env": with_version(config.env.env)})
    if config.run.preset == "auto":
        config = with_settings(config, {"preset": saved.run.preset})
    assert config.run.resume is not None
    return resumed_config(read_config(RunFolder(Path(config.run.resume))), config)


def _summary(result: TrainingResult, config: TrainConfig, prog: str, seconds: float) -> str:
    folder = RunFolder(result.run_dir)
    run_dir = shlex.quote(str(result.run_dir))
    mean = (
        "no episode has finished"
        if not result.episodes
        else f"mean return of the last 100 {describe_number(result.return_mean)}"
    )
    if result.stopped_by in ENDS:
        end = ENDS[result.stopped_by].format(target=config.run.stop_at_return, step=config.run.stop_at_step or 0)
    else:
        end = f"interrupted by {result.stopped_by}"
    line = f"{end}: {result.steps:,} steps, {result.episodes:,} episodes, {mean}, {seconds:.0f} s"
    if config.run.quiet:
        return f"{line} · {result.run_dir}"
    lines = [line, f"  learning curve  {folder.curve}"]
    if config.run.tensorboard:
        lines.append(f"  TensorBoard     {typed('tensorboard')} --logdir {run_dir}")
    if config.run.track:
        from relax_rl.runs.tracking import places

        shown = places(RunFolder(result.run_dir))
        lines += [f"  {name:<14}  {shown[name]}" for name in config.run.track if name in shown]
    lines.append(f"  checkpoint      {result.checkpoint}")
    if result.best is not None:
        over = "evaluation" if result.best_evaluated else "100 episodes"
        of = "the last agent" if result.best_step == result.steps else f"the agent of step {result.best_step or 0:,}"
        lines.append(f"  best            {result.best} ({of}, mean return in {over} {result.best_return:.1f})")
    lines.append(f"  evaluate        {prog} evaluate {run_dir}{named_again(config, resuming=False)}")
    if result.stopped_by not in ("total_steps", "return"):
        lines.append(f"  go on           {prog} --resume {run_dir}{named_again(config)}{logged_again(config)}")
    return "\n".join(lines)

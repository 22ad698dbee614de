"""The command `vae`: train a sigmoid belief network with any estimator, or go on with a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from relax_rl.compute import distributed
from relax_rl.compute.installation import typed
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.presets import preset_config
from relax_rl.runs.folder import RunFolder, refuse_used
from relax_rl.runs.interruption import exit_code
from relax_rl.runs.record import settings_to_resume
from relax_rl.settings.options import parse

if TYPE_CHECKING:
    from relax_rl.experiments.vae.training import VaeResult

__all__ = ["vae_command"]

_DESCRIPTION = "Train a sigmoid belief network on the variational bound, with any of the estimators for bits."


def vae_command(args: Sequence[str], prog: str) -> int:
    """`vae`: start or resume a run, and say where its results lie."""
    config = parse(VaeConfig, args, base=_base, prog=prog, description=_DESCRIPTION)
    refuse_used(config)
    from relax_rl.experiments.vae.training import train_vae

    result = train_vae(config, command=f"{prog} {shlex.join(args)}")
    if distributed.is_first():
        print(_summary(result, config, prog), flush=True)
    return exit_code(result.stopped_by)


def _base(given: Mapping[str, Any]) -> VaeConfig:
    """The settings of the preset or of the resumed run, under what is given."""
    if given.get("resume") is None:
        return preset_config(given.get("preset", VaeConfig().preset))
    return settings_to_resume(given["resume"], VaeConfig, section="vae")


def _summary(result: VaeResult, config: VaeConfig, prog: str) -> str:
    folder, run_dir = RunFolder(result.run_dir), shlex.quote(str(result.run_dir))
    end = {"steps": "all steps taken", "early stopping": "stopped early"}.get(
        result.stopped_by, f"interrupted by {result.stopped_by}"
    )
    lines = [f"{end}: {result.steps:,} steps, {result.seconds:.0f} s"]
    if config.quiet:
        return f"{lines[0]} · {result.run_dir}"
    if result.evaluation is not None:
        lines.append(f"  {result.evaluation['data']}, nats per image:")
        for name, value in result.evaluation["bounds"].items():
            part, _, samples = name.replace("_bound_", " ").partition(" ")
            how = "1 sample" if samples == "1" else f"{samples} importance samples"
            lines.append(f"  {part:5} bound, {how:23} {value:9.2f}")
        lines.append(f"  evaluation      {folder.evaluation}")
    lines += [f"  curves          {folder.curve}", f"  images          {folder.path / 'images.png'}"]
    if config.tensorboard:
        lines.append(f"  TensorBoard     {typed('tensorboard')} --logdir {run_dir}")
    lines.append(f"  checkpoint      {result.checkpoint}")
    if exit_code(result.stopped_by):
        lines.append(f"  go on           {prog} --resume {run_dir}")
    return "\n".join(lines)

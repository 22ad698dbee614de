"""The command `export`: a trained policy as a file that runs without this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from relax_rl.compute.serialization import writing
from relax_rl.errors import SettingsError
from relax_rl.runs.exporting import FORMATS, export_policy
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.model_card import environment_of
from relax_rl.runs.own_code import own_networks
from relax_rl.runs.record import read_config
from relax_rl.runs.zoo import run_of
from relax_rl.settings.fields import check, setting
from relax_rl.settings.options import parse

__all__ = ["ExportConfig", "export_command", "export_run"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a trained policy into one file that runs without this package: observations in, actions out."""

    run: str
    """Folder of the run; zoo:NAME is a trained agent of the zoo, which goes to runs/zoo/NAME."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx (extra export), or a program of torch.export."""
    output: str | None = setting(None, fits=bool, expected="a file")
    """The file, in a folder that is made if need be (default: policy.onnx or policy.pt2 in the run's folder)."""
    checkpoint: str = "auto"
    """Which agent: auto (the best that the run has kept, else the latest), latest, best, or a checkpoint file."""
    estimator: str | None = None
    """module:name of the run's estimator, if it is your own."""
    networks: str | None = None
    """module:factory of the run's networks, if they are your own."""

    def __post_init__(self) -> None:
        check(self)


def export_command(args: Sequence[str], prog: str) -> int:
    """`export`: read the options, write the file, say what it takes and gives."""
    config = parse(ExportConfig, args, prog=prog)
    config = replace(config, run=run_of(config.run))
    path, inputs, outputs = export_run(config)
    print(f"  written to  {path}")
    print(f"  inputs      {', '.join(inputs)}")
    print(f"  outputs     {', '.join(outputs)}")
    return 0


def export_run(config: ExportConfig) -> tuple[Path, list[str], list[str]]:
    """Export the agent of a run; returns the file, and the names of what it takes and gives.

    Raises:
        CheckpointError: no such run or checkpoint, or none that can be read.
        SettingsError: a missing extra, or spaces that cannot be exported.
        RelaxRLError: networks that cannot be traced, or a file that cannot be written.
    """
    from relax_rl import __version__
    from relax_rl.networks.space_json import space_to_json
    from relax_rl.runs.agent import load_agent

    folder = RunFolder(Path(config.run))
    trained = read_config(folder)
    networks = own_networks(config.estimator, config.networks)
    path = Path(config.output) if config.output else folder.path / f"policy{FORMATS[config.format]}"
    if path.is_dir():
        raise SettingsError(f"output is {str(path)!r}, a folder, expected a file")
    agent, source = load_agent(folder, config.checkpoint, "cpu", networks=networks)
    about = {
        "relax_rl": __version__,
        "env": trained.env.env,
        "env_kwargs": {},
        **environment_of(trained.env),
        "estimator": agent.name,
        "step": str(agent.steps),
        "checkpoint": source.name,
        "observation_space": space_to_json(agent.observation_space),
        "action_space": space_to_json(agent.action_space),
    }
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    policy = export_policy(agent, path, form=config.format, about=about)
    return path, policy.inputs, policy.outputs

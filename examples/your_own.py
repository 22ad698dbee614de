"""An estimator, a torso and a logger of your own, trained, gone on with and loaded again: `python examples/your_own.py`.

The command line takes them as well: `python train_agent.py --estimator examples.your_own:HALF_WAY --networks
examples.your_own:normalised`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from relax_rl import ActorCritic, estimators, train
from relax_rl.agents import AgentEstimator, Experience, NetworkParts
from relax_rl.critics import surrogate_at
from relax_rl.runs.training import resume_config
from relax_rl.settings.presets import preset_config


def half_way(x: Experience, dist: object, surrogate: nn.Module) -> Tensor:
    """Half of RELAX, half of A2C: unbiased, as both are."""
    known = {"noise": x.noise, "sample": x.action}
    relax = estimators.relax(x.advantage, dist, surrogate_at(surrogate, x.features, dist), coupling="coupled", **known)
    return 0.5 * (relax.grad + estimators.reinforce(x.advantage, dist, **known).grad)


HALF_WAY = AgentEstimator(name="half-way", estimate=half_way, action_kinds=("categorical",), uses_surrogate=True)


class Torso(nn.Sequential):
    """Any module from `[B, D]` observations to `[B, num_features]` features."""

    num_features = 32

    def __init__(self, size: int) -> None:
        super().__init__(nn.Linear(size, 32), nn.LayerNorm(32), nn.SiLU())


def normalised(observations, actions, config) -> NetworkParts:
    return NetworkParts(policy_torso=Torso(observations.shape[0]), value_torso=Torso(observations.shape[0]))


class Printer:
    def log(self, row: dict[str, float]) -> None:
        print(f"{row['step']:>7,.0f} steps, mean return {row['return_mean']:.1f}")

    def close(self) -> None:
        print("that was all")


if __name__ == "__main__":
    run, own = Path(tempfile.mkdtemp()) / "run", {"estimator": HALF_WAY, "networks": normalised}
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    train(preset_config("CartPole-v1", total_steps=steps, run_dir=str(run), quiet=True), loggers=[Printer()], **own)
    result = train(resume_config(run, total_steps=2 * steps, quiet=True), loggers=[Printer()], **own)
    agent = ActorCritic.load(result.checkpoint, networks=normalised)
    print(agent.name, agent.steps, agent.predict(torch.zeros(4).numpy(), deterministic=True)[0])

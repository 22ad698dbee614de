"""What tests of agents and their updates share: small runs, made-up rollouts, awake surrogates, gradients row by row, agents alike."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from relax_rl.agents import AGENTS, ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.agents.gradients import Gradients, Objective, finished, flattened, gradients
from relax_rl.agents.networks import Networks
from relax_rl.agents.rollouts import Rollout
from relax_rl.agents.shards import sample_noise
from relax_rl.envs import VectorEnvs
from relax_rl.networks.policies import Policy
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.presets import preset_config
from tests.fakes import TargetEnv, vector_of

__all__ = [
    "ACTIONS",
    "BOX",
    "DISCRETE",
    "OBS",
    "PASSES",
    "applied",
    "assert_alike",
    "assert_gone_on_with",
    "assert_same",
    "off_policy",
    "rollout_for",
    "shake",
    "shake_module",
    "small_run",
    "target_envs",
    "trained",
    "watch_steps",
    "weights",
    "whole_gradients",
]

OBS = spaces.Box(-1, 1, (3,), np.float32)
DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(-1, 1, (2,), np.float32)
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
    "box": BOX,
}
PASSES: dict[str, Any] = {"epochs": 3, "minibatch_size": 7, "clip_range": 0.2}


def small_run(path: Path, env: str = "CartPole-v1", estimator: str = "auto", **settings: Any) -> TrainConfig:
    """The configuration of a run that is done in a moment."""
    small = {"hidden": (8,), "surrogate_hidden": (8,), "num_envs": 4, "num_steps": 5, "total_steps": 400}
    small |= {"quiet": True, "tensorboard": False, "run_dir": str(path)}
    return preset_config(env, estimator, **{**small, **settings})


def target_envs(action_space: spaces.Space[Any], seed: int = 0, n: int = 8, env: Any = TargetEnv) -> VectorEnvs:
    return VectorEnvs(vector_of([lambda: env(action_space)] * n, AutoresetMode.SAME_STEP), seed=seed)


def trained(
    estimator: str, *, env: Any = TargetEnv, updates: int = 6, told: list[Any] | None = None, **settings: Any
) -> ActorCritic:
    """A small agent after some updates in target environments; `told` takes the metrics of each."""
    space = BOX if estimator == "lax" else DISCRETE
    small = {"hidden": (8,), "surrogate_hidden": (8,), "num_steps": 5, "cnn_features": 8}
    metrics = [] if told is None else told
    with target_envs(space, n=4, env=env) as envs:
        agent = AGENTS[estimator](envs.single_observation_space, space, seed=0, **{**small, **settings})
        shake(agent)
        agent.learn(envs, updates * 20, [lambda _, info: metrics.append(dict(info.metrics))])
    return agent


def rollout_for(agent: ActorCritic, *, steps: int = 6, num_envs: int = 4, seed: int = 1, **changes: Any) -> Rollout:
    """A rollout of made-up observations and rewards with the agent's own actions."""
    generator = torch.Generator().manual_seed(seed)
    shape = agent.observations.shape
    if agent.observations.is_image:
        obs = torch.randint(0, 256, (steps + 1, num_envs, *shape), dtype=torch.uint8, generator=generator)
    else:
        obs = torch.randn((steps + 1, num_envs, *shape), generator=generator)
    noise = agent.sample_noise(steps, num_envs)
    ended = torch.rand((steps, num_envs), generator=generator)
    rollout = Rollout(
        obs=obs,
        action=torch.stack([agent.sample(obs[t], noise[t]) for t in range(steps)]),
        noise=noise,
        reward=torch.randn((steps, num_envs), generator=generator),
        terminated=ended < 0.1,
        truncated=(ended > 0.1) & (ended < 0.2),
        valid=torch.ones((steps, num_envs), dtype=torch.bool),
        final_obs=obs[:0, 0],
        final_index=torch.empty((0, 2), dtype=torch.long),
    )
    return replace(rollout, **changes)


def shake(agent: ActorCritic) -> None:
    """Wake an agent's surrogate up, if it has one: at zero, rounding alone decides which way Adam's first steps go."""
    if agent.surrogate is not None:
        shake_module(agent.surrogate, torch.Generator().manual_seed(0))


def shake_module(module: nn.Module, generator: torch.Generator) -> None:
    """Give a module lively weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.device)


class PolicyOfRows(nn.Module):
    """A policy whose parameters are those of the action distribution of each row."""

    def __init__(self, policy: Policy, params: Tensor) -> None:
        super().__init__()
        self.torso, self.distribution = nn.Identity(), policy.distribution
        self.rows = nn.Parameter(params.detach().clone())

    def params(self, features: Tensor) -> Tensor:
        return self.rows


def applied(agent: ActorCritic, batch: Batch, params: Tensor | None = None, **objective: Any) -> Tensor:
    """`[B, P]` the gradient that an update applies at the parameters of each row's action distribution.

    Args:
        params: `[B, P]` of the policy that learns; what the agent's own says of the batch by default.
        objective: fields of `Objective` that are not those of a plain update.
    """
    params = agent.policy(batch.obs) if params is None else params
    networks = Networks(PolicyOfRows(agent.policy, params), agent.value, agent.surrogate)  # type: ignore[arg-type]
    found = gradients(networks, batch, Objective(agent.estimator, ("policy", "value"), **objective))
    gradient: Tensor = found.of["policy"][0]
    return -gradient * batch.shard.divisor


def whole_gradients(agent: ActorCritic, batch: Batch, objective: Objective) -> Gradients:
    """The gradients of an update, one flat vector a network, clipped and with its metrics."""
    return finished(flattened(gradients(agent.networks, batch, objective), agent.learner.flat), objective)


def off_policy(agent: ActorCritic, batch: Batch, old_log_prob: Tensor) -> Batch:
    """The batch as passes over it see it: actions of a policy that may have been another."""
    blank = agent.policy.distribution(torch.zeros(1, agent.policy.num_params))
    given = hasattr(blank, "relax_given")
    noise = sample_noise(blank, batch.shard, agent.generator) if given else None
    return replace(batch, old_log_prob=old_log_prob, conditional_noise=noise)


@dataclass
class Step:
    """A step of a learner: what it was taken on, and the gradients that optimisers were given, by network."""

    batch: Batch
    objective: Objective
    factor: float
    gradients: dict[str, Tensor] = field(default_factory=dict)


def watch_steps(agent: ActorCritic) -> list[Step]:
    """The steps to come."""
    seen: list[Step] = []
    learner: Any = agent.learner
    step = learner.step

    def watched(batch: Batch, objective: Objective, factor: float, known: Any = None) -> Any:
        seen.append(Step(batch, objective, factor))
        return step(batch, objective, factor, known)

    learner.step = watched
    for name, optimizer in learner.optimizers.items():

        def moved(gradient: Tensor, factor: float, name: str = name, move: Any = optimizer.step) -> None:
            assert factor == seen[-1].factor
            seen[-1].gradients[name] = gradient.clone()
            move(gradient, factor)

        optimizer.step = moved
    return seen


def weights(agent: ActorCritic) -> dict[str, Tensor]:
    """The policy's and the value function's parameters."""
    modules = {"policy": agent.policy, "value": agent.value}
    return {f"{k}.{n}": p.detach().clone() for k, m in modules.items() for n, p in m.named_parameters()}


def assert_gone_on_with(agent: ActorCritic, made: Rollout, folder: Path) -> None:
    """An agent that was saved and loaded learns the very same from a rollout."""
    agent.save(folder / "agent")
    again = ActorCritic.load(folder / "agent")
    agent.update(made), again.update(made)
    assert_same(again.state_dict()[0], agent.state_dict()[0])


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, x in left.items():
        assert torch.equal(x, right[name]), name


def assert_alike(found: ActorCritic, expected: ActorCritic, tolerance: float = 1e-5) -> None:
    """Assert that all tensors of two agents are equal to rounding."""
    ours, theirs = found.state_dict()[0], expected.state_dict()[0]
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        torch.testing.assert_close(
            x, theirs[name], rtol=1e-4, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )

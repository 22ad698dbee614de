"""The data's way through an agent: rollouts are collected, seen as batches and learned from, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relax_rl.agents.acting import host_sampler
from relax_rl.agents.batch import Batch, make_batch
from relax_rl.agents.callback import Callback, UpdateInfo
from relax_rl.agents.compiled import choose_step
from relax_rl.agents.minibatches import minibatch_steps
from relax_rl.agents.shares import columns, share_of_rollout
from relax_rl.agents.statistics import absorb, episodes_of_all
from relax_rl.rollouts import Collector, Rollout
from relax_rl.spaces import require_space

if TYPE_CHECKING:
    from relax_rl.agents.base import ActorCritic
    from relax_rl.envs import VectorEnvs

__all__ = ["batch_of", "collect", "learn", "update"]


def learn(
    agent: ActorCritic, envs: VectorEnvs, total_steps: int, callbacks: Iterable[Callback], *, reset_schedule: bool
) -> None:
    """Train for `total_steps` more environment steps; see `ActorCritic.learn`."""
    require_space(agent.observation_space, envs.single_observation_space)
    require_space(agent.action_space, envs.single_action_space)
    if reset_schedule:
        agent.schedule_start = agent.steps
    agent.schedule_end = agent.steps + total_steps
    if agent.compiled is None:
        agent.compiled = choose_step(agent, total_steps, envs.num_envs)
    collector = agent.collector(envs)
    callbacks = list(callbacks)
    while agent.steps < agent.schedule_end:
        before = agent.episodes
        rollout = agent.collect(collector)
        metrics = agent.update(rollout)
        episodes = episodes_of_all(agent.workers, rollout.episodes, agent.episodes - before)
        agent.watch("logging")
        info = UpdateInfo(agent.steps, agent.updates, episodes, metrics)
        heard = [callback(agent, info) for callback in callbacks]
        if agent.workers.any(any(answer is False for answer in heard)):
            break


def collect(agent: ActorCritic, collector: Collector) -> Rollout:
    """A rollout of the agent's present policy, with noise that does not depend on how many workers share it."""
    agent.watch("act")
    networks, num_envs = agent._networks, collector.envs.num_envs
    noise = agent.sample_noise(collector.num_steps, agent.workers.count * num_envs)
    noise = noise[:, columns(agent.workers, num_envs)]
    sampler = networks.sampler() if agent.compiled is None else None  # a compiled step makes its own features
    on_host = host_sampler(agent.policy, networks.on_host(agent.policy), agent.obs_normalizer)
    rollout = collector.collect(sampler or agent.sample, noise, on_host=on_host)
    keeper = sampler or (on_host if agent.compiled is not None else None)  # eager code needs the policy's graph
    if keeper is not None:
        networks.keep(rollout, keeper)
    return rollout


def update(agent: ActorCritic, rollout: Rollout) -> dict[str, Tensor | float]:
    """One step of policy, critics and statistics on a rollout, or its passes; see `ActorCritic.update`."""
    config = agent.config
    agent.watch("advantage")
    batch, params, value = agent.batch(rollout)
    agent._networks.forget()
    passes = config.epochs > 1 or 0 < config.minibatch_size < batch.num_rows
    needed = passes or agent.value_replay is not None
    obs = _rows_of(agent, rollout, batch) if needed else None
    if agent.value_replay is not None and obs is not None:
        batch = agent.value_replay.join(batch, obs, agent.reward_unit)
    if passes and obs is not None:
        metrics, taken = minibatch_steps(agent, batch, obs, agent._networks)
    else:
        metrics, taken = agent.step(batch, params, value), 1
    if passes or config.surrogate_replay:
        agent.watch("surrogate")
        metrics |= agent.train_surrogate_later(rollout, batch, taken)
    agent.watch("statistics")
    steps, episodes = absorb(agent, rollout, batch)
    agent.steps += steps
    agent.episodes += episodes
    agent.updates += 1
    return metrics


def batch_of(agent: ActorCritic, rollout: Rollout) -> tuple[Batch, Tensor, Tensor]:
    """What an update sees of a rollout; see `ActorCritic.batch`."""
    networks, advantage_scale = agent._networks, agent.advantage_scale
    recalled = networks.recalled(rollout)
    obs = _observations(agent, rollout)
    rows = rollout.num_steps * rollout.num_envs
    if agent.compiled is not None:
        params, value, features = networks.without_graph(obs, rows, recalled)
    else:
        params, value, features = networks(obs, rows, recalled)
    batch = make_batch(
        rollout,
        agent.policy.distribution(params.detach().requires_grad_()),
        value.detach(),
        features,
        config=agent.config,
        reward_scale=agent.reward_unit,
        scale=1.0 / advantage_scale.scale if advantage_scale is not None else 1.0,
        share=share_of_rollout(agent.workers, rollout.num_steps, rollout.num_envs, agent.device),
    )
    return batch, params, value[: len(batch.weight)]


def _rows_of(agent: ActorCritic, rollout: Rollout, batch: Batch) -> Tensor:
    """`[B, ...]` normalised observations of the batch that was made of a rollout."""
    if agent.compiled is not None or not agent.shared_torso:
        return batch.features
    return _observations(agent, rollout)[: len(batch.weight)]


def _observations(agent: ActorCritic, rollout: Rollout) -> Tensor:
    """`[(T + 1) N + K, ...]` all of a rollout's observations as the networks take them, then the final ones."""
    obs = rollout.obs.flatten(0, 1)
    seen = torch.cat([obs, rollout.final_obs]) if len(rollout.final_obs) else obs
    return agent.normalized(seen.to(agent.device))

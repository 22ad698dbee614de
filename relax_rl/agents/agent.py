"""The actor-critic that all agents share; an agent adds only how its gradient is estimated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import Env, spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from relax_rl.agents.acting import HostSampler, ImageSampler, host_sampler
from relax_rl.agents.batch import Batch, in_unit_of, make_batch
from relax_rl.agents.control_scale import ControlScale
from relax_rl.agents.estimates import AgentEstimator, check_estimator
from relax_rl.agents.factory import NetworkFactory, seeded_networks
from relax_rl.agents.learner import Learner, Metrics
from relax_rl.agents.listening import Listener, Listeners, listening
from relax_rl.agents.networks import Outputs
from relax_rl.agents.normalization import ObservationNormalizer, RewardScaler, chosen_columns
from relax_rl.agents.recurrence import EnvMemory, check_memory, collect_with_memory
from relax_rl.agents.return_spread import Spread
from relax_rl.agents.rollout_replay import make_replay
from relax_rl.agents.rollouts import Collector, Rollout, require_envs
from relax_rl.agents.saved import SavedActor
from relax_rl.agents.shards import columns, shard_of_rollout
from relax_rl.agents.statistics import RecentEpisodes, UpdateInfo, absorb, episodes_of_all, numbers, settle_shift
from relax_rl.agents.trust_region import entropy_bonus
from relax_rl.compute.clocks import Watch
from relax_rl.compute.distributed import Workers
from relax_rl.compute.host import set_threads
from relax_rl.envs import Step, VectorEnvs
from relax_rl.errors import TrainingDiverged
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.fields import whole, with_settings

__all__ = ["ActorCritic", "Callback", "UpdateInfo"]

AgentT = TypeVar("AgentT", bound="ActorCritic")


class ActorCritic(SavedActor):
    """A policy, a value function and a way to estimate the gradient at the action distribution's parameters.

    Args:
        observation_space, action_space: of a single environment.
        seed: of the initial weights and of all noise.
        config: settings; single ones can be given or overridden as keyword arguments.
        networks: factory of networks of your own; loading asks for the same.

    Attributes:
        steps, updates, episodes: valid environment steps, updates and finished episodes learned from so far.
        networks: policy, value function and surrogate.
        networks_by: the factory that made them; None for those of the settings.
        learner: takes their steps.
        listeners: who hears of the learning at hand; None outside `learn`.
        compiled_from: the update from which on gradients came from compiled code; None as long as eager code gives them.

    Raises:
        SettingsError: for spaces or settings that cannot work.
    """

    name: ClassVar[str] = ""
    estimator: ClassVar[AgentEstimator]
    listeners: Listeners | None = None

    def __init_subclass__(cls) -> None:
        cls.name = cls.estimator.name

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        seed: int = 0,
        config: AgentConfig | None = None,
        networks: NetworkFactory | None = None,
        **settings: Any,
    ) -> None:
        config, own = with_settings(config or AgentConfig(), settings), networks is not None
        super().__init__(observation_space, action_space, config, seed, own_networks=own)
        config = self.config
        check_estimator(self.estimator, self.actions)
        seen, done, learned = self.observations, self.actions, self.estimator.uses_surrogate
        made = seeded_networks(self.seed, seen, done, config, surrogate=learned, factory=networks)
        self.networks, self.networks_by = made.to(self.device), networks
        check_memory(self.networks, config)
        self.env_memory = EnvMemory()
        self.learner = Learner(self.networks, self.estimator, config, self.generator, own_networks=own)
        if config.normalize_obs:
            chosen = chosen_columns(self.observations, config.normalize_keys)
            how: dict[str, Any] = {"chosen": chosen, "clip": config.obs_clip, "floor": config.obs_std_floor}
            self.obs_normalizer = ObservationNormalizer(self.observations.shape, self.device, **how)
        self.reward_scaler = RewardScaler(config.gamma) if config.normalize_reward else None
        self.return_spread = Spread() if self.value.bins is not None else None
        self.advantage_spread = Spread(decay=0.9) if config.scale_advantage else None
        fitted = self.estimator.uses_surrogate and config.surrogate_scale == "fitted"
        self.control_scale = ControlScale() if fitted else None
        self.value_replay = make_replay(config, self.networks, self.normalized)
        self._acted: tuple[Rollout, ImageSampler | HostSampler] | None = None

    @property
    def watch(self) -> Watch:
        """Told which section of an update begins; see `relax_rl.compute.clocks`."""
        return self.learner.watch

    @watch.setter
    def watch(self, watch: Watch) -> None:
        self.learner.watch = watch

    @property
    def workers(self) -> Workers:
        """The processes that learn together; `join` sets them."""
        return self.learner.workers

    def components(self) -> dict[str, Any]:
        everything = {
            **self.networks.parts(),
            **{f"{name}_optimizer": optimizer for name, optimizer in self.learner.optimizers.items()},
            "obs_normalizer": self.obs_normalizer,
            "reward_scaler": self.reward_scaler,
            "return_spread": self.return_spread,
            "advantage_spread": self.advantage_spread,
            "control_scale": self.control_scale,
            **self.learner.parts(),
            # Every worker has rows of its own, and only the first one's would be saved.
            "value_replay": self.value_replay if self.workers.count == 1 else None,
        }
        return {name: part for name, part in everything.items() if part is not None}

    @property
    def reward_unit(self) -> float:
        """What raw rewards are multiplied by at present."""
        return self.reward_scaler.scale if self.reward_scaler is not None else 1.0

    def predict_values(self, obs: Any) -> np.ndarray:
        """`[N]` V of raw observations, in the unit of raw rewards (as they are after `reward_clip`), whatever the normalisers.

        Args:
            obs: a batch of observations, or a single one, for which a single number comes back.

        Raises:
            SettingsError: if that is no observation of the agent's space, or one with a number that is not finite.
        """
        batch, single = self.critic_observations.as_batch(obs)
        encoded = self.encoded(batch, self.critic_observations).to(self.device)
        with torch.inference_mode():
            values = self.value(self.normalized(encoded)).cpu().numpy() / np.float32(self.reward_unit)
        return np.asarray(values[0] if single else values)

    def load_state_dict(
        self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, optimizer: bool = True
    ) -> None:
        """Take back what `state_dict` gave; see `SavedActor`."""
        self._acted = None  # what acted knows other parameters
        super().load_state_dict(tensors, state, optimizer=optimizer)
        self._set_value_unit()

    def _set_value_unit(self) -> None:
        """Tell distributions over bins what they are measured in: the spread of raw returns, scaled as rewards are."""
        if self.return_spread is not None:
            self.return_spread.tell((self.value, self.surrogate), self.reward_unit)

    def join(self, workers: Workers) -> None:
        """Learn together with the same agent in other processes, from the state of the first one.

        Each has as many environments of its own. W workers of N environments take the same steps, to rounding, as one
        of W N: gradients, statistics, counters and decisions are those of all rows.
        """
        self.learner.workers = workers
        if workers.count == 1:
            return
        self.learner.compiled = None
        tensors, state = self.state_dict()
        copies = {name: x.detach().contiguous().clone() for name, x in sorted(tensors.items())}
        for x in copies.values():
            workers.broadcast_(x)
        self.load_state_dict(copies, workers.from_first(state))

    def learn(
        self: AgentT,
        envs: VectorEnvs | Env[Any, Any] | VectorEnv[Any, Any, Any],
        total_steps: int,
        callbacks: Iterable[Listener] | Listener | None = (),
        *,
        reset_schedule: bool = True,
        threads: int | None = 1,
        on_step: Callable[[Step], object] | None = None,
    ) -> AgentT:
        """Train for `total_steps` more environment steps (at least: whole rollouts are used).

        Args:
            envs: environments with this agent's spaces; Gymnasium's own, single or vector, are reset.
            total_steps: steps summed over the environments.
            callbacks: called after every update, or a single one; objects hear what they have `on_rollout`, `on_update`,
                `on_episode` and `on_evaluation` for. One that returns False ends the training, of all workers.
            reset_schedule: start schedules anew; False goes on with those of the last call, as after a load.
            threads: CPU threads for tensor work until this returns, 0 for all cores, None for torch's present setting.
                More than one pays only for images or wide networks, and costs much on cores that others use too.
            on_step: called with the `Step` of all environments after each; after False the training ends with the update
                on the rollout at hand.

        Returns:
            The agent itself.

        Raises:
            SettingsError: if the environments have other spaces, if a network was replaced, or if compiled code is asked
                for and impossible.
            EnvironmentFault: if a reward or an observation is not a finite number.
            TrainingDiverged: if a gradient is not finite.
            WorkerLost: if another worker stops.
        """
        envs = require_envs(envs, self.observation_space, self.action_space, (self.seed, self.steps))
        self.learner.check_networks()
        self.learner.check_environments(envs.num_envs)
        self.check_precision()
        if not self.steps and (flat := self.observations.image_warning()):
            warnings.warn(flat, UserWarning, stacklevel=2)
        total_steps = whole("total_steps", total_steps, least=0)
        if reset_schedule:
            self.schedule_start = self.steps
        self.schedule_end = self.steps + total_steps
        with ExitStack() as stack:
            if threads is not None:
                set_threads(whole("threads", threads, least=0, below=1_025), stack)
            self.learner.choose_compiled(total_steps, envs.num_envs, again=self.compiled_from is not None)
            self._learn(envs, stack.enter_context(listening(self, callbacks, on_step)))
        return self

    def _learn(self, envs: VectorEnvs, heard: Listeners) -> None:
        envs.drain_episodes()  # of steps that somebody else has taken
        if self.reward_scaler is not None:
            self.reward_scaler.begin(envs.steps_taken() == 0)
        collector, recent = self.collector(envs), RecentEpisodes()
        collector.on_step = heard.step
        while self.steps < self.schedule_end:
            before = self.episodes
            rollout = self.collect(collector)
            heard.rollout(self, rollout)
            metrics = numbers(self.update(rollout))
            episodes = episodes_of_all(self.workers, rollout.episodes, self.episodes - before)
            self.watch("logging")
            metrics |= recent.means_with(episodes)
            heard.update(self, UpdateInfo(self.steps, self.updates, episodes, metrics))
            if self.workers.any(heard.stopped):
                break

    def collector(self, envs: VectorEnvs) -> Collector:
        """What steps these environments, `num_steps` at a time, with this agent's view of them."""
        settle_shift(self.workers, self.observations, envs.obs, self.obs_normalizer)
        return Collector(
            envs,
            self.encode,
            self.to_env,
            self.config.num_steps,
            watch=self.watch,
            leaf_at=lambda column: self.observations.leaf_at(column).name,
        )

    def collect(self, collector: Collector) -> Rollout:
        """A rollout of the present policy, with noise that does not depend on how many workers share it."""
        self.watch("act")
        num_envs, compiled = collector.envs.num_envs, self.learner.compiled is not None
        noise = self.sample_noise(collector.num_steps, self.workers.count * num_envs)
        noise = noise[:, columns(self.workers, num_envs)]
        if self.networks.recurrent:
            return collect_with_memory(self, self.env_memory, collector, noise)
        # Compiled code makes features of its own, and eager code needs the graph of the policy.
        images = ImageSampler(self.policy) if self.networks.is_image_network and not compiled else None
        on_host = host_sampler(self.policy, self.networks.on_host("policy"), self.obs_normalizer)
        rollout = collector.collect(images or self.sample, noise, on_host=on_host)
        acted = images or (on_host if compiled else None)
        self._acted = None if acted is None else (rollout, acted)
        return rollout

    def update(self, rollout: Rollout) -> Metrics:
        """One step of policy, critics and statistics on a rollout of the present policy, or its passes; returns metrics.

        Raises:
            TrainingDiverged: if a gradient is not finite; nothing of that step is taken, and the rollout is not learned from again.
        """
        self.watch("advantage")
        batch, acted = self.batch(rollout)
        self._acted = None
        if self.return_spread is not None:
            self.return_spread.look_at(batch.return_ / self.reward_unit, batch.weight, self.workers)
            self._set_value_unit()
        if self.advantage_spread is not None:
            batch = in_unit_of(self.advantage_spread, batch, self.estimator.signal, self.reward_unit, self.workers)
        if self.value_replay is not None:
            batch = self.value_replay.join(batch, self.reward_unit, rollout, acted.params.detach())
        try:
            metrics, sums = self.learner.learn(batch, acted, self.schedule_factor(self.config.lr_schedule))
        except TrainingDiverged as error:
            if self.value_replay is not None:
                self.value_replay.forget_last()
            raise TrainingDiverged(f"{error} after {self.steps} steps; lower the learning rates or normalise") from None
        if (self.compiled_from is None) != (self.learner.compiled is None):
            self.compiled_from = None if self.learner.compiled is None else self.updates
        self.watch("statistics")
        if self.control_scale is not None:
            shared, own, plain = (float(sums[name]) for name in ("shared", "control", "plain"))
            self.control_scale.update(shared=shared, own=own, plain=plain)
            metrics["surrogate/scale"] = self.control_scale.value
        self.watch("communication" if self.workers.count > 1 else "statistics")
        spreads = self.return_spread, self.advantage_spread
        how: dict[str, Any] = {"reward_clip": self.config.reward_clip, "spreads": spreads}
        steps, episodes = absorb(self.workers, rollout, self.obs_normalizer, self.reward_scaler, **how)
        self._set_value_unit()
        self.steps += steps
        self.episodes += episodes
        self.updates += 1
        return metrics

    def batch(self, rollout: Rollout) -> tuple[Batch, Outputs]:
        """What an update sees of a rollout, and the networks' outputs on its rows, with their graphs unless gradients are compiled."""
        networks, config = self.networks, self.config
        recalled = self._acted[1].recalled() if self._acted is not None and self._acted[0] is rollout else None
        obs = rollout.obs.flatten(0, 1)
        seen = torch.cat([obs, rollout.final_obs]) if rollout.final_obs.shape[0] else obs
        seen, rows = seen.to(self.device), rollout.num_steps * rollout.num_envs
        if self.obs_normalizer is not None:
            seen = self.obs_normalizer(seen)
        forward: Callable[..., Outputs] = networks if self.learner.compiled is None else networks.without_graph
        if rollout.memory is not None:
            acted = networks(seen, rows, memory=rollout.memory.to(self.device))
        else:
            acted = forward(seen, rows, recalled)
        shard = shard_of_rollout(self.workers, rollout.num_steps, rollout.num_envs, self.device)
        how: dict[str, Any] = {"config": config, "shard": shard, "reward_scale": self.reward_unit}
        coef = self.learner.multipliers.entropy_coef(self.schedule_factor(config.entropy_schedule))
        if config.soft_returns:
            how["bonus"] = entropy_bonus(config, self.policy, acted.params, rollout.mask, coef)
        batch = make_batch(rollout, seen[:rows], acted.value.detach(), **how)
        if config.entropy_coef or config.soft_returns:
            batch = replace(batch, entropy_coef=batch.weight.new_tensor(coef))
        if self.control_scale is not None:
            batch = replace(batch, control_scale=batch.weight.new_tensor(self.control_scale.value))
        if self.learner.multipliers.kl is not None:
            batch = self.learner.multipliers.bounded(batch, self.schedule_factor(config.kl_schedule))
        return batch, acted


Callback = Callable[[ActorCritic, UpdateInfo], "bool | None"]
"""Called with the agent and an `UpdateInfo` after every update; returning False ends the training."""

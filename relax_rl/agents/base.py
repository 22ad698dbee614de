"""The actor-critic that all agents share; an agent adds only how it forms its gradient."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from relax_rl.agents import learning, persistence
from relax_rl.agents.ascent import clip, entropy_weight, move, pull_back
from relax_rl.agents.batch import Batch, batch_statistics
from relax_rl.agents.callback import Callback, UpdateInfo
from relax_rl.agents.compiled import CompiledStep, with_graph
from relax_rl.agents.estimated import Estimated
from relax_rl.agents.forward import Networks
from relax_rl.agents.optimizers import Adam, FlatParameters, Optimizer, RMSprop
from relax_rl.agents.value_replay import ValueReplay
from relax_rl.compilation import CompilationError, warn_or_raise
from relax_rl.devices import resolve_device
from relax_rl.distributed import ALONE, Workers
from relax_rl.errors import SettingsError
from relax_rl.normalization import ObservationNormalizer, RewardScaler, RunningScale
from relax_rl.profiling import Watch, unwatched
from relax_rl.rollouts import Collector, Rollout
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.fields import with_settings
from relax_rl.spaces import ActionEncoder, ObservationEncoder

if TYPE_CHECKING:
    from relax_rl.envs import VectorEnvs

__all__ = ["ActorCritic", "Callback", "UpdateInfo"]

AgentT = TypeVar("AgentT", bound="ActorCritic")


class ActorCritic:
    """A policy, a value function and a way to estimate the gradient at the action distribution's parameters.

    Args:
        observation_space, action_space: of a single environment.
        seed: of the initial weights and of all noise.
        config: settings; single ones can be given or overridden as keyword arguments.

    Attributes:
        steps, updates, episodes: valid environment steps, updates and finished episodes learned from so far.
        workers: the processes that learn together; `join` sets them.
        watch: told which section of an update begins; see `relax_rl.profiling`.
        compiled: takes the steps in the place of eager code, once `learn` has found that it pays.
        theta: the parameters of the policy, and those of the value function alone.

    Raises:
        SettingsError: for spaces or settings that cannot work.
    """

    name: ClassVar[str] = ""
    action_kinds: ClassVar[tuple[str, ...]] = ("categorical", "multi_categorical", "bernoulli", "gaussian")

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        seed: int = 0,
        config: AgentConfig | None = None,
        **settings: Any,
    ) -> None:
        self.config = with_settings(config or AgentConfig(), settings)
        self.observation_space, self.action_space, self.seed = observation_space, action_space, seed
        self.observations, self.actions = ObservationEncoder(observation_space), ActionEncoder(action_space)
        self.check_action_kind(self.actions.kind)
        if self.config.squash:
            self.actions.require_bounded()
        self.device = resolve_device(self.config.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.steps = self.updates = self.episodes = 0
        self.schedule_start, self.schedule_end = 0, 0
        self.workers: Workers = ALONE
        self.watch: Watch = unwatched
        self.compiled: CompiledStep | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build()

    @classmethod
    def check_action_kind(cls, kind: str) -> None:
        """Raises SettingsError if this estimator is not for such actions."""
        if kind not in cls.action_kinds:
            other = "lax" if kind == "gaussian" else "relax"
            actions = "continuous" if kind == "gaussian" else "discrete"
            raise SettingsError(
                f"estimator {cls.name!r} does not fit {actions} actions; use {other!r} (or auto, a2c, reinforce)"
            )

    def _build(self) -> None:
        config = self.config
        self._networks = Networks(self.observations, self.actions, config, self.device)
        self.policy, self.value = self._networks.policy, self._networks.value
        self.shared_torso, own = self._networks.shared_torso, self._networks.value_part
        self.theta = FlatParameters(self.policy.parameters()), FlatParameters(own.parameters())
        optimizer = {"adam": Adam, "rmsprop": RMSprop}[config.optimizer]
        self.policy_optimizer: Optimizer = optimizer(self.theta[0], lr=config.policy_lr)
        self.value_optimizer: Optimizer = optimizer(self.theta[1], lr=config.value_lr)
        normalize = config.normalize_obs and not self.shared_torso
        self.obs_normalizer = ObservationNormalizer(self.observations.shape, self.device) if normalize else None
        self.reward_scaler = RewardScaler(config.gamma) if config.normalize_reward else None
        self.advantage_scale = RunningScale() if config.advantage_scale == "running" else None
        self.value_replay = ValueReplay(config.value_replay) if config.value_replay else None

    def components(self) -> dict[str, Any]:
        """Everything that learns or counts, by name: modules, optimisers and statistics, each with a state_dict."""
        everything = {
            "policy": self.policy,
            "value": self._networks.value_part,
            "policy_optimizer": self.policy_optimizer,
            "value_optimizer": self.value_optimizer,
            "obs_normalizer": self.obs_normalizer,
            "reward_scaler": self.reward_scaler,
            "advantage_scale": self.advantage_scale,
        }
        return {name: part for name, part in everything.items() if part is not None}

    @property
    def reward_unit(self) -> float:
        """What raw rewards are multiplied by at present."""
        return self.reward_scaler.scale if self.reward_scaler is not None else 1.0

    @property
    def num_surrogate_features(self) -> int:
        """Length of `Batch.features`."""
        return self.policy.torso.num_features if self.shared_torso else self.observations.shape[0]

    def schedule_factor(self, schedule: str) -> float:
        """What a setting on the schedule "constant" or "linear" is multiplied by at the present step."""
        if schedule == "constant" or self.schedule_end <= self.schedule_start:
            return 1.0
        return max(0.0, (self.schedule_end - self.steps) / (self.schedule_end - self.schedule_start))

    # Acting

    def normalized(self, obs: Tensor) -> Tensor:
        """Encoded observations `[B, ...]` as the networks take them."""
        return self.obs_normalizer(obs) if self.obs_normalizer is not None else obs

    def sample_noise(self, *shape: int) -> Tensor:
        """`[*shape, ...]` base noise for that many actions, from the agent's generator."""
        blank = torch.zeros((math.prod(shape), self.policy.num_params), device=self.device)
        noise = self.policy.distribution(blank).sample_noise(self.generator)
        return noise.reshape(*shape, *noise.shape[1:])

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Outcomes `[N, ...]` of the policy for encoded observations `[N, ...]` and base noise `[N, ...]`."""
        with torch.inference_mode():
            dist = self.policy.distribution(self.policy(self.normalized(obs.to(self.device))))
            return dist.threshold(dist.relax(noise))

    def to_env(self, outcome: np.ndarray) -> np.ndarray:
        """Outcomes `[N, ...]` of the action distribution as actions of the environment."""
        if self.config.squash:
            return self.actions.to_env(np.tanh(outcome), squashed=True)
        return self.actions.to_env(outcome)

    def act(self, obs: Any, *, deterministic: bool = False) -> np.ndarray:
        """Actions for a batch of raw observations, ready for `envs.step`; the mode of the policy if `deterministic`."""
        encoded = torch.from_numpy(np.ascontiguousarray(self.observations.encode(obs)))
        if deterministic:
            with torch.inference_mode():
                outcome = self.policy.distribution(self.policy(self.normalized(encoded.to(self.device)))).mode()
        else:
            outcome = self.sample(encoded, self.sample_noise(len(encoded)))
        return self.to_env(outcome.cpu().numpy())

    def predict(
        self, obs: Any, state: Any = None, episode_start: np.ndarray | None = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Stable-Baselines3's `predict`: actions for one observation or a batch, and the state, which is passed through.

        Args:
            obs: one raw observation, or a batch of them.
            state, episode_start: for recurrent policies, of which this is none.
            deterministic: take the mode of the policy instead of a sample.
        """
        batch, single = self.observations.as_batch(obs)
        actions = self.act(batch, deterministic=deterministic)
        return (actions[0] if single else actions), state

    # Learning

    def join(self, workers: Workers) -> None:
        """Learn together with the same agent in other processes, from the state of the first one.

        Each has as many environments of its own. W workers of N environments take the same steps, to rounding, as one
        of W N: gradients, statistics, counters and decisions are those of all rows.
        """
        self.workers = workers
        if workers.count > 1:
            persistence.share_state(self)

    def learn(
        self: AgentT,
        envs: VectorEnvs,
        total_steps: int,
        callbacks: Iterable[Callback] = (),
        *,
        reset_schedule: bool = True,
    ) -> AgentT:
        """Train for `total_steps` more environment steps (at least: whole rollouts are used).

        Args:
            envs: environments with this agent's spaces.
            total_steps: steps summed over the environments.
            callbacks: called after every update; one that returns False ends the training, of all workers.
            reset_schedule: start schedules anew; False goes on with those of the last call, as after a load.

        Raises:
            SettingsError: if the environments have other spaces, or if compiled code is asked for and impossible.
            TrainingDiverged: if a gradient is not finite.
            WorkerLost: if another worker stops.
        """
        learning.learn(self, envs, total_steps, callbacks, reset_schedule=reset_schedule)
        return self

    def collector(self, envs: VectorEnvs) -> Collector:
        """What steps these environments, `num_steps` at a time, with this agent's view of them."""
        return Collector(envs, self.observations.encode, self.to_env, self.config.num_steps, watch=self.watch)

    def collect(self, collector: Collector) -> Rollout:
        """A rollout of the present policy."""
        return learning.collect(self, collector)

    def update(self, rollout: Rollout) -> dict[str, Tensor | float]:
        """One step of policy, critics and statistics on a rollout of the present policy; returns metrics.

        Raises:
            TrainingDiverged: if a gradient is not finite; nothing has been changed then.
        """
        return learning.update(self, rollout)

    def step(self, batch: Batch, params: Tensor, value: Tensor) -> dict[str, Tensor | float]:
        """One step of policy, value function and surrogate; returns metrics.

        Args:
            batch: rows of a rollout.
            params, value: `[B, P]` and `[B]` of these rows, with their graphs.
        """
        if self.compiled is not None:
            try:
                return self.compiled(self, batch)
            except CompilationError as error:
                warn_or_raise(error, self.config.compile)
                self.compiled = None
                batch, params, value = with_graph(self, batch)
        self.watch("estimate")
        estimated = self.estimate(batch)
        self.watch("backward")
        loss = pull_back(self, batch, params, value, estimated.grad, entropy_weight(self))
        metrics: dict[str, Tensor | float] = {"losses/value": loss, **move(self, clip(self))}
        if self.learns_along(batch):
            self.watch("surrogate")
            metrics |= self.train_surrogate(batch, estimated)
        self.watch("statistics")
        metrics |= batch_statistics(batch, value.detach(), self._gradients(batch, estimated))
        return metrics | self._sums(batch, estimated)

    def estimate(self, batch: Batch) -> Estimated:
        """Estimate of the gradient of the expected return at `batch.dist.params`, row by row."""
        raise NotImplementedError

    def batch(self, rollout: Rollout) -> tuple[Batch, Tensor, Tensor]:
        """What an update sees of a rollout of the present policy.

        Returns:
            The batch, and the policy's parameters `[B, P]` and V `[B]` at its rows, with their graphs unless the step
            is compiled.
        """
        return learning.batch_of(self, rollout)

    def learns_along(self, batch: Batch) -> bool:
        """Whether the surrogate learns from a batch in the very step that the policy takes on it.

        Not while the policy passes over a rollout: the estimate is unbiased for a surrogate that has not seen the
        actions it is used on.
        """
        return batch.old_log_prob is None and not self.config.surrogate_replay

    def train_surrogate_later(self, rollout: Rollout, batch: Batch, count: int) -> dict[str, Tensor | float]:
        """Train what the estimate depends on once policy and V have taken their steps on a rollout; returns metrics.

        Args:
            rollout: the last one.
            batch: its rows, under the policy that acted.
            count: steps that the policy has taken.
        """
        return {}

    def train_surrogate(self, batch: Batch, estimated: Estimated) -> dict[str, Tensor | float]:
        """Train what the estimate depends on beside the policy, if there is any; returns metrics."""
        return {}

    def _gradients(self, batch: Batch, estimated: Estimated) -> dict[str, Tensor]:
        """`[B, P]` gradients, by the name under which to report their variance over rows."""
        return {"variance": estimated.grad}

    def _sums(self, batch: Batch, estimated: Estimated) -> dict[str, Tensor]:
        """Sums over rows that the agent takes out of the metrics again at the end of an update."""
        return {}

    def average(self, *gradients: Tensor) -> None:
        """Replace each gradient, in place, by its mean over the workers."""
        if self.workers.count > 1:
            self.watch("communication")
            self.workers.average_(*gradients)

    # State

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, and the rest as a JSON-able dictionary.

        Raises:
            TrainingDiverged: if a weight is not finite: such a state is never saved.
        """
        return persistence.agent_state(self)

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, into an agent of the same kind, spaces and settings.

        Raises:
            CheckpointError: if it does not fit.
        """
        self._networks.forget()
        persistence.restore_agent(self, tensors, state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole agent to one safetensors file, atomically."""
        persistence.save_agent(self, path)

    @classmethod
    def load(cls: type[AgentT], path: str | os.PathLike[str], *, device: str = "cpu") -> AgentT:
        """The agent saved at `path`; `ActorCritic.load` takes any kind, `RELAX.load` only its own.

        Raises:
            CheckpointError: if the file is unreadable or holds another kind of agent.
        """
        return persistence.load_agent(cls, path, device)

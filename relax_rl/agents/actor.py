"""A policy with all that stands between it and an environment: what an agent needs to act."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from relax_rl.agents.factory import observations_for
from relax_rl.agents.networks import Networks
from relax_rl.agents.normalization import ObservationNormalizer
from relax_rl.agents.recurrence import step_with_memory
from relax_rl.compute.devices import resolve_device
from relax_rl.critics import ValueFunction
from relax_rl.errors import SettingsError
from relax_rl.networks.actions import action_encoder, first_action, outcomes_to_env, require_bounds
from relax_rl.networks.masks import action_masks_for
from relax_rl.networks.policies import Policy
from relax_rl.networks.spaces import ObservationEncoder
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.fields import whole

__all__ = ["Actor"]


class Actor:
    """Acts on raw observations.

    Args:
        observation_space, action_space: of a single environment.
        config: the agent's settings.
        seed: of the noise.
        own_networks: whether the networks are the user's own, which read small images flat unless a CNN is named.

    Attributes:
        config: the settings, `normalize_obs` being off where there are only images.
        observations, actions: between the environment's spaces and the networks.
        masks: reads what may be chosen among the actions; None where they are no choices.
        policy_observations, critic_observations: the same for the leaves that the policy, and its critics, see.
        networks: set by whoever inherits this.
        obs_normalizer: of encoded observations, None for none.
        generator: of all noise.

    Raises:
        SettingsError: for spaces or settings that cannot work.
    """

    networks: Networks

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: AgentConfig,
        seed: int,
        *,
        own_networks: bool = False,
    ) -> None:
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            if not isinstance(space, spaces.Space):
                raise SettingsError(
                    f"{name} is a {type(space).__name__}, expected a space of Gymnasium; an agent is made of "
                    "envs.single_observation_space and envs.single_action_space"
                )
        self.seed = whole("seed", seed, least=0)
        self.observation_space, self.action_space = observation_space, action_space
        self.observations = observations_for(observation_space, config, own_networks=own_networks)
        self.actions, self.masks = action_encoder(action_space), action_masks_for(action_space)
        self.policy_observations = self.observations.only(config.policy_keys, "policy_keys")
        self.critic_observations = self.observations.only(config.critic_keys, "critic_keys")
        if config.normalize_obs and not len(self.observations.vector_columns()):
            config = replace(config, normalize_obs=False)  # images are not normalised
        self.config = config
        beta = config.action_distribution == "beta"
        require_bounds(self.actions, squash=config.squash, beta=beta)
        self._outcomes_to_env = outcomes_to_env(
            self.actions, squash=config.squash, beta=beta, rescale=config.rescale_actions
        )
        self.device = resolve_device(config.device)
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        self.obs_normalizer: ObservationNormalizer | None = None

    @property
    def policy(self) -> Policy:
        """Encoded, normalised observations to the parameters of an action distribution."""
        return self.networks.policy

    @property
    def value(self) -> ValueFunction:
        """V of encoded, normalised observations."""
        return self.networks.value

    @property
    def surrogate(self) -> torch.nn.Module | None:
        """c^, of a description of the state and a relaxed action; None for estimators without one."""
        return self.networks.surrogate

    @property
    def encode(self) -> Callable[[Any], np.ndarray]:
        """From a batch of raw observations to the array that is normalised."""
        shift = None if self.obs_normalizer is None else self.obs_normalizer.shift
        return self.observations.encode if shift is None else partial(self.observations.encode, shift=shift)

    def encoded(self, obs: Any, part: ObservationEncoder) -> Tensor:
        """`[N, ...]` as `encode` gives it, on the host, of the leaves of a part alone, and 0 where others stand."""
        if part is self.observations:
            return torch.from_numpy(np.ascontiguousarray(self.encode(obs)))
        shift = None if self.obs_normalizer is None else self.obs_normalizer.shift
        columns = np.concatenate([np.arange(*span) for span in self.observations.spans(part)])
        seen = part.encode(obs, shift=None if shift is None else shift[columns])
        out = np.zeros((len(seen), *self.observations.shape), self.observations.dtype)
        out[:, columns] = seen.reshape(len(seen), -1)
        return torch.from_numpy(out)

    def check_precision(self) -> None:
        """Raises SettingsError if the networks are not of float32, as observations are."""
        found = self.policy.head.weight.dtype
        if found != torch.float32:
            raise SettingsError(
                f"the agent's networks are {found}, torch's default dtype when they were made, expected torch.float32; "
                "call torch.set_default_dtype(torch.float32) before making the agent"
            )

    def normalized(self, obs: Tensor) -> Tensor:
        """Encoded observations `[B, ...]` as the networks take them."""
        return self.obs_normalizer(obs) if self.obs_normalizer is not None else obs

    def unnormalized(self, obs: Tensor) -> Tensor:
        """Encoded observations `[B, ...]` from what `normalized` made of them, as far as nothing was clipped."""
        return self.obs_normalizer.inverse(obs) if self.obs_normalizer is not None else obs

    def sample_noise(self, *shape: int) -> Tensor:
        """`[*shape, ...]` base noise for that many actions, from the agent's generator."""
        blank = torch.zeros(
            (math.prod(shape), self.policy.num_params), dtype=self.policy.head.weight.dtype, device=self.device
        )
        noise = self.policy.distribution(blank).sample_noise(self.generator)
        return noise.reshape(*shape, *noise.shape[1:])

    def sample(self, obs: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outcomes `[N, ...]` of the policy for encoded observations `[N, ...]`, base noise `[N, ...]` and what is allowed.

        Args:
            obs, noise: these.
            mask: `[N, W]` bool as rows of `ActionMasks`; None where everything is allowed.
        """
        with torch.inference_mode():
            params = self.policy(self.normalized(obs.to(self.device)))
            dist = self.policy.distribution(params, None if mask is None else mask.to(self.device))
            return dist.threshold(dist.relax(noise))

    def to_env(self, outcome: np.ndarray) -> Any:
        """Outcomes `[N, ...]` of the action distribution as actions of the environment, arrays nested like its space."""
        return self._outcomes_to_env(outcome)

    def act(self, obs: Any, *, deterministic: bool = False, action_masks: Any = None) -> Any:
        """Actions for a batch of raw observations, ready for `envs.step`; the mode of the policy if `deterministic`.

        An array `[N, ...]`, or such arrays nested like a Dict or Tuple space.

        Args:
            obs: `[N, ...]`; leaves that the policy does not see may be left out.
            deterministic: take the mode of the policy instead of a sample.
            action_masks: `[N, ...]` what may be chosen, see `ActionMasks.rows`; None allows everything.

        Raises:
            SettingsError: if a mask does not fit the actions, or allows none; or if the policy has a memory.
        """
        if self.networks.state_sizes[0]:
            raise SettingsError("the agent has a memory: call act_from(obs, state, episode_start), or predict")
        self.check_precision()
        encoded = self.encoded(obs, self.policy_observations)
        mask = None if action_masks is None else self._mask(action_masks, len(encoded))
        if deterministic:
            with torch.inference_mode():
                params = self.policy(self.normalized(encoded.to(self.device)))
                outcome = self.policy.distribution(params, mask).mode()
        else:
            outcome = self.sample(encoded, self.sample_noise(len(encoded)), mask)
        return self.to_env(outcome.cpu().numpy())

    def act_from(
        self,
        obs: Any,
        state: Any = None,
        episode_start: Any = None,
        *,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Actions as `act` gives them, and the state `[N, S]` that the next call goes on from; None without a memory.

        Args:
            obs, deterministic, action_masks: as for `act`.
            state: what the last call gave; None where all episodes begin.
            episode_start: `[N]` bool, where one begins, and the state is forgotten; None for nowhere.

        Raises:
            SettingsError: if one of them does not fit.
        """
        if not self.networks.state_sizes[0]:
            return self.act(obs, deterministic=deterministic, action_masks=action_masks), state
        self.check_precision()
        encoded = self.encoded(obs, self.policy_observations)
        mask = None if action_masks is None else self._mask(action_masks, len(encoded))
        outcome, after = step_with_memory(self, encoded, state, episode_start, mask, deterministic=deterministic)
        return self.to_env(outcome.cpu().numpy()), after

    def _mask(self, action_masks: Any, count: int) -> Tensor:
        if self.masks is None:
            raise SettingsError(f"action_masks are for choices, not for actions of {self.action_space}; leave them out")
        rows = self.masks.rows(action_masks, count)
        stuck = self.masks.stuck(rows)
        if stuck.any():
            raise SettingsError(
                f"action_masks[{int(np.argmax(stuck))}] allows no action, expected at least one (in every dimension)"
            )
        return torch.from_numpy(rows).to(self.device)

    def predict(
        self,
        obs: Any = None,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
        *,
        observation: Any = None,
    ) -> tuple[Any, Any]:
        """Stable-Baselines3's `predict`: actions for one observation or a batch, and the state after them.

        Actions have the structure of the action space: an array, or arrays in dictionaries and tuples.

        Args:
            obs: one raw observation, or a batch of them; leaves that the policy does not see may be left out.
            state: of a policy with a memory, `[N, S]` as the last call gave it, None where all episodes begin; that of one
                without is passed through.
            episode_start: `[N]` bool, where one begins, and the state is forgotten; None for nowhere.
            deterministic: take the mode of the policy instead of a sample.
            action_masks: what may be chosen, one mask or a batch of them, as sb3-contrib's; see `ActionMasks.row`.
            observation: the same as `obs`, under Stable-Baselines3's name.

        Raises:
            SettingsError: if that is no observation of the agent's space, or one with a number that is not finite; or if a
                mask does not fit the actions, or allows none.
        """
        batch, single = self.policy_observations.as_batch(observation if obs is None else obs)
        if single and action_masks is not None and self.masks is not None:
            action_masks = self.masks.row(action_masks)[None]
        actions, state = self.act_from(
            batch, state, episode_start, deterministic=deterministic, action_masks=action_masks
        )
        return (first_action(actions) if single else actions), state

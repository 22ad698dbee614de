"""Earlier rollouts whose returns are computed anew at every update, by V-trace with the policy and V at hand."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from relax_rl.agents.batch import MOST_LOG_RATIO, Batch
from relax_rl.agents.networks import Networks
from relax_rl.agents.replay import ValueReplay
from relax_rl.agents.returns import values_in_time, vtrace
from relax_rl.agents.rollouts import Rollout
from relax_rl.agents.trust_region import entropy_bonus
from relax_rl.settings.config import AgentConfig

__all__ = ["RolloutReplay", "make_replay"]


@dataclass(frozen=True)
class _Kept:
    """What is kept of a `Rollout`, as it was; `log_prob` is that of the policy that acted, `[T, N]`."""

    obs: Tensor
    action: Tensor
    log_prob: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    final_obs: Tensor
    final_index: Tensor
    mask: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: x for field in fields(self) if (x := getattr(self, field.name)) is not None}


class RolloutReplay:
    """The last few rollouts, for the critics to learn from beside the present one; see `ValueReplay`.

    Their returns are those of the policy at hand, not of the one that acted: V-trace (Espeholt et al. 2018), with ratios
    of probabilities cut at 1 and lambda as for the advantages, bootstrapped from V at hand. Observations are normalised,
    and rewards clipped and scaled, as they are at present.

    Args:
        config: says how many rollouts are kept, gamma, lambda and where rewards are clipped.
        networks: policy and V at hand.
        normalized: encoded observations `[B, ...]` as the networks take them.
        actions: whether what was done and what it was worth is told too, for a critic of actions.
    """

    def __init__(
        self, config: AgentConfig, networks: Networks, normalized: Callable[[Tensor], Tensor], *, actions: bool = False
    ) -> None:
        self._names = ("obs", "return", "weight", *(("action", "worth") if actions else ()))
        self._config, self._networks, self._normalized = config, networks, normalized
        self._rollouts: deque[_Kept] = deque(maxlen=config.value_replay)

    def join(self, batch: Batch, unit: float, rollout: Rollout, params: Tensor) -> Batch:
        """A rollout with those before it; it is kept for those to come, and stands in for those that are missing.

        Args:
            batch: all its rows.
            unit: what raw rewards are multiplied by.
            rollout: it.
            params: `[B, P]` of the policy that acted in it, without graph.
        """
        shape = rollout.reward.shape
        coef = batch.entropy_coef if self._config.soft_returns else None
        earlier = [self._rows(kept, unit, coef) for kept in self._rollouts if kept.reward.shape == shape]
        own = (batch.obs, batch.return_, batch.weight, batch.action, batch.return_)
        earlier += [own] * (self._config.value_replay - len(earlier))
        log_prob = self._log_prob(params, batch.mask, batch.action).view(shape).cpu()
        shared = {f.name: getattr(rollout, f.name) for f in fields(_Kept) if f.name != "log_prob"}
        self._rollouts.append(_Kept(log_prob=log_prob, **shared))
        found = [rows[: len(self._names)] for rows in earlier]
        past = [torch.stack(each) for each in zip(*found, strict=True)]
        named: dict[str, Any] = {f"past_{name}": x for name, x in zip(self._names, past, strict=True)}
        return replace(batch, **named)

    def _rows(self, kept: _Kept, unit: float, coef: Tensor | None) -> tuple[Tensor, ...]:
        """`[T N, ...]` of a rollout: observations as the networks take them, returns of the policy at hand, weights, actions and their worth.

        Returns count the entropy of the policy at hand, times `coef`, unless that is None.
        """
        config, networks, (steps, num_envs) = self._config, self._networks, kept.reward.shape
        device, rows = next(networks.parameters()).device, steps * num_envs
        seen = self._normalized(torch.cat([kept.obs.flatten(0, 1), kept.final_obs]).to(device))
        said = networks.without_graph(seen, rows)
        mask = None if kept.mask is None else kept.mask.flatten(0, 1).to(device)
        action = kept.action.flatten(0, 1).to(device)
        log_prob = self._log_prob(said.params, mask, action).view(steps, num_envs).cpu()
        values, successors = values_in_time(said.value.cpu(), num_envs, kept.final_index)
        reward = kept.reward.clamp(-config.reward_clip, config.reward_clip) * unit
        if coef is not None:
            bonus = entropy_bonus(config, networks.policy, said.params, kept.mask, coef)
            reward = reward + bonus.view(reward.shape).cpu()
        found = vtrace(
            (log_prob - kept.log_prob).clamp(max=MOST_LOG_RATIO),
            reward,
            values[:-1],
            successors,
            kept.terminated,
            kept.truncated,
            kept.valid,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        target, worth = (x.flatten().to(device) for x in (found.target, found.worth))
        return seen[:rows], target, kept.valid.flatten().to(device, said.value.dtype), action, worth

    @torch.no_grad()
    def _log_prob(self, params: Tensor, mask: Tensor | None, action: Tensor) -> Tensor:
        return self._networks.policy.distribution(params, mask).log_prob(action)

    def forget_last(self) -> None:
        """Keep the rollout that joined last for no later one."""
        self._rollouts.pop()

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": x for number, kept in enumerate(self._rollouts) for name, x in kept.tensors().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave, the latest of it that have a place; of a state that holds nothing begin anew."""
        self._rollouts.clear()
        for number in itertools.takewhile(lambda k: f"{k}.obs" in state, itertools.count()):
            names = [f.name for f in fields(_Kept) if f.name != "mask" or f"{number}.mask" in state]
            self._rollouts.append(_Kept(**{name: state[f"{number}.{name}"] for name in names}))


def make_replay(
    config: AgentConfig, networks: Networks, normalized: Callable[[Tensor], Tensor]
) -> ValueReplay | RolloutReplay | None:
    """The earlier rollouts that critics learn from as the settings say; None if they learn from the present one alone."""
    if not config.value_replay:
        return None
    actions = networks.surrogate is not None and config.surrogate_loss == "critic"
    if config.replay_targets == "kept":
        return ValueReplay(config.value_replay, actions=actions)
    return RolloutReplay(config, networks, normalized, actions=actions)

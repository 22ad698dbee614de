"""Scoring an agent: separate environments, a seed of their own, frozen statistics, raw returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relax_rl.settings.fields import to_json

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic
    from relax_rl.envs import VectorEnvs
    from relax_rl.settings.config import EnvConfig

__all__ = ["EVALUATION_STREAM", "Scores", "envs_of", "evaluate", "evaluation_envs"]

EVALUATION_STREAM = 10**12
"""Second word of the seed of environments for evaluation; a step count, the second word on resuming, never gets there."""


@dataclass(frozen=True)
class Scores:
    """Raw returns and lengths of the episodes of one evaluation, `returns[i]` with `lengths[i]`."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return."""
        return math.fsum(self.returns) / len(self.returns)

    @property
    def std(self) -> float:
        """Standard deviation of the returns (over the episodes themselves, divisor N)."""
        return math.sqrt(math.fsum((r - self.mean) ** 2 for r in self.returns) / len(self.returns))

    @property
    def length_mean(self) -> float:
        """Mean number of steps."""
        return sum(self.lengths) / len(self.lengths)


def envs_of(config: EnvConfig, *, seed: int | Sequence[int], **changes: Any) -> VectorEnvs:
    """The environments that the settings of a run ask for.

    Args:
        config: these settings.
        seed: see `make_envs`.
        changes: arguments of `make_envs` that win over them.

    Raises:
        SettingsError: the environments cannot be made.
    """
    from relax_rl.envs import make_envs

    settings = {**to_json(config), **changes}
    return make_envs(settings.pop("env"), seed=seed, **settings)


def evaluation_envs(config: EnvConfig, *, episodes: int, seed: int, **changes: Any) -> VectorEnvs:
    """Environments for an evaluation: those of training, but a lost life ends nothing.

    No more of them than episodes. Their streams of random numbers are not those of training with the same seed.

    Raises:
        SettingsError: the environment cannot be made.
    """
    num_envs = min(config.num_envs, episodes)
    return envs_of(config, seed=(seed, EVALUATION_STREAM), num_envs=num_envs, life_loss_terminal=False, **changes)


def evaluate(
    agent: ActorCritic,
    envs: VectorEnvs,
    *,
    episodes: int,
    seed: int,
    deterministic: bool,
    should_stop: Callable[[], bool] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Scores | None:
    """Returns of whole episodes, without learning anything.

    Each environment contributes a number of episodes that is fixed beforehand: taking whichever finish first would
    favour short ones. The agent's own random stream is left as it was, so that training goes on as without this.

    Args:
        agent: is not changed.
        envs: environments that nothing else uses, made with `life_loss_terminal=False`; they are reset here.
        episodes: how many in all.
        seed: of the environments and of the agent's actions.
        deterministic: take the mode of the policy instead of a sample.
        should_stop: asked after every step; True breaks off.
        after_step: called after every step (to take a picture, say).

    Returns:
        The scores, ordered by environment; None if broken off.
    """
    from relax_rl.agents.rollouts import require_envs

    require_envs(envs, agent.observation_space, agent.action_space)
    saved = agent.generator.get_state()
    agent.generator.manual_seed(seed)
    try:
        quota = [episodes // envs.num_envs + (row < episodes % envs.num_envs) for row in range(envs.num_envs)]
        finished: list[list[tuple[float, int]]] = [[] for _ in quota]
        returns = np.zeros(envs.num_envs)
        lengths = np.zeros(envs.num_envs, dtype=np.int64)
        envs.reset((seed, EVALUATION_STREAM))
        while any(len(done) < wanted for done, wanted in zip(finished, quota, strict=True)):
            step = envs.step(agent.act(envs.obs, deterministic=deterministic))
            returns += step.reward
            lengths += step.valid
            for row in np.flatnonzero(step.terminated | step.truncated):
                if len(finished[row]) < quota[row]:
                    finished[row].append((float(returns[row]), int(lengths[row])))
                returns[row] = lengths[row] = 0
            if after_step is not None:
                after_step()
            if should_stop is not None and should_stop():
                return None
        scores = [score for done in finished for score in done]
        return Scores(tuple(r for r, _ in scores), tuple(length for _, length in scores))
    finally:
        agent.generator.set_state(saved)

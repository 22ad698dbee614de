"""Scoring an agent: separate environments, a seed of their own, frozen statistics, raw returns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relax_rl.backends.infos import info_means
from relax_rl.errors import EnvironmentFault
from relax_rl.settings.config import STEP_LIMIT
from relax_rl.settings.fields import to_json, whole

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic
    from relax_rl.envs import VectorEnvs
    from relax_rl.settings.config import EnvConfig

__all__ = ["EVALUATION_STREAM", "SELECTION_STREAM", "Scores", "envs_of", "evaluate", "evaluation_envs", "now_and_then"]

EVALUATION_STREAM = 10**12
"""Second word of the seed of environments for evaluation; a step count, the second word on resuming, never gets there."""
SELECTION_STREAM = EVALUATION_STREAM + 1
"""In place of it for evaluations during training, by which the best agent is kept: one that is kept for its luck in them shall not
have it again where it is scored."""


@dataclass(frozen=True)
class Scores:
    """Raw returns and lengths of the episodes of one evaluation, `returns[i]` with `lengths[i]`.

    Attributes:
        infos: what infos come to over each episode that ended (see `relax_rl.envs.Episode`), in the order of their ends.
        cut_off: how many of the episodes reached the step limit, and count with what they had by then.
        step_limit: that limit; 0 if none did.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    cut_off: int = 0
    step_limit: int = 0
    infos: tuple[Mapping[str, float], ...] = ()

    @property
    def info_means(self) -> dict[str, float]:
        """Means over the episodes, by column: `info/success_rate` and `info/NAME`; empty if none told anything."""
        return info_means(self.infos)

    @property
    def mean(self) -> float:
        """Mean return."""
        return math.fsum(self.returns) / len(self.returns)

    @property
    def std(self) -> float:
        """Standard deviation of the returns (over the episodes themselves, divisor N)."""
        mean = self.mean
        return math.sqrt(math.fsum((r - mean) ** 2 for r in self.returns) / len(self.returns))

    @property
    def length_mean(self) -> float:
        """Mean number of steps."""
        return sum(self.lengths) / len(self.lengths)

    def cut_off_told(self, option: str) -> str:
        """The line that is said of episodes that were cut off, naming the option of their limit; empty if there are none."""
        if not self.cut_off:
            return ""
        return (
            f"{self.cut_off:,} of {len(self.returns):,} episodes were cut off after {self.step_limit:,} steps, and count "
            f"with the return and length they had by then; {option} changes that"
        )


def now_and_then(say: Callable[[str], object], episodes: int, *, interval: float = 10.0) -> Callable[[int, int], None]:
    """For `progress` of `evaluate`: a line every few seconds of an evaluation that takes longer.

    Args:
        say: shows a line.
        episodes: of the evaluation.
        interval: seconds.
    """
    last = time.monotonic()

    def told(done: int, steps: int) -> None:
        nonlocal last
        if time.monotonic() - last >= interval:
            last = time.monotonic()
            say(f"evaluating: {done:,} of {episodes:,} episodes so far, {steps:,} steps")

    return told


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
    return make_envs(settings.pop("env"), seed=seed, wrappers=settings.pop("wrapper"), **settings)


def evaluation_envs(config: EnvConfig, *, episodes: int, seed: int, **changes: Any) -> VectorEnvs:
    """Environments for an evaluation: those of training, but a lost life ends nothing.

    No more of them than episodes. Their streams of random numbers are not those of training with the same seed, and `evaluate`
    resets them by the stream that it is given.

    Raises:
        SettingsError: the environment cannot be made.
    """
    num_envs = min(config.num_envs, episodes)
    return envs_of(config, seed=(seed, EVALUATION_STREAM), num_envs=num_envs, life_loss_terminal=False, **changes)


def _require_finite(agent: ActorCritic, envs: VectorEnvs, reward: np.ndarray) -> None:
    """Raises EnvironmentFault if a reward, `[N]` or after a reset `[0]`, or a number in the observations is not finite."""
    encoded = agent.encode(envs.obs)
    with np.errstate(over="ignore"):
        reward = reward.astype(np.float32)  # as training counts it
    told = {"a reward": reward, "a number in an observation": encoded.reshape(len(encoded), -1)}
    for what, numbers in told.items():
        if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
            place = tuple(np.argwhere(~np.isfinite(numbers))[0])
            raise EnvironmentFault(
                f"environment {place[0]} of {envs.env_id} gave {what} of {numbers[place]} in an evaluation, expected a finite "
                "number; mend the environment"
            )


def evaluate(
    agent: ActorCritic,
    envs: VectorEnvs,
    *,
    episodes: int,
    seed: int,
    deterministic: bool,
    stream: int = EVALUATION_STREAM,
    step_limit: int = STEP_LIMIT,
    should_stop: Callable[[], bool] | None = None,
    after_step: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
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
        stream: second word of the environments' seed.
        step_limit: steps after which an episode is cut off, and counts with what it has by then; 0 for none.
        should_stop: asked after every step; True breaks off.
        after_step: called after every step (to take a picture, say).
        progress: called after every step with the number of episodes that are done, and of steps.

    Returns:
        The scores, ordered by environment; None if broken off.

    Raises:
        SettingsError: `episodes` is below 1.
        EnvironmentFault: a reward or an observation is not a finite number, or a mask allows no action.
    """
    from relax_rl.agents.rollouts import require_envs

    episodes = whole("episodes", episodes, least=1)
    envs = require_envs(envs, agent.observation_space, agent.action_space)
    saved = agent.generator.get_state()
    agent.generator.manual_seed(seed)
    try:
        quota = [episodes // envs.num_envs + (row < episodes % envs.num_envs) for row in range(envs.num_envs)]
        finished: list[list[tuple[float, int]]] = [[] for _ in quota]
        returns = np.zeros(envs.num_envs)
        lengths = np.zeros(envs.num_envs, dtype=np.int64)
        infos: list[Mapping[str, float]] = []
        stuck, cut_off, steps = np.zeros(envs.num_envs, dtype=bool), 0, 0
        state = None  # of a policy with a memory
        envs.reset((seed, stream))
        _require_finite(agent, envs, np.empty(0))
        envs.drain_episodes()
        while any(wanting := [len(done) < wanted for done, wanted in zip(finished, quota, strict=True)]):
            if stuck[wanting].all():  # only all environments can be reset together, whatever steps them
                envs.reset()
                _require_finite(agent, envs, np.empty(0))
                stuck[:] = returns[:] = lengths[:] = 0
            starts = envs.steps_taken() == 0
            action, state = agent.act_from(
                envs.obs, state, starts, deterministic=deterministic, action_masks=envs.action_mask
            )
            step = envs.step(action)
            _require_finite(agent, envs, step.reward)
            returns += step.reward
            lengths += step.valid
            steps += int(np.count_nonzero(step.valid))
            ends = step.terminated | step.truncated
            cut = ~(ends | stuck) & (lengths >= (step_limit or np.inf))
            for row, episode in zip(np.flatnonzero(ends), envs.drain_episodes(), strict=False):
                if not stuck[row] and len(finished[row]) < quota[row] and episode.info:
                    infos.append(episode.info)
            for row in np.flatnonzero((ends & ~stuck) | cut):
                if len(finished[row]) < quota[row]:
                    finished[row].append((float(returns[row]), int(lengths[row])))
                    cut_off += int(cut[row])
            stuck = (stuck | cut) & ~ends
            returns[ends] = lengths[ends] = 0
            if after_step is not None:
                after_step()
            if progress is not None:
                progress(sum(map(len, finished)), steps)
            if should_stop is not None and should_stop():
                return None
        scores = [score for done in finished for score in done]
        returned, lasted = tuple(r for r, _ in scores), tuple(length for _, length in scores)
        return Scores(returned, lasted, cut_off=cut_off, step_limit=step_limit if cut_off else 0, infos=tuple(infos))
    finally:
        agent.generator.set_state(saved)

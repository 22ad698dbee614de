"""One adapter over vector environments: true successors and a validity mask, whatever the autoreset mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from relax_rl.backends.actions import ActionBins
from relax_rl.backends.batches import (
    CheckedActions,
    action_checker,
    copied,
    with_last_observations,
    without_broken,
)
from relax_rl.backends.checks import FirstLook
from relax_rl.backends.creation import AskedVectorization, vector_env_of
from relax_rl.backends.infos import InfoTerms
from relax_rl.backends.lives import Lives
from relax_rl.backends.masks import AskedMasks, EnvMasks
from relax_rl.backends.own import Making
from relax_rl.backends.records import Episode, Step
from relax_rl.backends.registry import is_atari
from relax_rl.backends.single import heed, not_one_each
from relax_rl.backends.traits import (
    Vectorization,
    autoreset_mode_named,
    declared_autoreset_mode,
    derived_seeds,
    frames_of,
    hands_out_fresh_arrays,
    require_whole_steps,
    vectorization_of,
)
from relax_rl.backends.workers import EnvironmentReport, close_vector_env
from relax_rl.errors import SettingsError
from relax_rl.settings.fields import whole

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Episode", "Step", "VectorEnvs", "make_envs"]


class VectorEnvs:
    """A Gymnasium vector environment of any autoreset mode, seen through `Step`.

    The rows that NEXT_STEP autoreset makes up are marked as not valid, also across the borders of rollouts; under
    SAME_STEP the last observation is put back in its place; under DISABLED finished environments are reset here.

    Args:
        vector_env: is owned from now on, and reset at once.
        seed: of the first episodes; see `reset`.
        env_id: its name in messages (default: that of its registration).
        vectorization: how it steps (default: told from its class).
        life_loss_terminal: report a lost life as `terminated`, while the game, its return and its length go on; needs
            `lives` in the infos.
        bins: cut every dimension of a Box of actions into this many equally spaced values, from bound to bound, and
            take choices among them (MultiDiscrete) instead; 0 leaves the actions as they are.
        first_env: how many environments of other processes stand before these; each process's get seeds of their own.
        action_masks, mask_key: where masks of actions come from, see `make_envs`.
        info_keys: numbers of the infos that episodes tell, beside success; "all" for every number.

    Attributes:
        obs: `[N, ...]`, what the next action is chosen on.
        action_mask: `[N, W]` bool, what that may be, as rows of `relax_rl.networks.masks.ActionMasks`; None without masks.
        first_env: how many environments of other processes stand before these.
        solve_threshold: the mean return at which the registration calls the environment solved, if it says so.
        vector_env: the wrapped environment.

    Raises:
        SettingsError: if the environment declares no autoreset mode, or one that it cannot keep; or if its actions
            cannot be cut into bins.
    """

    def __init__(
        self,
        vector_env: VectorEnv[Any, Any, Any],
        *,
        seed: int | Sequence[int] | None = 0,
        env_id: str | None = None,
        vectorization: Vectorization | None = None,
        life_loss_terminal: bool = False,
        bins: int = 0,
        first_env: int = 0,
        action_masks: AskedMasks = "auto",
        mask_key: str | None = None,
        info_keys: Sequence[str] = (),
    ) -> None:
        inner = vector_env.unwrapped
        self.vector_env = vector_env
        self.env_id: str = env_id or (inner.spec.id if inner.spec is not None else type(inner).__name__)
        self.num_envs: int = vector_env.num_envs
        self.single_observation_space: spaces.Space[Any] = vector_env.single_observation_space
        self._bins = ActionBins(vector_env.single_action_space, bins) if bins else None
        uncut: spaces.Space[Any] = vector_env.single_action_space
        self.single_action_space = uncut if self._bins is None else self._bins.space
        self.solve_threshold: float | None = inner.spec.reward_threshold if inner.spec is not None else None
        self.vectorization: Vectorization = vectorization or vectorization_of(inner)
        self.autoreset_mode: AutoresetMode = declared_autoreset_mode(vector_env)
        require_whole_steps(inner)
        self._report = EnvironmentReport(self.env_id, inner, first_env=first_env, steps=self.steps_taken)
        self._reset_report = EnvironmentReport(self.env_id, inner, first_env=first_env, when="at its reset")
        self.first_env = whole("first_env", first_env, least=0)
        self._copies = vector_env is not inner or not hands_out_fresh_arrays(inner)
        self._checked_action = action_checker(self.single_action_space, self.num_envs)
        if isinstance(inner, CartPoleVectorEnv) and isinstance(inner.action_space, spaces.MultiDiscrete):
            inner.action_space = CheckedActions(inner.action_space)  # its own check is a quarter of its step
        self._lives = Lives(life_loss_terminal, self.autoreset_mode)
        self._resetting, self._some_resetting = np.zeros(self.num_envs, dtype=bool), False
        self._episodes: list[Episode] = []
        self._terms = InfoTerms(self.num_envs, info_keys, self.env_id)
        self._look: FirstLook | None = FirstLook(self.single_observation_space, self.env_id)
        self._masks = EnvMasks(vector_env, self.single_action_space, action_masks, mask_key, self.env_id, first_env)
        self.reset(seed)

    def reset(self, seed: int | Sequence[int] | None = None) -> Any:
        """Starts a new episode in every environment and forgets the unfinished ones.

        Args:
            seed: non-negative numbers from which one well-separated seed per environment is derived, so that runs with
                neighbouring seeds share no random stream (native CartPole has a single stream, and gets one seed).
                None lets the environments' random streams go on.

        Returns:
            `obs`.

        Raises:
            SettingsError: for a negative seed.
            EnvironmentFault: if a worker process died, an environment calls `sys.exit`, or a mask allows no action.
        """
        seeds = (
            None if seed is None else derived_seeds(self.vector_env, seed, self.first_env, (self.single_action_space,))
        )
        with self._reset_report:
            obs, infos = self.vector_env.reset(seed=seeds)
        heed(infos)
        # Workers without shared memory do not take back a pending autoreset: theirs still makes up the next row.
        inner = self.vector_env.unwrapped
        if not (isinstance(inner, AsyncVectorEnv) and not inner.shared_memory):
            self._resetting, self._some_resetting = np.zeros(self.num_envs, dtype=bool), False
        self._lives.at_reset(infos)
        self._returns = np.zeros(self.num_envs, dtype=np.float64)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._terms.clear()
        self.obs = self._owned(obs)
        self._look_at(self.obs)
        self.action_mask: np.ndarray | None = self._masks.at_reset(self.obs, infos)
        return self.obs

    def step(self, action: Any) -> Step:
        """Takes one action in every environment.

        Args:
            action: `[N, ...]` inside the action space. Ignored where an environment is about to reset itself.

        Raises:
            SettingsError: if an action has the wrong shape or lies outside the space (ale-py would wait for ever).
            EnvironmentFault: if a worker process died, an environment calls `sys.exit`, or a mask allows no action.
        """
        action = self._checked_action(action)
        taken = action if self._bins is None else self._bins.to_box(action)
        obs, valid = self.obs, ~self._resetting
        with self._report:
            found, rewards, terminations, truncations, infos = self.vector_env.step(taken)
        next_obs = self._owned(found)
        reward = np.asarray(rewards).astype(np.float64)
        terminated, truncated = np.array(terminations, dtype=bool), np.array(truncations, dtype=bool)
        if not reward.shape == terminated.shape == truncated.shape == (self.num_envs,):
            raise SettingsError(not_one_each(self.env_id, self.num_envs, reward, terminated, truncated))
        if self._some_resetting:
            reward[self._resetting] = 0.0
            terminated &= valid
            truncated &= valid
        if self._look is not None:
            self._look_at(next_obs)
        done = terminated | truncated
        some_done, reset_infos = bool(done.any()), None
        if infos:
            heed(infos)
            self._terms.add(infos, valid, done)
        self._returns += reward
        self._lengths += valid
        lost = self._lives.lost(infos, valid, done)
        self.obs = next_obs
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._resetting, self._some_resetting = done, some_done
        if some_done:
            truncated &= ~terminated
            self._finish_episodes(done)
            if self.autoreset_mode is AutoresetMode.NEXT_STEP and terminated.any():
                # Nothing starts from such an observation, and nothing is bootstrapped from it: it may be anything.
                self.obs = next_obs = without_broken(next_obs, terminated)
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                first = getattr(self.vector_env.unwrapped, "_env_obs", None)
                next_obs = with_last_observations(next_obs, infos.get("final_obs"), first, done, self.env_id)
            elif self.autoreset_mode is AutoresetMode.DISABLED:
                reset_infos = self._reset_finished(done)
        if self.action_mask is not None:
            over = self._resetting if reset_infos is None else done
            self.action_mask = self._masks.after_step(
                self.obs, infos, self._lengths, over=over, reset_infos=reset_infos
            )
        if lost is not None and lost.any():
            terminated |= lost
            truncated &= ~lost
        return Step(obs, action, reward, next_obs, terminated, truncated, valid)

    @property
    def episode_steps(self) -> np.ndarray:
        """`[N]` steps taken in the present episodes."""
        return np.array(self._lengths)

    def drain_episodes(self) -> list[Episode]:
        """The episodes that finished since the last call, oldest first."""
        episodes, self._episodes = self._episodes, []
        return episodes

    def render(self) -> tuple[np.ndarray, ...]:
        """One RGB frame `[H, W, 3]` per environment; they must have been made with `render_mode="rgb_array"`.

        Raises:
            SettingsError: if the environments render nothing, or fail to.
        """
        return frames_of(self.vector_env, self.env_id, self.vectorization)

    def close(self) -> None:
        """Ends the environments and their worker processes; a second call does nothing."""
        close_vector_env(self.vector_env)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def steps_taken(self) -> np.ndarray:
        """`[N]` steps in the present episodes, -1 where the next one is a reset."""
        return np.where(self._resetting, -1, self._lengths)

    def _look_at(self, obs: Any) -> None:
        if self._look is not None and not self._look(obs):
            self._look = None

    def _owned(self, obs: Any) -> Any:
        return copied(obs) if self._copies else obs

    def _finish_episodes(self, done: np.ndarray) -> None:
        for row in np.flatnonzero(done):
            self._episodes.append(Episode(float(self._returns[row]), int(self._lengths[row]), self._terms.of(int(row))))
        self._returns[done] = 0.0
        self._lengths[done] = 0

    def _reset_finished(self, done: np.ndarray) -> Mapping[str, Any]:
        with self._reset_report:
            # Gymnasium takes the mask out of the dictionary, so each call gets its own.
            obs, infos = self.vector_env.reset(options={"reset_mask": done.copy()})
        self.obs = self._owned(obs)
        self._lives.at_reset(infos, done)
        return infos


def make_envs(
    env: str | Callable[..., Any] | gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
    *,
    num_envs: int = 8,
    seed: int | Sequence[int] = 0,
    vectorization: AskedVectorization = "auto",
    sticky_actions: float = 0.25,
    life_loss_terminal: bool = True,
    bins: int = 0,
    autoreset_mode: AutoresetMode | str | None = None,
    first_env: int = 0,
    drop_keys: Sequence[str] = (),
    action_masks: AskedMasks = "auto",
    mask_key: str | None = None,
    wrappers: Sequence[Any] = (),
    frame_stack: int = 0,
    info_keys: Sequence[str] = (),
    **env_kwargs: Any,
) -> VectorEnvs:
    """`VectorEnvs`: environments of one kind, stepped together, reset and ready.

    Args:
        env: Gymnasium id, or `module:EnvId` to import the module that registers it first; a class or function that makes
            one environment, or `module:name` of it; or an environment or vector environment that is there already, which
            is owned from now on and has its own `num_envs`.
        num_envs: how many.
        seed: one number or several; the environments' seeds are derived from it (see `VectorEnvs.reset`).
        vectorization: "native" vector code, threads in C++ ("envpool"), one process ("sync"), one process each
            ("async"), or "auto": native where it exists and can do what is asked; else envpool where it is installed,
            faster and the very same task; else sync.
        sticky_actions: Atari: probability that the last action is repeated, whatever the id says.
        life_loss_terminal: Atari: report a lost life as `terminated`, while the game goes on.
        bins: cut every dimension of continuous actions into this many equally spaced values, from bound to bound, and
            take choices among them (MultiDiscrete) instead; 0 leaves the actions as they are.
        autoreset_mode: "NEXT_STEP" (the default, right for every environment), "SAME_STEP" or "DISABLED".
        first_env: how many environments of other processes stand before these: the seeds are those that follow theirs.
        drop_keys: leaves of the observations to leave out, by name: keys and indices on the way to them, joined by dots.
            Leaves that no network reads, such as text, are left out anyway, with a warning.
        action_masks: which actions may be chosen is what `action_mask` of the infos says ("info"), or a method
            `action_masks()` of the environment ("method"), or either where it is there ("auto"), or nobody ("off").
        mask_key: or a leaf of the observations by its name, which `drop_keys` may leave out beside.
        wrappers: classes or functions put around each environment, or around all of them where they are vector wrappers, the
            first innermost; `module:Wrapper` and `name=value` texts do too.
        frame_stack: so many last observations at once, leaf by leaf along a new first axis; 0 for 4 in Atari, none elsewhere.
        info_keys: numbers of the infos whose means over an episode it tells (`Episode.info`), beside success; "all" for
            every number.
        env_kwargs: for the environment itself, one by one, or as a dictionary `env_kwargs={...}`.

    Raises:
        SettingsError: for an unknown environment (naming near ones), a missing package (naming what to install), or
            settings that do not go together.
    """
    making = Making.of(wrappers, frame_stack, drop_keys, info_keys, action_masks, mask_key)
    vector_env, spec, known = vector_env_of(
        env,
        num_envs=num_envs,
        vectorization=vectorization,
        autoreset_mode=autoreset_mode_named(autoreset_mode),
        sticky_actions=sticky_actions,
        env_kwargs={**(env_kwargs.pop("env_kwargs", None) or {}), **env_kwargs},
        making=making,
    )
    try:
        return VectorEnvs(
            vector_env,
            seed=seed,
            **known,
            life_loss_terminal=life_loss_terminal and is_atari(spec),
            bins=bins,
            first_env=first_env,
            mask_key=mask_key,
            info_keys=info_keys,
        )
    except BaseException:
        close_vector_env(vector_env)
        raise

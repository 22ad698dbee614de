"""The environments that a peer of Stable-Baselines3 is trained in: those of our own contestants, as its users would hand them over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ale_py
import gymnasium
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from relax_rl.backends.actions import BinnedActions
from relax_rl.backends.creation import single_env
from relax_rl.backends.frames import FrameStack
from relax_rl.backends.own import Making
from relax_rl.backends.registry import ATARI_FRAMES, find_spec
from relax_rl.backends.single import kept_space, prepared_env
from relax_rl.comparison.peers import Peer

__all__ = ["make_peer_envs"]

_LEAST_SIDE = 36
"""Of an image that the CNN of Stable-Baselines3 takes."""


def make_peer_envs(
    peer: Peer,
    seed: int,
    bins: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    wrapper: Sequence[str] = (),
    frame_stack: int = 0,
) -> VecEnv:
    """The peer's environments, seeded, each with a Monitor around all wrappers, normalised if its setting says so.

    Of a Dict or a Tuple of observations a peer sees what our own agents read of it. It is one vector, as its own policies would
    make of it, unless there is an image that is large enough for their CNN.
    """
    if peer.atari:
        gymnasium.register_envs(ale_py)
        skipping = {"frameskip": 1} if peer.env.startswith("ALE/") else {}
        kwargs = {**skipping, **(env_kwargs or {})}
        games = make_atari_env(peer.env, n_envs=peer.num_envs, seed=seed, env_kwargs=kwargs)
        return VecFrameStack(games, n_stack=frame_stack or ATARI_FRAMES)

    def readable(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        env = _with_readable_observations(env, peer.env)
        return BinnedActions(env, bins) if bins else env

    made = _inside(peer.env, wrapper, frame_stack)
    how: dict[str, Any] = {"env_kwargs": dict(env_kwargs or {}), "wrapper_class": readable}
    envs: VecEnv = make_vec_env(made, n_envs=peer.num_envs, seed=seed, **how)
    return VecNormalize(envs, gamma=peer.settings.get("gamma", 0.99)) if peer.normalize else envs


def _inside(env: str, wrapper: Sequence[str], frame_stack: int) -> str | Callable[..., gymnasium.Env[Any, Any]]:
    """What makes an environment inside wrappers, as our own contestants have it; its id where it has one and there are none."""
    spec, making = find_spec(env), Making.of(wrapper, frame_stack, ())
    if not wrapper and not frame_stack and spec.id in gymnasium.registry:
        return spec.id

    def made(**env_kwargs: Any) -> gymnasium.Env[Any, Any]:
        inner = single_env(spec, env_kwargs=env_kwargs, making=making)
        return FrameStack(inner, frame_stack) if frame_stack else inner

    return made


def _with_readable_observations(env: gymnasium.Env[Any, Any], name: str) -> gymnasium.Env[Any, Any]:
    whole = env.observation_space
    if not isinstance(whole, spaces.Dict | spaces.Tuple):
        # Its MLP would divide the few values of a small grid by 255.
        return FlattenObservation(env) if is_image_space(whole) and not _is_large_image(whole) else env
    space, unread = kept_space(whole, (), name)
    if unread:
        env = prepared_env(env, name, (), action_masks="off", mask_key=None)
    parts = list(space.values()) if isinstance(space, spaces.Dict) else []
    nested = any(isinstance(part, spaces.Dict | spaces.Tuple) for part in parts)
    return env if not nested and any(map(_is_large_image, parts)) else FlattenObservation(env)


def _is_large_image(space: spaces.Space[Any]) -> bool:
    return is_image_space(space) and sorted(space.shape or ())[1] >= _LEAST_SIDE

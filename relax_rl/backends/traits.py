"""What sets one kind of vector environment apart from another: autoreset mode, buffers, and the seeds it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import Space
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from relax_rl.backends.envpool import EnvPoolVectorEnv
from relax_rl.errors import SettingsError

__all__ = [
    "Vectorization",
    "autoreset_mode_named",
    "declared_autoreset_mode",
    "derived_seeds",
    "frames_of",
    "hands_out_fresh_arrays",
    "require_whole_steps",
    "vectorization_of",
]

Vectorization = Literal["native", "envpool", "sync", "async"]


def autoreset_mode_named(mode: AutoresetMode | str | None) -> AutoresetMode | None:
    """An autoreset mode from its name, in Gymnasium's spelling ("NextStep") or the constant's ("NEXT_STEP").

    Raises:
        SettingsError: if there is no such mode.
    """
    if mode is None or isinstance(mode, AutoresetMode):
        return mode
    for known in AutoresetMode:
        if mode in (known.value, known.name):
            return known
    raise SettingsError(
        f"autoreset_mode is {mode!r}, expected one of {', '.join(known.name for known in AutoresetMode)}"
    )


def declared_autoreset_mode(env: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """The autoreset mode of a vector environment.

    Its own attribute counts first: ale-py writes the metadata of every vector environment of the process at once.

    Raises:
        SettingsError: if it declares none, or one that it cannot keep.
    """
    mode = getattr(env.unwrapped, "autoreset_mode", None) or env.metadata.get("autoreset_mode")
    found = autoreset_mode_named(mode)
    if found is None:
        raise SettingsError(f"{env} does not declare its autoreset mode; set metadata['autoreset_mode']")
    if isinstance(env.unwrapped, CartPoleVectorEnv) and found is not AutoresetMode.NEXT_STEP:
        raise SettingsError(
            f"native CartPole cannot autoreset by {found.name}: it resets finished environments itself, "
            "in the next step; use NEXT_STEP or vectorization 'sync'"
        )
    return found


def require_whole_steps(env: VectorEnv[Any, Any, Any]) -> None:
    """Raises SettingsError if an unwrapped vector environment answers for some of its environments only in a step."""
    batch_size = getattr(env, "batch_size", env.num_envs)
    if batch_size != env.num_envs:
        raise SettingsError(
            f"batch_size is {batch_size}, expected {env.num_envs}: every environment answers every step"
        )


def vectorization_of(env: VectorEnv[Any, Any, Any]) -> Vectorization:
    """How an unwrapped vector environment steps."""
    if isinstance(env, SyncVectorEnv):
        return "sync"
    if isinstance(env, EnvPoolVectorEnv):
        return "envpool"
    return "async" if isinstance(env, AsyncVectorEnv) else "native"


def hands_out_fresh_arrays(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether an unwrapped vector environment is known never to write to an observation that it handed out."""
    if isinstance(env, SyncVectorEnv | AsyncVectorEnv):
        return bool(env.copy)
    return isinstance(env, CartPoleVectorEnv | EnvPoolVectorEnv) or _is_native_atari(env)


def derived_seeds(
    env: VectorEnv[Any, Any, Any], seed: int | Sequence[int], first: int = 0, spaces: Sequence[Space[Any]] = ()
) -> Any:
    """Well-separated seeds in the form that `env.reset` takes; its spaces, which sample on their own, get one too.

    Args:
        seed: one or several whole numbers; different ones give unrelated seeds, also neighbouring ones.
        first: how many environments of other processes stand before these: the seeds are those that follow theirs.
        spaces: that are seeded beside those of the environment.

    Returns:
        One seed per environment where the vector environment takes that, else a single one.

    Raises:
        SettingsError: for anything but whole numbers of 0 or above.
    """
    try:
        sequence = np.random.SeedSequence(seed)
    except (TypeError, ValueError) as wrong:
        raise SettingsError(f"seed is {seed!r}, expected whole numbers of 0 or above") from wrong
    # 31 bits, since ale-py takes signed integers of 32 and reads negative ones as "no seed"
    seeds = [int(word) >> 1 for word in sequence.generate_state(first + env.num_envs + 1)[first:]]
    own = (env.single_action_space, env.single_observation_space, env.action_space, env.observation_space)
    for space in (*own, *spaces):
        space.seed(seeds[-1])
    inner = env.unwrapped
    if isinstance(inner, SyncVectorEnv | AsyncVectorEnv | EnvPoolVectorEnv):
        return seeds[:-1]
    return np.array(seeds[:-1]) if _is_native_atari(inner) else seeds[0]


def _is_native_atari(env: VectorEnv[Any, Any, Any]) -> bool:
    return type(env).__module__.startswith("ale_py")  # ale-py itself is imported only when a game is asked for


def frames_of(
    vector_env: VectorEnv[Any, Any, Any], env_id: str, vectorization: Vectorization
) -> tuple[np.ndarray, ...]:
    """One RGB frame `[H, W, 3]` per environment.

    Raises:
        SettingsError: if the environments render nothing, or fail to.
    """
    try:
        rendered = vector_env.render()
        frames = None if rendered is None else [None if frame is None else np.asarray(frame) for frame in rendered]
    except NotImplementedError:
        frames = None
    except (Exception, SystemExit) as error:  # whatever an environment's drawing misses
        line = (str(error).splitlines() or [""])[0]
        raise SettingsError(f"{env_id} cannot be drawn: {type(error).__name__}: {line}") from error
    whole = [frame for frame in frames or () if frame is not None]
    if frames is None or len(whole) < len(frames):
        how = 'make it with render_mode="rgb_array" and vectorization "sync"'
        if vectorization == "sync" and vector_env.render_mode == "rgb_array":
            how = "render_mode 'rgb_array' gives none, and render_modes of its metadata should say so"
        raise SettingsError(f"{env_id} ({vectorization}) renders no frames; {how}")
    return tuple(whole)

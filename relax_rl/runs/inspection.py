"""What an environment is, as agents will meet it: spaces, stepping, infos, rewards and speed under random actions."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from relax_rl.backends.checks import check_env, decisive
from relax_rl.backends.creation import single_env
from relax_rl.backends.envpool import why_not_envpool
from relax_rl.backends.infos import ALL, SUCCESS, followed, number
from relax_rl.backends.masks import KEY, allowed_actions, with_mask_in_info
from relax_rl.backends.own import Making
from relax_rl.backends.registry import find_spec, is_atari
from relax_rl.errors import RelaxRLError, in_one_line
from relax_rl.networks.actions import action_encoder
from relax_rl.networks.masks import action_masks_for
from relax_rl.networks.spaces import ObservationEncoder, leaf_spaces
from relax_rl.runs.displays import describe_number
from relax_rl.runs.evaluation import envs_of
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.presets import find_preset

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

    from relax_rl.envs import VectorEnvs
    from relax_rl.settings.config import EnvConfig

__all__ = ["Inspection", "inspect_env"]

_NO_LIMIT = "none of Gymnasium's"
"""Said of the time limit of an environment without `TimeLimit`."""

HEADINGS = (
    "observations",
    "seen as",
    "actions",
    "drawn from",
    "backend",
    "time limit",
    "masks",
    "infos",
    "rewards",
    "episodes",
    "speed",
    "preset",
)
"""Of facts, in their order."""
_SECONDS = 3.0
"""That a look at a single environment, and one at all of them, takes at most."""
_LOOKS = 500
"""Steps of a single environment, for its infos."""
_NAMES = {"multi_categorical": "a categorical each", "bernoulli": "a Bernoulli each"}


@dataclass
class Inspection:
    """What was found.

    Attributes:
        facts: what is said of the environment, by heading.
        faults: what is to be mended in it, or to be known, one line each.
        unusable: why no agent can learn in it; empty if one can.
    """

    facts: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    unusable: str = ""


def inspect_env(config: EnvConfig, *, steps: int, seed: int = 0) -> Inspection:
    """Make environments as a run would, and step them with random actions.

    Args:
        config: which.
        steps: over all environments; fewer where they take long.
        seed: of environments and actions.
    """
    found = Inspection()
    with _told(found):
        spec = find_spec(config.env)
        masks: dict[str, Any] = {"action_masks": config.action_masks, "mask_key": config.mask_key}
        making = Making.of(config.wrapper, config.frame_stack, config.drop_keys, config.info_keys, **masks)
        if spec.entry_point is not None:
            with closing(single_env(spec, env_kwargs=config.env_kwargs, making=making)) as env:
                found.faults += check_env(env, mask_key=config.mask_key)
                _look_at(env, found, seed, config)
        with envs_of(config, seed=seed) as envs:
            _spaces(envs, found, config)
            if envs.action_mask is not None:
                found.facts["masks"] = f"{found.facts.get('masks', 'of its vector code')}; heeded"
            why = _why(spec, config, making, envs)
            found.facts["backend"] = f"{envs.vectorization}{why}, autoreset {envs.autoreset_mode.name}"
            _play(envs, found, steps, seed)
    found.facts = {heading: found.facts[heading] for heading in HEADINGS if heading in found.facts}
    found.faults = list(map(in_one_line, found.faults))
    _settle(found, config)
    return found


def _settle(found: Inspection, config: EnvConfig) -> None:
    """Say everything once, what ends every run first, and what lets an episode go on for ever."""
    end, others = decisive(found.faults, config.drop_keys)
    # An error is told with its place among the faults.
    same = [line for line in others if line == found.unusable or line.startswith(f"{found.unusable} (")]
    if end:
        if any(line.startswith(("reset of", "step of")) for line in end):
            same = []  # what follows from it says no more
        elif found.unusable:
            others.insert(0, found.unusable)
        found.unusable = end.pop(0)
    elif found.unusable and same:
        found.unusable = same[0]
    found.faults = [line for line in dict.fromkeys([*end, *others]) if line not in (found.unusable, *same)]
    endless = found.facts.get("episodes") == "none ended" and found.facts.get("time limit") == _NO_LIMIT
    if endless and not is_atari(find_spec(config.env)):  # games have a limit of frames
        steps = found.facts.get("rewards", "").rpartition(" over ")[2] or "random steps"
        found.faults.append(
            f"no episode ended in {steps} of all environments together, and there is no time limit; unless episodes are "
            "that long, add --wrapper gymnasium.wrappers:TimeLimit max_episode_steps=N"
        )


@contextmanager
def _told(found: Inspection) -> Iterator[None]:
    """Within the block, warnings are faults, and an error is what makes an environment unusable."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        except RelaxRLError as error:
            found.unusable = in_one_line(error)
        except (Exception, SystemExit) as error:  # whatever an environment does when it is stepped
            found.unusable = in_one_line(f"{type(error).__name__}: {error}")
    found.faults += [str(each.message) for each in said if issubclass(each.category, UserWarning)]


def _look_at(env: gym.Env[Any, Any], found: Inspection, seed: int, config: EnvConfig) -> None:
    """Time limit, masks and infos of a single environment."""
    info = env.reset(seed=seed)[1]
    limit, inner = None, env
    while isinstance(inner, gym.Wrapper):
        limit = getattr(inner, "_max_episode_steps", None) if isinstance(inner, gym.wrappers.TimeLimit) else limit
        inner = inner.env
    found.facts["time limit"] = _NO_LIMIT if limit is None else f"{limit:,} steps, then truncated"
    masks = ["action_mask in the infos"] if "action_mask" in info else []
    masks += ["action_masks()"] if env.has_wrapper_attr("action_masks") else []
    masks += [f"the observation {name!r}" for name in _mask_leaves(env)]
    found.facts["masks"] = ", ".join(masks) or "none"
    numbers, others, flags = dict[str, None](), dict[str, None](), dict[str, None]()
    asked = "auto" if config.action_masks == "off" or config.mask_key is not None else config.action_masks
    env = with_mask_in_info(env, asked, config.mask_key)
    draw, began = allowed_actions(env, seed), time.monotonic()
    obs, info = env.reset(seed=seed)
    for _ in range(_LOOKS):
        obs, _, terminated, truncated, info = env.step(draw(obs, info))
        flags |= {name: None for name in SUCCESS if name in info}
        known = [name for name in followed([ALL], info) if number(info[name]) is not None]
        numbers |= dict.fromkeys(known)
        others |= dict.fromkeys(str(name) for name in info if name not in (*known, *SUCCESS, KEY))
        if terminated or truncated:
            obs, info = env.reset()
        if time.monotonic() - began > _SECONDS:
            break
    told = [f"success by {next(iter(flags))}"] if flags else []
    told += [f"numbers {', '.join(numbers)} (--info-keys)"] if numbers else []
    told += [f"others {', '.join(others)}"] if others else []
    found.facts["infos"] = "; ".join(told) or "none"


def _mask_leaves(env: gym.Env[Any, Any]) -> list[str]:
    choices: Any = getattr(env.action_space, "n", None)
    named = [(".".join(map(str, path)), leaf) for path, leaf in leaf_spaces(env.observation_space) if path]
    return [name for name, leaf in named if "mask" in name.lower() and leaf.shape == (choices,)]


def _spaces(envs: VectorEnvs, found: Inspection, config: EnvConfig) -> None:
    """Spaces, what networks make of them, and what learns there.

    Raises:
        SettingsError: no network or no estimator can.
    """
    from relax_rl.agents import resolve_estimator

    facts = found.facts
    facts["observations"] = _space(envs.single_observation_space)
    facts["actions"] = _space(envs.single_action_space)
    observations, actions = (
        ObservationEncoder(envs.single_observation_space, cnn=AgentConfig().cnn),
        action_encoder(envs.single_action_space),
    )
    if observations.is_image:
        facts["seen as"] = f"an image {observations.shape} by a CNN"
    else:
        small, images = observations.small_images(), [x.name for x in observations.leaves if x.kind == "image"]
        plain = f", {', '.join(small)} as plain numbers" if small else ""
        among = f", {', '.join(images)} by a CNN" if images else ""
        facts["seen as"] = f"{observations.shape[0]:,} numbers by an MLP{plain}{among}"
    facts["drawn from"] = f"{_NAMES.get(actions.kind, f'a {actions.kind}')}, estimator " + resolve_estimator(
        "auto", envs.single_action_space
    )
    facts["preset"] = find_preset(config.env).name


def _why(spec: EnvSpec, config: EnvConfig, making: Making, envs: VectorEnvs) -> str:
    """Why environments are stepped as they are, in brackets."""
    if config.vectorization != "auto":
        return " (as asked)"
    if envs.vectorization == "native":
        return " (vector code of its own)"
    if envs.vectorization == "envpool":
        return " (the same task, faster)"
    if asked := making.around_each(spec):
        return f" ({asked} needs it)"
    if spec.vector_entry_point is not None:
        return " (its vector code cannot do what is asked)"
    refusal = why_not_envpool(spec, env_kwargs=config.env_kwargs) or "EnvPool tells no infos, or gains too little"
    return f" (no vector code of its own; {refusal.partition(';')[0]})"


def _play(envs: VectorEnvs, found: Inspection, steps: int, seed: int) -> None:
    """Rewards, episodes and speed under random actions."""
    space, rows = envs.single_action_space, envs.num_envs
    space.seed(seed)
    masks, rewards, seconds, rng = action_masks_for(space), list[np.ndarray](), 0.0, np.random.default_rng(seed)
    while len(rewards) * rows < steps and seconds < _SECONDS:
        if masks is not None and envs.action_mask is not None:
            action = _together([masks.sample(row, rng) for row in envs.action_mask])
        else:
            action = _together([space.sample() for _ in range(rows)])
        began = time.perf_counter()
        step = envs.step(action)
        seconds += time.perf_counter() - began
        rewards.append(step.reward[step.valid])
    count = len(rewards) * rows
    seen, episodes = np.concatenate(rewards), envs.drain_episodes()
    with np.errstate(over="ignore"):
        finite = np.isfinite(seen.astype(np.float32))
    if not finite.all():
        found.unusable = f"a reward is {seen[~finite][0]:g}, which is no finite number of 32 bits and ends a run"
        seen = seen[finite]
    if seen.size:
        low, mean, high = map(describe_number, (x + 0.0 for x in (seen.min(), seen.mean(), seen.max())))  # no -0
        found.facts["rewards"] = f"{low} to {high}, mean {mean}, over {seen.size:,} random steps"
    if episodes:
        returned = math.fsum(x.return_ for x in episodes) / len(episodes)
        length = sum(x.length for x in episodes) / len(episodes)
        found.facts["episodes"] = (
            f"{len(episodes):,} ended, mean return {describe_number(returned)}, mean length {length:,.0f}"
        )
    else:
        found.facts["episodes"] = "none ended"
    found.facts["speed"] = f"{count / seconds:,.0f} steps/s in {rows:,} environments, without an agent"


def _together(actions: Sequence[Any]) -> Any:
    """Actions as a batch `[N, ...]`, nested as they are."""
    if isinstance(actions[0], Mapping):
        return {key: _together([action[key] for action in actions]) for key in actions[0]}
    if isinstance(actions[0], tuple):
        return tuple(_together(parts) for parts in zip(*actions, strict=True))
    return np.stack(actions)


def _space(space: spaces.Space[Any]) -> str:
    """A space in few words."""
    if isinstance(space, spaces.Dict):
        return f"Dict of {', '.join(f'{key}: {_space(part)}' for key, part in space.spaces.items())}"
    if isinstance(space, spaces.Tuple):
        return f"Tuple of {', '.join(map(_space, space.spaces))}"
    if isinstance(space, spaces.Box) and space.low.size:
        return f"Box {space.shape} {space.dtype} from {space.low.min():g} to {space.high.max():g}"
    return str(space)

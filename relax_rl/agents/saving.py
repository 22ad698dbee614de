"""An agent's parts as tensors and its settings as JSON, and back, from this and from earlier versions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from relax_rl.agents.factory import make_networks, observations_for
from relax_rl.compute.serialization import pack
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.networks.actions import action_encoder, unit_scale
from relax_rl.networks.space_json import space_from_json
from relax_rl.networks.spaces import ObservationEncoder
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.fields import from_json, whole
from relax_rl.settings.naming import same_thing, warn_of_namesakes

__all__ = [
    "Description",
    "check_fits",
    "check_networks",
    "check_sizes",
    "described",
    "for_learning",
    "kind_of",
    "misfit",
    "obs_shift",
    "to_act",
    "without_temperature",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Description:
    """What the JSON of an agent's state says of how it was made; `networks` names a factory of somebody's own."""

    name: str
    seed: int
    config: AgentConfig
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    networks: str | None


def described(state: Mapping[str, Any], source: str) -> Description:
    """How an agent was made.

    Args:
        state: that JSON.
        source: where it comes from, for messages.

    Raises:
        CheckpointError: if it describes no agent, or one with settings that there are no longer.
    """
    try:
        config, observed = from_json(AgentConfig, state["config"]), space_from_json(state["observation_space"])
        if (
            "normalizes" not in state
            and not config.normalize_keys
            and any(leaf.kind == "image" for leaf in ObservationEncoder(observed).leaves)
        ):
            config = replace(config, normalize_obs=False)  # version 0.1 normalised nothing beside an image
        return Description(
            str(state["estimator"]),
            whole("seed", state["seed"], least=0),
            config,
            observed,
            space_from_json(state["action_space"]),
            None if state.get("networks") is None else str(state["networks"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError, SettingsError) as error:
        raise CheckpointError(f"{source} does not describe an agent ({error})") from None


_SHAPE_NO_TENSOR = (
    *("activation", "surrogate_activation", "squash", "state_dependent_std", "normalize_keys", "action_distribution"),
    *("residual", "cnn", "policy_keys", "critic_keys", "memory"),
)
"""Settings that say what the numbers of a network mean."""


def check_fits(
    saved: Description, config: AgentConfig, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> None:
    """Raises CheckpointError unless the numbers of an agent mean in another what they meant in it."""
    names = [*_SHAPE_NO_TENSOR]
    if unit_scale(action_encoder(action_space)) is not None:
        names.append("rescale_actions")
    if config.critic_loss != "mse":
        names.append("critic_range")
    for what, theirs, ours in (
        ("observation space", saved.observation_space, observation_space),
        ("action space", saved.action_space, action_space),
        *((name, getattr(saved.config, name), getattr(config, name)) for name in names),
    ):
        if theirs != ours:
            raise CheckpointError(f"the checkpoint does not fit this agent: its {what} is {theirs}, here it is {ours}")


def check_sizes(
    tensors: Mapping[str, Tensor],
    config: AgentConfig,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    *,
    surrogate: bool,
) -> None:
    """Refuse tensors that are not those of networks of some settings, before any memory is given to these networks.

    Args:
        tensors: of a checkpoint.
        config, observation_space, action_space: of the agent that is to be made.
        surrogate: whether it has one.

    Raises:
        CheckpointError: one is missing, or of another shape.
    """
    with torch.device("meta"):
        observations, actions = observations_for(observation_space, config), action_encoder(action_space)
        networks = make_networks(observations, actions, config, surrogate=surrogate)
        expected = pack(networks.parts())
    for name, x in expected.items():
        if name not in tensors or tensors[name].shape != x.shape:
            found = f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
            raise CheckpointError(
                f"the checkpoint does not fit this agent ({name} is {found}, expected {tuple(x.shape)}); was it made with "
                "other settings?"
            )


def kind_of(cls: type[T], name: str, source: str) -> type[T]:
    """The class of that name among a class and all that inherit from it.

    Raises:
        CheckpointError: there is none.
    """
    kinds: dict[str, type[T]] = {known: kind for kind in _family(cls) if (known := getattr(kind, "name", ""))}
    if name not in kinds:
        hint = (
            "one of your own has to be known first: register(...), or --estimator module:name"
            if len(kinds) > 1
            else "ActorCritic.load takes every kind"
        )
        raise CheckpointError(f"{source} holds a {name!r} agent, expected {' or '.join(sorted(kinds))}; {hint}")
    return kinds[name]


def check_networks(saved: str | None, given: str | None, source: str) -> None:
    """Raises CheckpointError unless the factory that made an agent's networks is given again; warns where that cannot be told."""
    if saved is not None and given is None:
        name = saved if re.fullmatch(r"[\w.]+:\w+", saved) else "module:name"
        raise CheckpointError(
            f"the networks of {source} are those of {saved}; name them again: --networks {name}, or networks=..."
        )
    if not same_thing(saved, given):
        raise CheckpointError(f"the networks of {source} are {saved or 'those of the settings'}, not those of {given}")
    warn_of_namesakes(saved, given, f"the networks of {source} are those of")


def misfit(error: Exception, *, own: bool) -> str:
    """Why tensors do not fit an agent, in one line; `own` of the user's networks."""
    first, *rest = str(error).splitlines() or [""]
    if "size mismatch" not in "".join(rest[:1]):
        return first
    # Torsos apart that see images among other leaves had a surrogate of all numbers before it was one of V's features.
    of_surrogate = (
        own and re.search(r"state_dict for (Action|Distributional)\w+", first) and "layers.0.weight" in rest[0]
    )
    hint = (
        "; one of all the numbers is loaded by NetworkParts(..., surrogate=ActionSurrogate(...))"
        if of_surrogate
        else ""
    )
    return f"{first} {rest[0].strip().rstrip('.')}{hint}"


def obs_shift(state: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """What an agent takes off its observations, `shape`; None for nothing.

    Raises:
        ValueError, TypeError, OverflowError: that is something else.
    """
    if state.get("obs_shift") is None:
        return None
    shift = np.array(state["obs_shift"], dtype=np.float64)
    if shift.shape != shape or not np.isfinite(shift).all():
        raise ValueError(f"obs_shift has shape {shift.shape}, expected finite numbers {shape}")
    return shift


def _family(cls: type[T]) -> list[type[T]]:
    return [cls, *(kind for child in cls.__subclasses__() for kind in _family(child))]


def for_learning(component: str) -> bool:
    """Whether an agent asks for a component, by its name, only when it learns: an optimiser, a learned weight, the replay of V."""
    return component.endswith(("_optimizer", "_multiplier")) or component in ("value_replay", "residual_weight")


def to_act(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an agent without those of components that are for learning alone."""
    return {name: x for name, x in tensors.items() if not for_learning(name.partition(".")[0])}


def without_temperature(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Version 0.1 learned the temperature of a surrogate's relaxed actions too, its second parameter.

    It becomes 1, from where the surrogate goes on learning.
    """
    found = dict(tensors)
    if found.pop("surrogate.log_temperature", None) is not None:
        for name in ("surrogate_optimizer.mean", "surrogate_optimizer.square"):
            if name in found:
                found[name] = torch.cat([found[name][:1], found[name][2:]])
    return found

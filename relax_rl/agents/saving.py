"""An agent's parts as tensors and its settings as JSON, and back, from this and from earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.fields import from_json

__all__ = ["described", "family", "pack", "unpack"]

T = TypeVar("T")


def pack(components: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of all components, each under the component's name and its own."""
    return {f"{name}.{key}": x for name, part in components.items() for key, x in part.state_dict().items()}


def unpack(components: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Give each component back what `pack` took.

    Raises:
        KeyError, RuntimeError, ValueError, TypeError: if anything is missing or of another shape.
    """
    tensors = _without_temperature(tensors)
    for name, part in components.items():
        prefix = name + "."
        part.load_state_dict({key[len(prefix) :]: x for key, x in tensors.items() if key.startswith(prefix)})


def described(state: Mapping[str, Any], source: str) -> tuple[str, int, AgentConfig, Any, Any]:
    """Name of the estimator, seed, settings, and JSON of both spaces in the JSON of an agent's state.

    Args:
        state: that JSON.
        source: where it comes from, for messages.

    Raises:
        CheckpointError: if it describes no agent, or one with settings that there are no longer.
    """
    try:
        config, of_spaces = from_json(AgentConfig, state["config"]), (state["observation_space"], state["action_space"])
        return state["estimator"], int(state["seed"]), config, *of_spaces
    except (KeyError, TypeError, ValueError, SettingsError) as error:
        raise CheckpointError(f"{source} does not describe an agent ({error})") from None


def family(cls: type[T]) -> list[type[T]]:
    """A class and all that inherit from it."""
    return [cls, *(kind for child in cls.__subclasses__() for kind in family(child))]


def _without_temperature(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Version 0.1 learned the temperature of a surrogate's relaxed actions too, its second parameter.

    It becomes 1, from where the surrogate goes on learning.
    """
    found = dict(tensors)
    if found.pop("surrogate.log_temperature", None) is not None:
        for name in ("surrogate_optimizer.mean", "surrogate_optimizer.square"):
            if name in found:
                found[name] = torch.cat([found[name][:1], found[name][2:]])
    return found

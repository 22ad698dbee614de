"""An agent's parts as tensors and its settings as JSON, and back, from this and from earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

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
    tensors = _without_learned_gain(tensors)
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


def _without_learned_gain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Version 0.1 multiplied a surrogate's output by a learned gain, and learned the temperature of its actions too.

    The gain goes into the last layer, and Adam's averages, whose first two entries were those of the two, with it. The
    temperature becomes 1, from where the surrogate goes on learning.
    """
    found = dict(tensors)
    gain = found.pop("surrogate.gain", None)
    if gain is None or found.pop("surrogate.log_temperature", None) is None:
        return found
    head = [name for name in ("surrogate.head.weight", "surrogate.head.bias") if name in found]
    size = sum(found[name].numel() for name in head)
    found |= {name: found[name] * gain for name in head}
    # A gradient at gain * w is that at w, divided by the gain.
    for average, power in (("surrogate_optimizer.mean", 1), ("surrogate_optimizer.square", 2)):
        if average in found:
            own = found[average][2:].clone()
            own[len(own) - size :] /= gain.abs().clamp(min=1e-6).copysign(gain) ** power
            found[average] = own
    return found

"""An agent as tensors and JSON, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from relax_rl.errors import CheckpointError, SettingsError, TrainingDiverged
from relax_rl.serialization import load_state, save_state
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.fields import from_json
from relax_rl.space_json import space_from_json, space_to_json

if TYPE_CHECKING:
    from relax_rl.agents.base import ActorCritic

__all__ = ["agent_state", "build_agent", "load_agent", "restore_agent", "save_agent", "share_state"]

AgentT = TypeVar("AgentT", bound="ActorCritic")

_COUNTERS = ("steps", "updates", "episodes", "schedule_start", "schedule_end")


def agent_state(agent: ActorCritic) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of all components, counters, settings and spaces.

    Raises:
        TrainingDiverged: if a tensor is not finite.
    """
    tensors: dict[str, Tensor] = {"generator": agent.generator.get_state()}
    for name, part in agent.components().items():
        tensors |= {f"{name}.{key}": x for key, x in part.state_dict().items()}
    for name, x in tensors.items():
        if not torch.isfinite(x).all():
            raise TrainingDiverged(f"{name} is not finite after {agent.steps} steps; lower the learning rates")
    state = {
        "estimator": agent.name,
        "seed": agent.seed,
        "config": asdict(agent.config),
        "observation_space": space_to_json(agent.observation_space),
        "action_space": space_to_json(agent.action_space),
        **{name: getattr(agent, name) for name in _COUNTERS},
    }
    return tensors, state


def restore_agent(agent: ActorCritic, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Load what `agent_state` gave into an agent built alike.

    Raises:
        CheckpointError: if anything is missing or of another shape.
    """
    if state.get("estimator") != agent.name:
        raise CheckpointError(f"the checkpoint holds a {state.get('estimator')!r} agent, not {agent.name!r}")
    try:
        for name, part in agent.components().items():
            prefix = name + "."
            part.load_state_dict({key[len(prefix) :]: x for key, x in tensors.items() if key.startswith(prefix)})
        agent.generator.set_state(tensors["generator"].cpu())
        for name in _COUNTERS:
            setattr(agent, name, int(state[name]))
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"the checkpoint does not fit this agent ({reason}); was it made with other settings?"
        ) from None


def save_agent(agent: ActorCritic, path: str | os.PathLike[str]) -> None:
    """Write `agent_state` to one file."""
    tensors, state = agent_state(agent)
    save_state(path, tensors, {"agent": state})


def load_agent(cls: type[AgentT], path: str | os.PathLike[str], device: str) -> AgentT:
    """Build the agent that a file describes, on `device`.

    Raises:
        CheckpointError: if the file is unreadable, or holds an agent that is not a `cls`.
    """
    tensors, saved = load_state(path)
    agent = build_agent(cls, saved.get("agent", {}), device, source=str(path))
    restore_agent(agent, tensors, saved["agent"])
    return agent


def build_agent(cls: type[AgentT], state: Mapping[str, Any], device: str, *, source: str) -> AgentT:
    """An agent of the kind, spaces and settings that the JSON of `agent_state` tells, before it has learned anything.

    Args:
        cls: the agent's class, or one above it.
        state: that JSON.
        device: where the networks go.
        source: where the state comes from, for messages.

    Raises:
        CheckpointError: if it describes no agent, or one that is not a `cls`.
    """
    try:
        name, seed, config = state["estimator"], int(state["seed"]), dict(state["config"])
        observation_space, action_space = (space_from_json(state[k]) for k in ("observation_space", "action_space"))
        settings = replace(from_json(AgentConfig, config), device=device)
    except (KeyError, TypeError, ValueError, SettingsError) as error:
        raise CheckpointError(f"{source} does not describe an agent ({error})") from None
    kinds = {kind.name: kind for kind in _family(cls)}
    if name not in kinds:
        raise CheckpointError(f"{source} holds a {name!r} agent, expected {' or '.join(sorted(k for k in kinds if k))}")
    return kinds[name](observation_space, action_space, seed=seed, config=settings)


def share_state(agent: ActorCritic) -> None:
    """Overwrite an agent by that of the first of its workers."""
    tensors, state = agent_state(agent)
    copies = {name: x.detach().contiguous().clone() for name, x in sorted(tensors.items())}
    for x in copies.values():
        agent.workers.broadcast_(x)
    restore_agent(agent, copies, agent.workers.from_first(state))


def _family(cls: type[AgentT]) -> list[type[AgentT]]:
    return [cls, *(kind for child in cls.__subclasses__() for kind in _family(child))]

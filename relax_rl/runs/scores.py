"""Whether `evaluation.json` tells of an agent in the environment of its run, so that it may be said of that agent elsewhere."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from relax_rl.agents.saving import for_learning
from relax_rl.backends.infos import number
from relax_rl.compute.serialization import digest, pack
from relax_rl.errors import shown
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.record import object_in

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic
    from relax_rl.settings.config import EnvConfig

__all__ = ["digest_of", "scores_of"]

_COUNTS = ("episodes", "seed")
_LATER = ("cut_off", "step_limit")
"""Counts that older files do not have."""


def digest_of(agent: ActorCritic) -> str:
    """SHA-256 of what an agent acts by; with and without optimisers it is the same."""
    return digest(pack({name: part for name, part in agent.components().items() if not for_learning(name)}))


def scores_of(folder: RunFolder, agent: ActorCritic, env: EnvConfig) -> dict[str, Any] | None:
    """What `evaluate` found of this agent in the environments of its run; a warning where it is about anything else.

    Args:
        folder: of the run.
        agent: that it is to be about.
        env: the run's environments.
    """
    found = object_in(folder.evaluation)
    told = _other(found, agent, env) or _wrong(found) if found else ""
    if not told:
        return found or None
    warnings.warn(f"evaluation.json {told}: left out; `evaluate` it and push again", UserWarning, stacklevel=3)
    return None


def _other(found: Mapping[str, Any], agent: ActorCritic, env: EnvConfig) -> str:
    """What else it is about; older files say less of it."""
    if found.get("step") != agent.steps:
        return f"is about step {shown(found.get('step'))}, this agent of step {agent.steps}"
    if found.get("agent_sha256", known := digest_of(agent)) != known:
        return "is about another agent of as many steps"
    ours = {"env": env.env, "env_kwargs": env.env_kwargs or {}}
    for name, value in ours.items():
        if _plain(theirs := found.get(name, value)) != _plain(value):
            return f"is about {name} {shown(theirs)}, the run about {shown(value)}"
    return ""


def _wrong(found: Mapping[str, Any]) -> str:
    """What in it is none of the numbers that a card is made of."""
    for name in ("return_mean", "return_std"):
        if (value := number(found.get(name))) is None or not -1e300 < value < 1e300:
            return f"says that {name} is {shown(found.get(name))}, expected a finite number"
    for name in (*_COUNTS, *_LATER):
        count = found.get(name, 0 if name in _LATER else None)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            return f"says that {name} is {shown(count)}, expected a count"
    sampled = found.get("deterministic")
    return "" if isinstance(sampled, bool) else f"says that deterministic is {shown(sampled)}, expected true or false"


def _plain(value: Any) -> str:
    """As JSON has it, where tuples are lists and keys have no order."""
    return json.dumps(value, sort_keys=True, default=str)

"""An actor whose whole state goes into one file, and comes back from it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TypeVar

import torch
from torch import Tensor

from relax_rl.agents.actor import Actor
from relax_rl.agents.factory import NetworkFactory
from relax_rl.agents.saving import (
    check_fits,
    check_networks,
    check_sizes,
    described,
    for_learning,
    kind_of,
    misfit,
    obs_shift,
    to_act,
    without_temperature,
)
from relax_rl.compute.devices import set_generator_state
from relax_rl.compute.host import single_precision
from relax_rl.compute.serialization import load_state, pack, save_state, unpack
from relax_rl.errors import CheckpointError, TrainingDiverged
from relax_rl.networks.space_json import space_to_json
from relax_rl.settings.fields import whole
from relax_rl.settings.naming import name_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SavedActor"]

AgentT = TypeVar("AgentT", bound="SavedActor")

_COUNTERS = ("steps", "updates", "episodes", "schedule_start", "schedule_end")


class SavedActor(Actor):
    """What an agent has beside its policy, as tensors and JSON.

    Attributes:
        steps, updates, episodes, schedule_start, schedule_end: counters.
        compiled_from: the update from which on gradients came from compiled code; None as long as eager code gives them.
        networks_by: the factory of the networks; None for those of the settings.
    """

    name: ClassVar[str] = ""
    steps = updates = episodes = schedule_start = schedule_end = 0
    compiled_from: int | None = None
    networks_by: NetworkFactory | None = None

    @property
    def networks_from(self) -> str | None:
        """Where the networks come from, `module:factory`; None for those of the settings."""
        return None if self.networks_by is None else name_of(self.networks_by)

    def schedule_factor(self, schedule: str) -> float:
        """What a setting on the schedule "constant" or "linear" is multiplied by at the present step."""
        if schedule == "constant" or self.schedule_end <= self.schedule_start:
            return 1.0
        return max(0.0, (self.schedule_end - self.steps) / (self.schedule_end - self.schedule_start))

    def components(self) -> dict[str, Any]:
        """Everything that learns or counts, by name: modules, optimisers and statistics, each with a state_dict."""
        raise NotImplementedError

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, and the rest as a JSON-able dictionary.

        Raises:
            TrainingDiverged: if a weight is not finite: such a state is never saved.
        """
        tensors = {"generator": self.generator.get_state(), **pack(self.components())}
        for name, x in tensors.items():
            if not torch.isfinite(x).all():
                raise TrainingDiverged(f"{name} is not finite after {self.steps} steps; lower the learning rates")
        state = {
            "estimator": self.name,
            "seed": self.seed,
            "config": asdict(self.config),
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            **{name: getattr(self, name) for name in _COUNTERS},
            "compiled_from": self.compiled_from,
            "networks": self.networks_from,
            "normalizes": self.obs_normalizer is not None,
        }
        if self.obs_normalizer is not None and self.obs_normalizer.shift is not None:
            state["obs_shift"] = self.obs_normalizer.shift.tolist()
        return tensors, state

    def load_state_dict(
        self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, optimizer: bool = True
    ) -> None:
        """Take back what `state_dict` gave, into an agent of the same kind, spaces and settings; all of it or nothing.

        On another kind of device the noise to come is another, the same each time.

        Args:
            tensors, state: that.
            optimizer: False leaves optimisers, learned weights of the loss and the replay of V as they are, and need not find any.

        Raises:
            CheckpointError: if it does not fit, or holds no optimisers.
        """
        if state.get("estimator") != self.name:
            raise CheckpointError(f"the checkpoint holds a {state.get('estimator')!r} agent, not {self.name!r}")
        check_fits(described(state, "the checkpoint"), self.config, self.observation_space, self.action_space)
        components, drawn = self.components(), self.generator.get_state()
        if optimizer and state.get("left_out"):
            raise CheckpointError(
                f"the checkpoint was saved without {', '.join(map(str, state['left_out']))}: load it with optimizer=False, to "
                "act, or to learn on with fresh ones"
            )
        if not optimizer:
            tensors = to_act(tensors)
            components = {name: part for name, part in components.items() if not for_learning(name)}
        try:
            counters = {name: whole(name, state[name], least=0) for name in _COUNTERS}
            compiled_from = state.get("compiled_from")
            compiled_from = None if compiled_from is None else whole("compiled_from", compiled_from, least=0)
            shift = obs_shift(state, self.observations.shape)
            kept = {name: x for name, x in without_temperature(tensors).items() if name != "generator"}
            if "value_replay" not in components and self.config.value_replay:  # saved by a single worker
                kept = {name: x for name, x in kept.items() if not name.startswith("value_replay.")}
            set_generator_state(self.generator, tensors["generator"])
            unpack(components, kept)
        except (KeyError, RuntimeError, ValueError, TypeError, OverflowError) as error:
            self.generator.set_state(drawn)
            raise CheckpointError(
                f"the checkpoint does not fit this agent ({misfit(error, own=self.networks_by is not None)}); was it made with other settings?"
            ) from None
        vars(self).update(counters, compiled_from=compiled_from)
        if self.obs_normalizer is not None:
            self.obs_normalizer.shift = shift

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: what `save` writes, as `multiprocessing` and Ray hand it on."""
        return _from_parts, (*self.state_dict(), str(self.device), self.networks_by)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo[id(self.networks_by)] = self.networks_by
        # What acting has left for the next update holds graphs, and is computed again.
        own = {**vars(self), "_acted": None}
        vars(copied).update({name: deepcopy(value, memo) for name, value in own.items()})
        return copied

    def save(self, path: str | os.PathLike[str] | BinaryIO, *, optimizer: bool = True) -> None:
        """Write the agent to one safetensors file, atomically, or to an open one; its folder is made if need be.

        Args:
            path: of the file, or the file, open for writing.
            optimizer: False leaves out what only learning needs, the optimisers' state and the replay of V; the file, a third
                as large, says so.

        Raises:
            TrainingDiverged: if a weight is not finite.
            RelaxRLError: if the file cannot be written.
        """
        tensors, state = self.state_dict()
        if not optimizer:
            state["left_out"] = sorted(name for name in self.components() if for_learning(name))
            tensors = to_act(tensors)
        save_state(path, tensors, {"agent": state})

    @classmethod
    def load(
        cls: type[AgentT],
        path: str | os.PathLike[str] | BinaryIO,
        *,
        device: str = "cpu",
        networks: NetworkFactory | None = None,
        optimizer: bool = True,
    ) -> AgentT:
        """The agent saved at `path`; `ActorCritic.load` takes any kind, `RELAX.load` only its own.

        Args:
            path: of the file, or the file, open for reading.
            device: where the networks go.
            networks: the factory that the agent was made with.
            optimizer: False takes fresh optimisers in place of those in the file, and any file without them.

        Raises:
            CheckpointError: if the file is unreadable, holds another kind of agent, one of other networks, or no
                optimisers. A factory whose name others may have, such as a lambda, is taken with a warning.
        """
        tensors, saved = load_state(path)
        state = saved.get("agent", {})
        agent = cls.from_state(state, device=device, networks=networks, source=str(path), tensors=tensors)
        agent.load_state_dict(tensors, saved["agent"], optimizer=optimizer)
        return agent

    @classmethod
    def from_state(
        cls: type[AgentT],
        state: Mapping[str, Any],
        *,
        device: str = "cpu",
        networks: NetworkFactory | None = None,
        source: str,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> AgentT:
        """An agent of the kind, spaces and settings that the JSON of `state_dict` tells, before it has learned anything.

        Args:
            state: that JSON.
            device, networks: as for `load`.
            source: where the state comes from, for messages.
            tensors: that are going to be loaded; looked at before anything is made for them.

        Raises:
            CheckpointError: if it describes no agent, or one that is not of this class, of these networks or these tensors.
        """
        saved = described(state, source)
        kind: Any = kind_of(cls, saved.name, source)
        check_networks(saved.networks, None if networks is None else name_of(networks), source)
        config = replace(saved.config, device=device)
        if tensors is not None and networks is None:
            seen, done = saved.observation_space, saved.action_space
            check_sizes(tensors, config, seen, done, surrogate=kind.estimator.uses_surrogate)
        with single_precision():
            made: AgentT = kind(
                saved.observation_space, saved.action_space, seed=saved.seed, config=config, networks=networks
            )
        return made


def _from_parts(
    tensors: Mapping[str, Tensor], state: Mapping[str, Any], device: str, factory: NetworkFactory | None
) -> SavedActor:
    """The agent that came from another process, with the factory of its networks."""
    state = {**state, "networks": None if factory is None else name_of(factory)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is the very factory
        agent = SavedActor.from_state(state, device=device, networks=factory, source="the agent handed on")
    agent.load_state_dict(tensors, state)
    return agent

"""How an agent's networks are made: those of the settings, or torsos of the user's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations
from numbers import Integral
from typing import Any

import torch
from gymnasium import spaces
from torch import nn

from relax_rl.agents.networks import Networks, StateOf
from relax_rl.compute.optimizers import learning
from relax_rl.critics import (
    ActionSurrogate,
    ActionValues,
    Bins,
    DistributionalActionValue,
    DistributionalActionValues,
    DistributionalValue,
    ValueFunction,
)
from relax_rl.errors import SettingsError, in_one_line
from relax_rl.networks.memory import MemoryTorso, RecurrentSelection, is_recurrent
from relax_rl.networks.policies import Policy
from relax_rl.networks.spaces import ActionEncoder, ObservationEncoder
from relax_rl.networks.torsos import Selection, Torso, make_torso
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.naming import name_of, require_call

__all__ = ["NetworkFactory", "NetworkParts", "make_networks", "observations_for", "seeded_networks"]

_GLOBAL_GENERATOR = threading.Lock()
"""Initial weights come from torch's one generator, which agents made in several threads take in turns."""


@dataclass(frozen=True)
class NetworkParts:
    """What a factory of networks makes; heads and everything else are added to it.

    Attributes:
        policy_torso: encoded observations `[B, ...]` to features `[B, num_features]`, with that width as an attribute; of
            the leaves that the policy sees, encoded as `observations.only(config.policy_keys)` would.
        value_torso: the value function's, of `observations.only(config.critic_keys)`; the same module for a shared one. Two
            torsos, and the surrogate, have no parameter in common that learns.
        surrogate: features of the state and relaxed actions to `[*]` values, see `relax_rl.critics.surrogate_at`; None for
            the one of the settings.
    """

    policy_torso: Any
    value_torso: Any
    surrogate: nn.Module | None = None


NetworkFactory = Callable[[ObservationEncoder, ActionEncoder, AgentConfig], NetworkParts]
"""From both spaces and the settings to torsos, and perhaps a surrogate, with fresh weights drawn from torch's generator."""


def observations_for(
    space: spaces.Space[Any], config: AgentConfig, *, own_networks: bool = False
) -> ObservationEncoder:
    """Between a space and the networks of some settings.

    Args:
        space: of a single environment's observations.
        config: says what is an image and what is embedded.
        own_networks: whether the user makes them: what is an image is left as it was before there was a small CNN then,
            unless one is named.

    Raises:
        SettingsError: for a space that no network reads.
    """
    cnn = "legacy" if own_networks and config.cnn == "auto" else config.cnn
    return ObservationEncoder(space, cnn=cnn, embed=config.embed > 0)


def make_networks(
    observations: ObservationEncoder,
    actions: ActionEncoder,
    config: AgentConfig,
    *,
    surrogate: bool,
    factory: NetworkFactory | None = None,
) -> Networks:
    """Networks that fit some spaces: torsos apart, or a shared one, by default if there are images among what both see.

    Args:
        observations, actions: of the spaces.
        config: widths, activations, initial deviations, and which leaves the policy and its critics see.
        surrogate: whether there is one.
        factory: makes the torsos, and perhaps the surrogate, in place of those of the settings.

    Raises:
        SettingsError: the factory is none, or makes parts that cannot learn, a leaf is named that there is not, or a shared torso is to be two.
    """
    policy_sees = observations.only(config.policy_keys, "policy_keys")
    critic_sees = observations.only(config.critic_keys, "critic_keys")
    alike = policy_sees.leaves == critic_sees.leaves
    parts = None if factory is None else _own(factory, observations, actions, config, surrogate=surrogate)
    shared = _shares(config, parts, alike and any(leaf.kind == "image" for leaf in policy_sees.leaves))
    if shared and not alike:
        who = "policy and value function" if factory is None else f"networks {name_of(factory)}"
        raise SettingsError(
            f"{who} share a torso, and policy_keys and critic_keys name different leaves; expected a torso each"
        )
    torso = _torso(policy_sees, config) if parts is None else parts.policy_torso
    policy = Policy(
        _with_memory(_selecting(torso, observations, policy_sees), config, own=parts is not None),
        actions,
        log_std_init=config.log_std_init,
        ordinal_std_init=config.ordinal_std_init,
        state_dependent_std=config.state_dependent_std,
        squash=config.squash,
        beta=config.action_distribution == "beta",
        head_scale=config.policy_head_scale,
    )
    if not shared:
        torso = _critic_torso(critic_sees, config) if parts is None else parts.value_torso
        torso = _with_memory(_selecting(torso, observations, critic_sees), config, own=parts is not None)
    value = _value_function(policy.torso if shared else torso, config)
    own_surrogate = parts is not None and parts.surrogate is not None
    state = "observation" if shared else _state_of(observations, critic_sees, own=own_surrogate)
    if is_recurrent(value.torso):
        state = "features"  # what is seen of a state is not all of it
    elif config.memory != "none" and not is_recurrent(policy.torso):
        raise SettingsError(
            f"memory is {config.memory!r}, but networks of your own have what memory they are made with, and these have none; "
            "leave it at none, or make a RecurrentTorso"
        )
    if not surrogate:
        return Networks(policy, value, state=state)
    made = None if parts is None else parts.surrogate
    if made is None:
        plain = not shared and state != "features"
        num_features = critic_sees.shape[0] if plain else value.torso.num_features
        made = _surrogate(num_features, actions, config)
    return Networks(policy, value, made, state=state)


def seeded_networks(seed: int, *args: Any, **how: Any) -> Networks:
    """`make_networks` with the initial weights of a seed; torch's own generator stays where it is."""
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_networks(*args, **how)


def _torso(sees: ObservationEncoder, config: AgentConfig) -> Torso:
    """That of the settings, for what it sees."""
    return make_torso(
        sees,
        hidden=config.hidden,
        activation=config.activation,
        cnn_features=config.cnn_features,
        precision=config.precision,
        embed=config.embed,
        layer_norm=config.layer_norm,
        residual=config.residual,
    )


def _shares(config: AgentConfig, parts: NetworkParts | None, images: bool) -> bool:
    """Whether policy and value function share a torso.

    Args:
        config: says so, or leaves it open.
        parts: the user's own, if there are any.
        images: whether both see the same, and images in it.
    """
    if parts is None:
        shared = images if config.share_torso == "auto" else config.share_torso == "on"
        if shared:
            config.check_one_torso()
        return shared
    shared = parts.policy_torso is parts.value_torso
    if config.share_torso not in ("auto", "on" if shared else "off"):
        raise SettingsError(
            f"share_torso is {config.share_torso!r}, but networks of your own share what is the same module in both; leave "
            "it at auto"
        )
    return shared


def _value_function(torso: Torso, config: AgentConfig) -> ValueFunction:
    bins = _bins(config)
    return ValueFunction(torso) if bins is None else DistributionalValue(torso, bins)


def _surrogate(num_features: int, actions: ActionEncoder, config: AgentConfig) -> nn.Module:
    """That of the settings: what lowers the variance, or a critic of actions, a few of which have a head each."""
    critic, few = config.surrogate_loss == "critic", actions.kind == "categorical"
    how = num_features, sum(actions.sizes), config.surrogate_hidden, config.surrogate_activation
    norm, bins = config.surrogate_layer_norm, _bins(config) if critic else None
    if bins is not None:
        return (DistributionalActionValues if few else DistributionalActionValue)(*how, bins=bins, layer_norm=norm)
    return (ActionValues if critic and few else ActionSurrogate)(*how, layer_norm=norm)


def _bins(config: AgentConfig) -> Bins | None:
    return None if config.critic_loss == "mse" else Bins(config.critic_bins, config.critic_range)


def _critic_torso(sees: ObservationEncoder, config: AgentConfig) -> Torso:
    """That of a value function with a torso of its own."""
    only = sees.leaves[0]
    large = len(sees.leaves) == 1 and only.kind == "image" and only.cnn != "small"
    for name, usual in (("critic_hidden", ()), ("critic_layer_norm", "auto")):
        if large and getattr(config, name) != usual:
            raise SettingsError(
                f"{name} is {getattr(config, name)!r}, but V reads a large image, whose CNN has neither; leave it out"
            )
    layer_norm = config.layer_norm if config.critic_layer_norm == "auto" else config.critic_layer_norm == "on"
    return _torso(sees, replace(config, hidden=config.critic_hidden or config.hidden, layer_norm=layer_norm))


def _own(
    factory: NetworkFactory,
    observations: ObservationEncoder,
    actions: ActionEncoder,
    config: AgentConfig,
    *,
    surrogate: bool,
) -> NetworkParts:
    """Those of the user, with a surrogate that learns if there is to be one."""
    if isinstance(factory, nn.Module):
        raise SettingsError(f"networks is a {type(factory).__name__}, expected a function that makes NetworkParts")
    require_call(factory, "networks", observations, actions, config)
    parts = factory(observations, actions, config)
    if not isinstance(parts, NetworkParts):
        raise SettingsError(f"networks {name_of(factory)} made {type(parts).__name__}, expected NetworkParts")
    who = f"networks {name_of(factory)}"
    _check_parts(who, parts, surrogate=surrogate)
    policy_sees = observations.only(config.policy_keys, "policy_keys")
    _check_features(f"{who}: policy_torso", parts.policy_torso, policy_sees.shape)
    if parts.value_torso is not parts.policy_torso:
        critic_sees = observations.only(config.critic_keys, "critic_keys")
        _check_features(f"{who}: value_torso", parts.value_torso, critic_sees.shape)
    return parts


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module and its parts in evaluation mode, and each in its own again on the way out."""
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _check_features(who: str, torso: Any, shape: tuple[int, ...]) -> None:
    """Raises SettingsError if a torso makes other features of encoded observations than it says; those of images are not tried."""
    if len(shape) != 1 or is_recurrent(torso):
        return
    try:
        with evaluating(torso) if isinstance(torso, nn.Module) else nullcontext(), torch.no_grad():
            features = torso(torch.zeros(2, *shape))
    except RuntimeError as error:
        raise SettingsError(f"{who} cannot read observations of {shape[0]} numbers: {in_one_line(error)}") from None
    if features.shape != (2, torso.num_features):
        raise SettingsError(
            f"{who} makes {tuple(features.shape)} of two observations, expected (2, {torso.num_features}), as num_features says"
        )


def _check_parts(who: str, parts: NetworkParts, *, surrogate: bool) -> None:
    """Raises SettingsError for parts that cannot learn; arguments as of `make_networks`, `who` for messages."""
    torsos = {"policy_torso": parts.policy_torso}
    if parts.value_torso is not parts.policy_torso:
        torsos["value_torso"] = parts.value_torso
    for name, torso in torsos.items():
        width = getattr(torso, "num_features", None)
        if not isinstance(width, Integral) or width < 1:
            raise SettingsError(
                f"{who}: {name}.num_features is {width!r}, expected the width of its features, a whole number"
            )
    learned = {**torsos, "surrogate": parts.surrogate} if surrogate and parts.surrogate is not None else torsos
    of = {name: {id(x) for x in learning(part)} for name, part in learned.items() if isinstance(part, nn.Module)}
    if not of.get("surrogate", True):
        raise SettingsError(f"{who}: the surrogate has no parameter that learns")
    for one, other in combinations(of, 2):
        if of[one] & of[other]:
            raise SettingsError(
                f"{who}: {one} and {other} have parameters in common; expected a torso each, the same "
                "module as both, or a part in common that is frozen"
            )


def _selecting(torso: Any, whole: ObservationEncoder, part: ObservationEncoder) -> Any:
    """The torso as it reads the encoding of all leaves."""
    if part is whole:
        return torso
    image = part.leaves[0].shape if part.is_image else None
    selection = Selection(torso, whole.spans(part), image)
    return RecurrentSelection(torso, selection) if is_recurrent(torso) else selection


def _with_memory(torso: Any, config: AgentConfig, *, own: bool) -> Any:
    """The torso with the memory of the settings; `own` ones of the user's have what memory they have."""
    if own or config.memory == "none":
        return torso
    return MemoryTorso(torso, config.memory, config.memory_size)


def _state_of(whole: ObservationEncoder, critic_sees: ObservationEncoder, *, own: bool) -> StateOf:
    """What a surrogate is told that shares no torso: numbers where the critics see numbers alone, else features.

    Args:
        whole: of all leaves.
        critic_sees: of those that the critics see.
        own: whether the surrogate is the user's; these have always been told flat observations as they are.
    """
    kinds = {leaf.kind for leaf in critic_sees.leaves}
    if "discrete" in kinds or (whole.is_image if own else "image" in kinds):
        return "features"
    return "observation" if critic_sees is whole else "columns"

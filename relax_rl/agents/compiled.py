"""The gradients of an update as compiled code: the same numbers to rounding, without Python between the kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from relax_rl.agents.batch import Batch
from relax_rl.agents.estimates import BUILT_IN, AgentEstimator
from relax_rl.agents.gradients import Gradients, Objective, finished, flattened, gradients
from relax_rl.agents.networks import Networks, Outputs
from relax_rl.agents.shards import Shard
from relax_rl.compute import code_cache
from relax_rl.compute.compilation import NO_COMPILER, Compiled, has_compiler
from relax_rl.compute.optimizers import FlatParameters
from relax_rl.critics import OverBins
from relax_rl.errors import SettingsError
from relax_rl.networks.cnns import SmallCNN
from relax_rl.settings.config import AgentConfig

__all__ = ["Choice", "CompiledGradients", "choose", "identity_of", "why_not_compiled"]

_COST = 40.0
"""Seconds that compiling takes where nothing is cached, roughly."""
_SAVED, _SAVED_PER_ROW = 0.8e-3, 1.5e-6
"""Seconds that a compiled step saves, roughly: whatever the batch, and for each of its rows."""
_SAVED_BY_CNN = 3e-3
"""Seconds that a compiled step of CNNs for small images saves, roughly, in minibatches of 64."""
_LOADING = 0.2
"""Seconds that it takes to load compiled code and to check it, roughly."""
_RECORDED = 1_000
"""Steps from which on a CUDA graph is recorded, which itself runs the step seven times, once under a tracer."""


def why_not_compiled(networks: Networks, workers: int) -> str | None:
    """The reason why updates of so many processes cannot be compiled, or None if they can."""
    reason = _why_not_taken(networks, workers)
    if reason is None and not next(networks.parameters()).is_cuda and not has_compiler():
        return NO_COMPILER
    return reason


def _why_not_taken(networks: Networks, workers: int) -> str | None:
    """The reason why not even code that is there could be taken."""
    device = next(networks.parameters()).device
    if device.type not in ("cpu", "cuda"):
        return f"it is for the CPU and for CUDA, not for {device}"
    if networks.recurrent:
        return "it is for networks without memory: the lengths of sequences change from update to update"
    if workers > 1:
        return "it is for a single process"
    if device.type == "cpu" and networks.reads_large_images:
        return "on a CPU the convolutions on large images gain nothing"
    return None


class Choice(Enum):
    """Where gradients are to come from."""

    EAGER = "eager code"
    KEPT = "compiled code, if earlier runs have left it"
    COMPILED = "compiled code"


def choose(config: AgentConfig, networks: Networks, *, workers: int, total_steps: int, num_envs: int) -> Choice:
    """Where the gradients of the updates over that many environment steps of one process are to come from.

    Raises:
        SettingsError: if compiled code is asked for and impossible.
    """
    wanted = Choice.COMPILED if config.compile == "on" else _worth_while(config, networks, total_steps, num_envs)
    if config.compile == "off" or wanted is Choice.EAGER:
        return Choice.EAGER
    # Looking for a compiler takes as long as a short run.
    reason = (_why_not_taken if wanted is Choice.KEPT else why_not_compiled)(networks, workers)
    if reason is None:
        return wanted
    if config.compile == "on":
        raise SettingsError(f"compile is 'on', and that is not possible: {reason}, or leave it at auto")
    return Choice.EAGER


def _worth_while(config: AgentConfig, networks: Networks, total_steps: int, num_envs: int) -> Choice:
    """What takes the least time over a whole run, by estimate."""
    rows = num_envs * config.num_steps
    size = min(config.minibatch_size or rows, rows)
    steps = total_steps / rows * config.epochs * math.ceil(rows / size)
    if next(networks.parameters()).is_cuda:
        return Choice.COMPILED if steps >= _RECORDED else Choice.EAGER
    grids = any(isinstance(each, SmallCNN) for each in networks.modules())
    saved = steps * (_SAVED_BY_CNN if grids else _SAVED + _SAVED_PER_ROW * size)
    if saved >= _COST:
        return Choice.COMPILED
    return Choice.KEPT if saved >= _LOADING and code_cache.folder() is not None else Choice.EAGER


def identity_of(networks: Networks, estimator: AgentEstimator, config: AgentConfig) -> str | None:
    """What tells agents apart whose updates differ in more than numbers; None for estimators that are not this package's."""
    if estimator not in BUILT_IN:
        return None
    policy = networks.policy
    # A network as a text tells its layers, but not what stands between them without being a module.
    functions = [config.activation, config.surrogate_activation, config.precision]
    actions = [policy.kind, policy.sizes, policy.squash, policy.state_dependent_std, policy.beta]
    return str([functions, actions, networks])


class CompiledGradients:
    """`finished(gradients(...))` for a single process; keeps compiled code for every objective and shape of batch.

    Args:
        networks: at whose parameters, which are taken from `flat` at every call.
        flat: the parameters of each network, by the names of `Networks.parts`.
        identity: tells agents apart whose updates differ; None where machine code is not to be kept between runs.
        only_kept: take code that is there from earlier runs, and compile nothing.
    """

    def __init__(
        self,
        networks: Networks,
        flat: Mapping[str, FlatParameters],
        *,
        identity: str | None = None,
        only_kept: bool = False,
    ) -> None:
        self._networks, self._flat = networks, flat
        self._identity, self._only_kept = identity, only_kept
        self._everything = _Call(networks)
        places = {id(parameter): name for name, parameter in self._everything.named_parameters()}
        self._places = {name: [places[id(parameter)] for parameter in each.parameters] for name, each in flat.items()}
        # A compiler takes what it is not given for constants, and a checkpoint may bring other numbers.
        self._frozen = {f"frozen {places[id(x)]}": x for x in networks.parameters() if not x.requires_grad}
        self._versions: dict[tuple[Objective, Shard], tuple[Compiled, list[tuple[str, str]]]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledGradients:
        """Of the copied networks, with no code yet."""
        networks, flat = deepcopy((self._networks, dict(self._flat)), memo)
        return CompiledGradients(networks, flat, identity=self._identity, only_kept=self._only_kept)

    def __call__(self, batch: Batch, objective: Objective, known: Outputs | None = None) -> Gradients:
        """Flat gradients, as optimisers take them.

        Args:
            batch, objective: as for `gradients`.
            known: what the networks say of the batch's observations, for objectives that do not differentiate it.

        Raises:
            CompilationError: if the compiler fails.
            NotKept: if there is no code, and none is to be made.
        """
        version = self._versions.get((objective, batch.shard))
        if version is None:
            version = self._versions[objective, batch.shard] = self._traceable(batch.shard, objective)
        compiled, scalars = version
        inputs = {f"{name} parameters": each.data for name, each in self._flat.items()} | batch.tensors()
        inputs |= self._frozen
        if isinstance(critic := self._networks.value, OverBins):
            inputs |= {"value unit": critic.unit}
        if known is not None:
            inputs |= {"params": known.params, "features": known.features}
        found = compiled(inputs)
        values = zip(scalars, found.pop("scalars").unbind(), strict=True)
        kinds: dict[str, dict[str, Tensor]] = {"sums": {}, "metrics": {}}
        for (kind, name), value in values:
            kinds[kind][name] = value
        return Gradients(found, **kinds)

    def _traceable(self, shard: Shard, objective: Objective) -> tuple[Compiled, list[tuple[str, str]]]:
        """The function of tensors by name that is compiled; with it, what its vector of scalars holds, once it has run."""
        scalars: list[tuple[str, str]] = []

        def function(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            exchanged: dict[str, Tensor] = {}
            for name, each in self._flat.items():
                exchanged |= zip(self._places[name], each.unflatten(inputs.pop(f"{name} parameters")), strict=True)
            for name in self._frozen:
                exchanged[name.removeprefix("frozen ")] = inputs.pop(name)
            if "value unit" in inputs:
                if isinstance(self._networks.surrogate, OverBins):
                    exchanged["networks.surrogate.unit"] = inputs["value unit"]
                exchanged["networks.value.unit"] = inputs.pop("value unit")
            known = None
            if "params" in inputs:
                params = inputs.pop("params")
                known = Outputs(params, params.new_empty(0), inputs.pop("features"))
            rows: dict[str, Any] = inputs
            batch = Batch(shard=shard, **rows)

            def run() -> Gradients:
                return finished(
                    flattened(gradients(self._networks, batch, objective, known=known), self._flat), objective
                )

            # A torso that two networks share is one module with one name here; with its second name tied to the first,
            # it would be left with the exchanged parameters afterwards.
            found: Gradients = torch.func.functional_call(self._everything, exchanged, (run,), tie_weights=False)
            named = {("sums", name): x for name, x in found.sums.items()}
            named |= {("metrics", name): x for name, x in found.metrics.items()}
            scalars[:] = named
            return {**found.of, "scalars": torch.stack([x.detach().reshape(()) for x in named.values()])}

        identity = None if self._identity is None else f"{self._identity} {shard.rows} {objective.describe()}"
        return Compiled(function, identity=identity, only_kept=self._only_kept), scalars


class _Call(nn.Module):
    """Networks whose parameters can be exchanged while a function runs."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, function: Any) -> Any:
        return function()

"""The steps of an agent's networks on a rollout: gradients eager or compiled, optimisers, passes within a trust region."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relax_rl.agents.action_value import with_past_advantage
from relax_rl.agents.batch import MOST_LOG_RATIO, Batch, standardized
from relax_rl.agents.compiled import Choice, CompiledGradients, choose, identity_of, why_not_compiled
from relax_rl.agents.estimates import AgentEstimator
from relax_rl.agents.gradients import Gradients, Objective, finished, flattened, gradients
from relax_rl.agents.memory import sequence_minibatches
from relax_rl.agents.networks import Networks, Outputs
from relax_rl.agents.residual_weight import METRIC, ResidualWeight
from relax_rl.agents.shards import minibatches, sample_noise
from relax_rl.agents.trust_region import Multipliers
from relax_rl.compute.clocks import Watch, unwatched
from relax_rl.compute.compilation import CompilationError, NotKept, warn_or_raise
from relax_rl.compute.distributed import ALONE, Workers
from relax_rl.compute.optimizers import OPTIMIZERS, Adam, FlatParameters, Optimizer, learning
from relax_rl.distributions import Distribution
from relax_rl.errors import SettingsError, TrainingDiverged
from relax_rl.estimators import noise_behind
from relax_rl.settings.config import AgentConfig

__all__ = ["Learner"]

_MOST_RATIO = 2.0
"""Where the ratio of new to old probability is cut when a surrogate learns from rows of an earlier policy: they count as the
present one would meet them, as far as a few of them do not drown the rest."""

_OF_THE_LAST = ("losses/", "policy/entropy_")
"""How the names of metrics begin that passes tell of their last step."""

Metrics = dict[str, Tensor | float]


class Learner:
    """Holds the optimisers of some networks, and takes their steps.

    Args:
        networks: what learns.
        estimator: how the policy's gradient is estimated.
        config: learning rates and what an update is made of.
        generator: of the noise and the order of passes; in the same state on every worker.
        own_networks: whether the user has made the networks, whose code no cache can know.

    Attributes:
        optimizers: by the names of `Networks.parts`.
        multipliers: the weights of the policy's divergence and entropy, where they are learned.
        residual_weight: how much of the residual enters, where that is learned.
        workers: the processes that learn together.
        watch: told which section of an update begins.
        compiled: where gradients come from, in the place of eager code; None where that failed.
    """

    def __init__(
        self,
        networks: Networks,
        estimator: AgentEstimator,
        config: AgentConfig,
        generator: torch.Generator,
        *,
        own_networks: bool = False,
    ) -> None:
        if config.normalize_advantage and estimator.signal != "advantage":
            raise SettingsError(f"normalize_advantage is True, but {estimator.name!r} has no advantages; leave it off")
        self._own_networks = own_networks
        self.networks, self.estimator, self.config, self.generator = networks, estimator, config, generator
        self.workers: Workers = ALONE
        self.watch: Watch = unwatched
        self.compiled: CompiledGradients | None = None
        self.flat = {name: FlatParameters(learning(part)) for name, part in networks.parts().items()}
        # Memory of their own: what is allocated anew for a large network is fetched from the system at every step.
        self._flat_gradients = {name: torch.empty_like(flat.data) for name, flat in self.flat.items()}
        rates = {"policy": config.policy_lr, "value": config.value_lr, "surrogate": config.surrogate_lr}
        kinds = {"surrogate": Adam}
        self.optimizers: dict[str, Optimizer] = {
            name: kinds.get(name, OPTIMIZERS[config.optimizer])(flat, lr=rates[name])
            for name, flat in self.flat.items()
        }
        own = Objective(
            estimator,
            ("policy", "value"),
            value_coef=config.value_coef,
            max_grad_norm=config.max_grad_norm,
            surrogate_loss=config.surrogate_loss,
            residual_weight=1.0 if config.residual_weight == "adaptive" else config.residual_weight,
            kl_form=config.kl_form,
            entropy_target=config.entropy_target is not None,
        )
        self.multipliers = Multipliers(config, networks.policy)
        adaptive = config.residual_weight == "adaptive" and "surrogate" in self.flat
        self.residual_weight = ResidualWeight() if adaptive else None
        # The estimate is unbiased for a surrogate that has not seen the actions it is used on: within passes it waits.
        self._at_once = replace(own, trains=tuple(self.flat))
        self._in_passes = replace(own, off_policy=True, clip_range=config.clip_range)
        self._surrogate_alone = replace(own, trains=("surrogate",))
        self._groups = replace(own, trains=())

    def parts(self) -> dict[str, Any]:
        """What is learned beside the networks, by its place in checkpoints."""
        rest = self.residual_weight
        return {**self.multipliers.parts(), **({} if rest is None else {"residual_weight": rest})}

    def choose_compiled(self, total_steps: int, num_envs: int, *, again: bool = False) -> None:
        """Take compiled code from here on if the settings ask for it, or if that many environment steps make it pay.

        Args:
            total_steps: that many environment steps.
            num_envs: of this process.
            again: whether an agent is gone on with whose last steps were those of compiled code: equal steps follow.

        Raises:
            SettingsError: if compiled code is asked for and impossible.
        """
        if self.compiled is not None:
            return
        workers = self.workers.count
        choice = choose(self.config, self.networks, workers=workers, total_steps=total_steps, num_envs=num_envs)
        if again and self.config.compile != "off" and why_not_compiled(self.networks, workers) is None:
            choice = Choice.COMPILED  # however few steps are left
        if choice is not Choice.EAGER:
            own = self._own_networks
            identity = None if own else identity_of(self.networks, self.estimator, self.config)
            self.compiled = CompiledGradients(
                self.networks, self.flat, identity=identity, only_kept=choice is Choice.KEPT
            )

    def check_networks(self) -> None:
        """Raises SettingsError if a network, a part of one, or what a parameter holds was replaced since: the optimisers would not know it."""
        for name, flat in self.flat.items():
            present = learning(self.networks.parts()[name]) if name in self.networks.parts() else []
            if [id(x) for x in present] != [id(x) for x in flat.parameters] or not flat.hold():
                raise SettingsError(
                    f"parameters of the {name} network were replaced, frozen or unfrozen after the agent was made, and would not learn; "
                    "make them by a factory, networks=..., or copy numbers into those that are there, parameter.copy_(...) under no_grad"
                )

    def check_environments(self, num_envs: int) -> None:
        """Raises SettingsError if there are too few environments, `num_envs` in each process, for what is learned from them."""
        if self.residual_weight is not None and self.workers.count * num_envs < 2:
            raise SettingsError(
                "residual_weight is 'adaptive' with a single environment, expected at least 2, whose gradients it compares; "
                "raise num_envs, or give a number"
            )

    def learn(self, batch: Batch, acted: Outputs, factor: float) -> tuple[Metrics, dict[str, Tensor]]:
        """All steps of an update.

        Args:
            batch: the rows of a rollout, all of them.
            acted: what the networks said of them before the update, with its graph where that is at hand.
            factor: of the learning rates.

        Returns:
            The metrics, and the sums over rows (see `Gradients.sums`) under the policy that acted.

        Raises:
            TrainingDiverged: if a gradient is not finite; what it belongs to has not moved then.
        """
        if self.config.surrogate_loss == "critic":
            batch = with_past_advantage(self.networks, batch)
        if self.residual_weight is not None:
            return self._learn_weighed(self.residual_weight, batch, acted, factor)
        return self._learn(batch, acted, factor)

    def _learn_weighed(
        self, weight: ResidualWeight, batch: Batch, acted: Outputs, factor: float
    ) -> tuple[Metrics, dict[str, Tensor]]:
        """`learn` with the residual's weight from rollouts before, which then takes this one in, as it was met."""
        whole = standardized(batch, self.workers) if self.config.normalize_advantage else batch
        found = self._gradients(whole, self._groups, acted if acted.params.requires_grad else None).sums
        used = weight.value
        batch = replace(batch, group=None, residual_weight=batch.weight.new_tensor(used))
        metrics, sums = self._learn(batch, acted, factor)
        weight.update(**{name: float(x) for name, x in found.items()})
        return {**metrics, METRIC: used}, sums

    def _learn(self, batch: Batch, acted: Outputs, factor: float) -> tuple[Metrics, dict[str, Tensor]]:
        """See `learn`."""
        config = self.config
        learned: Metrics = {}
        if config.epochs > 1 or 0 < config.minibatch_size < batch.shard.rows:
            params = acted.params.detach()
            batch = replace(batch, old_log_prob=self._log_prob(params, batch))
            first = config.residual_weight == 0 and "surrogate" in self.flat
            if first:  # without a residual nothing is asked of a critic that has not seen the rows
                learned = self.train_surrogate(batch, config.epochs * config.surrogate_steps, factor)
            seen = batch if self.multipliers.kl is None else replace(batch, old_params=params)
            metrics, sums, epochs = self._pass_over(seen, factor)
            remaining = 0 if first else epochs * config.surrogate_steps
        else:
            known = acted if acted.params.requires_grad else None
            metrics, sums = self._policy_step(batch, self._at_once, factor, known)
            remaining = config.surrogate_steps - 1
            if remaining:
                batch = replace(batch, old_log_prob=self._log_prob(acted.params.detach(), batch))
        if remaining and "surrogate" in self.flat:
            learned = self.train_surrogate(batch, remaining, factor)
        return metrics | learned, sums

    def step(
        self, batch: Batch, objective: Objective, factor: float, known: Outputs | None = None
    ) -> tuple[Metrics, dict[str, Tensor]]:
        """One step of the networks that an objective trains; returns metrics and sums over rows.

        Args:
            batch, objective, known: as for `gradients`.
            factor: of the learning rates.

        Raises:
            TrainingDiverged: if the policy's gradient is not finite; nothing has moved then.
        """
        found = self._gradients(batch, objective, known)
        self.watch("optimiser")
        metrics: Metrics = dict(found.metrics)
        if "policy/grad_norm" in metrics:
            metrics["policy/grad_norm"] = norm = float(metrics["policy/grad_norm"])
            metrics["policy/learning_rate"] = self.config.policy_lr * factor
            if not math.isfinite(norm):
                raise TrainingDiverged("the gradient is not finite")
        for name in objective.trains:
            self.optimizers[name].step(found.of[name], factor)
        return metrics, found.sums

    def _policy_step(
        self, batch: Batch, objective: Objective, factor: float, known: Outputs | None = None
    ) -> tuple[Metrics, dict[str, Tensor]]:
        """A step of policy and value function, with the multipliers as they stand."""
        if self.config.normalize_advantage:
            batch = standardized(batch, self.workers)
        learned = self.multipliers
        if not learned.on:
            return self.step(batch, objective, factor, known)
        metrics, sums = self.step(learned.weigh(batch), objective, factor, known)
        return metrics | learned.learn_entropy(sums), sums

    def train_surrogate(self, batch: Batch, passes: int, factor: float) -> Metrics:
        """Steps of the surrogate alone, on shuffled minibatches of rows of earlier policies, seen from the present one.

        Args:
            batch: rows with `old_log_prob`; a row counts by its ratio of probabilities, cut at 2.
            passes: over all rows, a step for each minibatch.
            factor: of the learning rate.
        """
        self.watch("surrogate")
        with torch.no_grad():
            seen = self.networks(batch.obs, memory=batch.memory)
        dist = self.networks.policy.distribution(seen.params, batch.mask)
        assert batch.old_log_prob is not None
        metrics: Metrics = {}
        ratio = torch.exp((dist.log_prob(batch.action) - batch.old_log_prob).clamp(max=MOST_LOG_RATIO))
        # As rows of the present policy, which they count as from here on; what an action was worth is the same for any.
        weight = batch.weight * (ratio.clamp(max=_MOST_RATIO) if self.config.surrogate_loss == "variance" else 1.0)
        batch = replace(batch, weight=weight, old_log_prob=None)
        if self.config.surrogate_loss == "critic":
            # What V leaves as it is now, which is what the next estimate subtracts.
            batch = replace(batch, advantage=batch.return_ - seen.value[: len(batch.return_)])
            batch = with_past_advantage(self.networks, batch)
        for part, index in (each for _ in range(passes) for each in self._as_if_drawn(batch, dist)):
            known = Outputs(seen.params[index], seen.value[:0], seen.features[index])
            if self.config.normalize_advantage:
                part = standardized(part, self.workers)
            metrics, _ = self.step(part, self._surrogate_alone, factor, known)
        return metrics

    def _as_if_drawn(self, batch: Batch, dist: Distribution) -> Iterator[tuple[Batch, Tensor]]:
        """`_minibatches` of rows whose noise makes their actions under `dist` `[B]`, drawn from its law given them."""
        parts = list(self._minibatches(batch))
        order = torch.cat([index for _, index in parts])
        given = [part.conditional_noise for part, _ in parts if part.conditional_noise is not None]
        here = dist.with_params(dist.params[order])
        noise = noise_behind(here, batch.action[order], torch.cat(given) if given else None)
        for (part, index), behind in zip(parts, noise.split([len(index) for _, index in parts]), strict=True):
            yield replace(part, noise=behind, conditional_noise=None), index

    def _pass_over(self, batch: Batch, factor: float) -> tuple[Metrics, dict[str, Tensor], int]:
        """Epochs of minibatches, each one step of policy and value function; see `learn`.

        Advantages and returns stay those from before the first step.

        Returns:
            The metrics and sums of the first step, whose estimates are of the policy that acted, with the loss and the
            learned weights of the last, and the policy's KL divergence from the one that acted; and how many epochs there were.
        """
        config = self.config
        first: tuple[Metrics, dict[str, Tensor]] | None = None
        for epochs in range(1, config.epochs + 1):  # noqa: B007
            seen = []
            for part, _ in self._minibatches(batch):
                metrics, sums = self._policy_step(part, self._in_passes, factor)
                first = first or (metrics, sums)
                seen.append(sums)
            rows = torch.stack([each["rows"] for each in seen]).sum().clamp(min=1.0 / self.workers.count)
            kl = torch.stack([each["divergence"] for each in seen]).sum() / rows
            if math.isfinite(config.target_kl) and float(kl) > config.target_kl:
                break
        assert first is not None
        last: Metrics = {name: x for name, x in metrics.items() if name.startswith(_OF_THE_LAST)}
        of_passes: Metrics = {
            "policy/kl": kl,
            "policy/clipped": torch.stack([each.get("clipped", torch.zeros_like(kl)) for each in seen]).sum() / rows,
            "policy/epochs": float(epochs),
            **self.multipliers.learn_bound(seen, batch.kl_bound, moved=epochs > 1),
        }
        return first[0] | last | of_passes, first[1], epochs

    def _minibatches(self, batch: Batch) -> Iterator[tuple[Batch, Tensor]]:
        """One epoch of `(minibatch, [b] its rows)`, with fresh noise to draw z from given the actions."""
        blank = self.networks.policy.distribution(batch.advantage.new_zeros(1, self.networks.policy.num_params))
        how = self.config.minibatch_size, self.generator
        if batch.memory is None:
            parts = minibatches(batch.shard, *how)
        else:
            parts = sequence_minibatches(batch.shard, len(batch.memory.starts), *how)
        for index, shard in parts:
            part = batch.select(index, shard)
            if hasattr(blank, "relax_given"):
                part = replace(part, conditional_noise=sample_noise(blank, shard, self.generator))
            yield part, index

    @torch.no_grad()
    def _log_prob(self, params: Tensor, batch: Batch) -> Tensor:
        return self.networks.policy.distribution(params, batch.mask).log_prob(batch.action)

    def _gradients(self, batch: Batch, objective: Objective, known: Outputs | None) -> Gradients:
        """Flat gradients, averaged over the workers, as optimisers take them."""
        if self.compiled is not None:
            self.watch("update")
            try:
                return self.compiled(batch, objective, known)
            except NotKept:
                self.compiled = None
            except CompilationError as error:
                warn_or_raise(error, self.config.compile)
                self.compiled = None
        found = gradients(self.networks, batch, objective, known=known, watch=self.watch)
        found = flattened(found, self.flat, self._flat_gradients)
        if self.workers.count > 1:
            self.watch("communication")
            self.workers.average_(*found.of.values(), *found.sums.values())
        return finished(found, objective)

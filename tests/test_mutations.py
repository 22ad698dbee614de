"""Mistakes that published code makes, planted one by one: each must make the test that is named beside it fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.planting import ROOT, source_of

Planting = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Plant:
    """A mistake: `old` becomes `new` in a module of the package, and `test` must notice."""

    name: str
    module: str
    old: str
    new: str
    test: str


PLANTS = (
    Plant(
        "the largest conditional Gumbel at log p_b instead of 0",
        "relax_rl.distributions.noise",
        "    top = gumbel.gather(-1, index)\n    # Rounding",
        "    top = gumbel.gather(-1, index) + log_probs.gather(-1, index)\n    # Rounding",
        "test_distributions.py::test_conditional_samples_have_the_marginal_of_relaxed_samples[categorical]",
    ),
    Plant(
        "logits that are not normalised",
        "relax_rl.distributions.categorical",
        "return F.log_softmax(self.params, dim=-1)",
        "return self.params",
        "test_distributions.py::test_logits_matter_up_to_a_constant[40.0]",
    ),
    Plant(
        "the sign of the outcome lost in the conditional logistic",
        "relax_rl.distributions.bernoulli",
        "return sign * F.softplus(noise + F.softplus(sign * self.params))",
        "return F.softplus(noise + F.softplus(sign * self.params))",
        "test_distributions.py::test_relaxed_samples_and_conditional_samples_give_back_the_outcome[Bernoulli]",
    ),
    Plant(
        "a logistic truncated at the probability of the other outcome",
        "relax_rl.distributions.bernoulli",
        "return sign * F.softplus(noise + F.softplus(sign * self.params))",
        "return sign * F.softplus(noise + F.softplus(-sign * self.params))",
        "test_distributions.py::test_conditional_samples_have_the_law_of_relaxed_samples_given_the_outcome[Bernoulli]",
    ),
    Plant(
        "noise that misses the outcome: u and 1 - u confused",
        "relax_rl.distributions.bernoulli",
        "return self.params + noise",
        "return self.params - noise",
        "test_estimator_families.py::test_unbiased[arm-bits]",
    ),
    Plant(
        "a uniform number of exactly 0",
        "relax_rl.distributions.noise",
        "return u.clamp(min=torch.finfo(dtype).eps / 2)",
        "return u",
        "test_distributions.py::test_noise_is_finite_and_exact_for_every_uniform_number[0.0]",
    ),
    Plant(
        "conditional Gumbels that do not stay below the largest",
        "relax_rl.distributions.noise",
        "rest = below - F.softplus((top - gumbel) - log_probs)",
        "rest = log_probs + gumbel",
        "test_distributions.py::test_relaxed_samples_and_conditional_samples_give_back_the_outcome[categorical]",
    ),
    Plant(
        "the reparameterised term of z~ left out",
        "relax_rl.estimators.gradients",
        "row_gradient(control - conditional_control, params, create_graph=True)",
        "row_gradient(control, params, create_graph=True)",
        "test_estimators.py::test_the_expected_relax_estimate_is_the_gradient_to_six_digits[two bits-mlp]",
    ),
    Plant(
        "a scale on the score's part alone, as with normalised advantages",
        "relax_rl.estimators.gradients",
        "return (value.detach() - control).unsqueeze(-1) * score + pathwise",
        "return 0.5 * (value.detach() - control).unsqueeze(-1) * score + pathwise",
        "test_estimators.py::test_the_expected_relax_estimate_is_the_gradient_to_six_digits[two bits-mlp]",
    ),
    Plant(
        "c(z) in the place of c(z~)",
        "relax_rl.estimators.gradients",
        "return control_variate_gradient(value, conditional_control, pathwise, score)",
        "return control_variate_gradient(value, control, pathwise, score)",
        "test_estimators.py::test_the_expected_relax_estimate_is_the_gradient_to_six_digits[two bits-adversarial]",
    ),
    Plant(
        "dc(z~) left out of the chain rule at z",
        "relax_rl.estimators.slopes",
        "slope - (conditional_slope.mean(0) if many else conditional_slope)",
        "slope",
        "test_mlp_surrogate.py::test_a_distribution_without_slopes_gives_the_same_numbers[bits]",
    ),
    Plant(
        "c(z) in the place of c(z~), by the chain rule at z",
        "relax_rl.estimators.slopes",
        "return conditional, dist.pull_back(",
        "return control, dist.pull_back(",
        "test_mlp_surrogate.py::test_a_distribution_without_slopes_gives_the_same_numbers[bits]",
    ),
    Plant(
        "a surrogate in closed form without its curvature",
        "relax_rl.critics.closed_form",
        "at_inputs[number], curved, value",
        "at_inputs[number], 0 * curved, value",
        "test_mlp_surrogate.py::test_value_slope_and_gradient_are_those_of_the_graph[2048-bits]",
    ),
    Plant(
        "the mean signal times the mean score",
        "relax_rl.estimators.score",
        "grad = reinforce_gradient(signal, None, drawn.dist.params, score=drawn.score).mean(0)",
        "grad = signal.mean(0).unsqueeze(-1) * drawn.score.mean(0)",
        "test_estimator_families.py::test_unbiased[rloo 4-bits]",
    ),
    Plant(
        "a baseline that holds the sample itself",
        "relax_rl.estimators.score",
        "return (value - value.mean(0)) * (len(value) / (len(value) - 1))",
        "return value - value.mean(0)",
        "test_estimator_families.py::test_unbiased[rloo 2-bits]",
    ),
    Plant(
        "a baseline that has seen its own sample",
        "relax_rl.estimators.score",
        "    error = value.detach() - mean - baseline\n",
        "    error = value.detach() - 0.5 * value.detach() - baseline\n",
        "test_estimator_families.py::test_unbiased[nvil-bits]",
    ),
    Plant(
        "MuProp without its deterministic part",
        "relax_rl.estimators.score",
        "    grad = grad + factor * mean_gradient(here, derivative)\n",
        "",
        "test_estimator_families.py::test_unbiased[muprop-bits]",
    ),
    Plant(
        "VIMCO's signals averaged instead of summed",
        "relax_rl.estimators.score",
        "return Estimate(drawn.sample, bound, grad, dist.params)",
        "return Estimate(drawn.sample, bound, grad / num_samples, dist.params)",
        "test_estimator_families.py::test_vimco_estimates_the_gradient_of_the_multi_sample_bound[2-geometric]",
    ),
    Plant(
        "ARMS without the correction for its correlation",
        "relax_rl.estimators.antithetic",
        "grad = num_samples / (num_samples - 1) * inside * scale",
        "grad = num_samples / (num_samples - 1) * inside",
        "test_estimator_families.py::test_unbiased[arms 3-bits]",
    ),
    Plant(
        "the squared mean over parameters instead of the mean square",
        "relax_rl.estimators.estimate",
        "    squared_norm = grad.square().sum(-1)\n    if weight",
        "    squared_norm = grad.mean(-1).square()\n    if weight",
        "test_estimates.py::test_weights_of_the_variance_loss",
    ),
    Plant(
        "norms summed instead of their squares",
        "relax_rl.estimators.estimate",
        "    squared_norm = grad.square().sum(-1)\n    if weight",
        "    squared_norm = grad.norm(dim=-1)\n    if weight",
        "test_estimates.py::test_the_variance_loss_is_the_enumerated_second_moment_and_falls_with_the_variance",
    ),
    Plant(
        "the variance's gradient leaking into theta",
        "relax_rl.estimators.gradients",
        "    at = at.detach()\n",
        "    at = at * 1.0\n",
        "test_transforms.py::test_the_variance_of_functions_of_the_parameters_never_reaches_theta",
    ),
    Plant(
        "the variance's gradient leaking into what f holds",
        "relax_rl.estimators.estimate",
        "return loss if self.phi is None else only_to(self.phi, loss)",
        "return loss",
        "test_objectives.py::test_the_variance_never_reaches_what_belongs_to_f",
    ),
    Plant(
        "f's own dependence on theta forgotten",
        "relax_rl.estimators.estimate",
        "        if self.value.requires_grad:\n",
        "        if False:\n",
        "test_objectives.py::test_an_evidence_lower_bound_is_learned_by_encoder_and_decoder[rloo]",
    ),
    Plant(
        "LAX's c at an action drawn anew",
        "relax_rl.estimators.relaxation",
        "grad = _estimate(drawn, *control_through_z(surrogate, drawn.dist, drawn.z))",
        "grad = _estimate(drawn, *control_through_z(surrogate, drawn.dist, drawn.dist.relax(drawn.dist.sample_noise())))",
        "test_exact_mdp.py::test_continuous_agents_estimate_the_exact_policy_gradient[LAX-AutoresetMode.SAME_STEP]",
    ),
    Plant(
        "a surrogate that never trains",
        "relax_rl.agents.learner",
        "self.optimizers[name].step(found.of[name], factor)",
        "name == 'surrogate' or self.optimizers[name].step(found.of[name], factor)",
        "test_agents.py::test_every_parameter_of_the_surrogate_learns",
    ),
    Plant(
        "the variance's gradient without the part of c's slope",
        "relax_rl.critics.mlp_surrogate",
        "direction = ctx.surrogate._soften_slope(ctx.relaxed, direction)",
        "direction = 0 * ctx.surrogate._soften_slope(ctx.relaxed, direction)",
        "test_gradients.py::test_gradients_are_slopes_of_scalars[relax-False]",
    ),
    Plant(
        "a surrogate that learns to raise the variance",
        "relax_rl.agents.gradients",
        "_dot(2.0 * batch.weight",
        "_dot(-2.0 * batch.weight",
        "test_agents.py::test_training_the_surrogate_lowers_the_variance",
    ),
    Plant(
        "returns that V learns again, in the unit that rewards had then",
        "relax_rl.agents.replay",
        "past_return=past_return * unit",
        "past_return=past_return",
        "test_replay.py::test_the_gradient_of_v_is_the_mean_over_the_last_rollouts",
    ),
    Plant(
        "z~ that moves with the parameters as z does",
        "relax_rl.distributions.categorical",
        "return -torch.expm1(z_tilde - z_tilde.amax(-1, keepdim=True))",
        "return torch.ones_like(z_tilde)",
        "test_agents.py::test_the_estimate_is_the_exact_gradient_on_average_for_discrete_actions[RELAX]",
    ),
    Plant(
        "a time limit taken for an end",
        "relax_rl.rollouts",
        "np.where(over, 0.0, gamma * next_v)",
        "np.where(over | cut, 0.0, gamma * next_v)",
        "test_exact_mdp.py::test_discrete_agents_estimate_the_exact_policy_gradient[A2C-AutoresetMode.NEXT_STEP]",
    ),
    Plant(
        "advantages that run on into the next episode",
        "relax_rl.rollouts",
        "decay = (gamma * gae_lambda) * (ok & ~over & ~cut)",
        "decay = (gamma * gae_lambda) * (ok & ~over)",
        "test_rollouts.py::test_gae_is_the_sum_of_discounted_deltas_within_an_episode[False-0.99-0.95]",
    ),
    Plant(
        "statistics that take the batch in before it is used",
        "relax_rl.agents.agent",
        "        obs = rollout.obs.flatten(0, 1)\n",
        "        if self.obs_normalizer is not None:\n            self.obs_normalizer.update(rollout.obs[:-1], rollout.valid)\n"
        "        obs = rollout.obs.flatten(0, 1)\n",
        "test_agents.py::test_statistics_take_a_rollout_in_after_its_update_and_are_frozen_elsewhere",
    ),
    Plant(
        "values regressed on advantages instead of returns",
        "relax_rl.agents.gradients",
        "error = (value.detach() - batch.return_) * weight",
        "error = (value.detach() - batch.advantage) * weight",
        "test_agents.py::test_value_is_regressed_on_returns_from_before_the_update",
    ),
)


@pytest.fixture(scope="module")
def planting() -> Iterator[Planting]:
    """Plants a mistake and runs tests, in a process that the other tests have not touched."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.planting"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def plant(request: dict[str, Any]) -> dict[str, Any]:
            print(json.dumps(request), file=process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            return answer

        try:
            yield plant
        finally:
            process.kill()


@pytest.mark.parametrize("plant", PLANTS, ids=[plant.name for plant in PLANTS])
def test_a_planted_mistake_is_found(plant: Plant, planting: Planting) -> None:
    text = source_of(plant.module).read_text(encoding="utf-8")
    assert text.count(plant.old) == 1, "the plant has lost its place: bring it up to date with the code"
    found = planting({"module": plant.module, "old": plant.old, "new": plant.new, "tests": [plant.test]})
    assert found["code"] == 1, f"nothing noticed (exit code {found['code']}):\n{found['log']}"


def test_without_a_mistake_all_is_well(planting: Planting) -> None:
    found = planting({"tests": sorted({plant.test for plant in PLANTS})})
    assert found["code"] == 0, found["log"]


def test_there_are_as_many_mistakes_as_there_were() -> None:
    assert len({plant.name for plant in PLANTS}) >= 34

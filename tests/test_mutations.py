"""Mistakes that published code makes, planted one by one: each must make the test that is named beside it fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import relax_rl

ROOT = Path(relax_rl.__file__).parent.parent


@dataclass(frozen=True)
class Plant:
    """A mistake: `old` becomes `new` in a file of the package, and `test` must notice."""

    name: str
    file: str
    old: str
    new: str
    test: str


PLANTS = (
    Plant(
        "the largest conditional Gumbel at log p_b instead of 0",
        "distributions/noise.py",
        "    top = gumbel.gather(-1, index)\n    # Rounding",
        "    top = gumbel.gather(-1, index) + log_probs.gather(-1, index)\n    # Rounding",
        "test_distributions.py::test_conditional_samples_have_the_marginal_of_relaxed_samples[categorical]",
    ),
    Plant(
        "logits that are not normalised",
        "distributions/categorical.py",
        "return F.log_softmax(self.params, dim=-1)",
        "return self.params",
        "test_distributions.py::test_logits_matter_up_to_a_constant[40.0]",
    ),
    Plant(
        "the sign of the outcome lost in the conditional logistic",
        "distributions/bernoulli.py",
        "return sign * F.softplus(noise + F.softplus(sign * self.params))",
        "return F.softplus(noise + F.softplus(sign * self.params))",
        "test_distributions.py::test_relaxed_samples_and_conditional_samples_give_back_the_outcome[Bernoulli]",
    ),
    Plant(
        "a logistic truncated at the probability of the other outcome",
        "distributions/bernoulli.py",
        "return sign * F.softplus(noise + F.softplus(sign * self.params))",
        "return sign * F.softplus(noise + F.softplus(-sign * self.params))",
        "test_distributions.py::test_conditional_samples_have_the_law_of_relaxed_samples_given_the_outcome[Bernoulli]",
    ),
    Plant(
        "noise that misses the outcome: u and 1 - u confused",
        "distributions/bernoulli.py",
        "return self.params + noise",
        "return self.params - noise",
        "test_estimator_families.py::test_unbiased[arm-bits]",
    ),
    Plant(
        "a uniform number of exactly 0",
        "distributions/noise.py",
        "return u.clamp(min=torch.finfo(dtype).eps / 2)",
        "return u",
        "test_distributions.py::test_noise_is_finite_and_exact_for_every_uniform_number[0.0]",
    ),
    Plant(
        "conditional Gumbels that do not stay below the largest",
        "distributions/noise.py",
        "rest = below - F.softplus((top - gumbel) - log_probs)",
        "rest = log_probs + gumbel",
        "test_distributions.py::test_relaxed_samples_and_conditional_samples_give_back_the_outcome[categorical]",
    ),
    Plant(
        "the reparameterised term of z~ left out",
        "estimators/gradients.py",
        "row_gradient(control - conditional_control, params, create_graph=True)",
        "row_gradient(control, params, create_graph=True)",
        "test_estimators.py::test_the_expected_relax_estimate_is_the_gradient_to_six_digits[two bits-mlp]",
    ),
    Plant(
        "a scale on the score's part alone, as with normalised advantages",
        "estimators/gradients.py",
        "return (value.detach() - conditional_control).unsqueeze(-1) * score + pathwise",
        "return 0.5 * (value.detach() - conditional_control).unsqueeze(-1) * score + pathwise",
        "test_estimators.py::test_the_expected_relax_estimate_is_the_gradient_to_six_digits[two bits-mlp]",
    ),
    Plant(
        "c(z) in the place of c(z~)",
        "estimators/gradients.py",
        "return (value.detach() - conditional_control).unsqueeze(-1) * score + pathwise",
        "return (value.detach() - control).unsqueeze(-1) * score + pathwise",
        "test_estimators.py::test_the_expected_relax_estimate_is_the_gradient_to_six_digits[two bits-adversarial]",
    ),
    Plant(
        "dc(z~) left out of the chain rule at z",
        "estimators/slopes.py",
        "slope - (conditional_slope.mean(0) if many else conditional_slope)",
        "slope",
        "test_mlp_surrogate.py::test_a_distribution_without_slopes_gives_the_same_numbers[bits]",
    ),
    Plant(
        "c(z) in the place of c(z~), by the chain rule at z",
        "estimators/slopes.py",
        "return conditional, dist.pull_back(",
        "return control, dist.pull_back(",
        "test_mlp_surrogate.py::test_a_distribution_without_slopes_gives_the_same_numbers[bits]",
    ),
    Plant(
        "a surrogate in closed form without its curvature",
        "critics/closed_form.py",
        "at_inputs[number], curved, value",
        "at_inputs[number], 0 * curved, value",
        "test_mlp_surrogate.py::test_value_slope_and_gradient_are_those_of_the_graph[2048-bits]",
    ),
    Plant(
        "the mean signal times the mean score",
        "estimators/score.py",
        "grad = reinforce_gradient(centred, None, drawn.dist.params, score=drawn.score).mean(0)",
        "grad = centred.mean(0).unsqueeze(-1) * drawn.score.mean(0)",
        "test_estimator_families.py::test_unbiased[rloo 4-bits]",
    ),
    Plant(
        "a baseline that holds the sample itself",
        "estimators/score.py",
        "centred = (value - value.mean(0)) * (num_samples / (num_samples - 1))",
        "centred = value - value.mean(0)",
        "test_estimator_families.py::test_unbiased[rloo 2-bits]",
    ),
    Plant(
        "a baseline that has seen its own sample",
        "estimators/score.py",
        "    error = value - average.mean - baseline\n",
        "    error = value - 0.5 * value - baseline\n",
        "test_estimator_families.py::test_unbiased[nvil-bits]",
    ),
    Plant(
        "MuProp without its deterministic part",
        "estimators/score.py",
        "score=drawn.score) + factor * through_mean",
        "score=drawn.score)",
        "test_estimator_families.py::test_unbiased[muprop-bits]",
    ),
    Plant(
        "VIMCO's signals averaged instead of summed",
        "estimators/score.py",
        "return Estimate(drawn.sample, bound, grad, dist.params)",
        "return Estimate(drawn.sample, bound, grad / num_samples, dist.params)",
        "test_estimator_families.py::test_vimco_estimates_the_gradient_of_the_multi_sample_bound[2-geometric]",
    ),
    Plant(
        "ARMS without the correction for its correlation",
        "estimators/antithetic.py",
        "grad = num_samples / (num_samples - 1) * inside * scale",
        "grad = num_samples / (num_samples - 1) * inside",
        "test_estimator_families.py::test_unbiased[arms 3-bits]",
    ),
    Plant(
        "the squared mean over parameters instead of the mean square",
        "estimators/estimate.py",
        "    squared_norm = grad.square().sum(-1)\n    if weight",
        "    squared_norm = grad.mean(-1).square()\n    if weight",
        "test_estimates.py::test_weights_of_the_variance_loss",
    ),
    Plant(
        "norms summed instead of their squares",
        "estimators/estimate.py",
        "    squared_norm = grad.square().sum(-1)\n    if weight",
        "    squared_norm = grad.norm(dim=-1)\n    if weight",
        "test_estimates.py::test_the_variance_loss_is_the_enumerated_second_moment_and_falls_with_the_variance",
    ),
    Plant(
        "the variance's gradient leaking into theta",
        "estimators/gradients.py",
        "    at = at.detach()\n",
        "    at = at * 1.0\n",
        "test_transforms.py::test_the_variance_of_functions_of_the_parameters_never_reaches_theta",
    ),
    Plant(
        "the variance's gradient leaking into what f holds",
        "estimators/estimate.py",
        "return loss if self.phi is None else only_to(self.phi, loss)",
        "return loss",
        "test_objectives.py::test_the_variance_never_reaches_what_belongs_to_f",
    ),
    Plant(
        "f's own dependence on theta forgotten",
        "estimators/estimate.py",
        "        if self.value.requires_grad:\n",
        "        if False:\n",
        "test_objectives.py::test_an_evidence_lower_bound_is_learned_by_encoder_and_decoder[rloo]",
    ),
    Plant(
        "LAX's c at an action drawn anew",
        "agents/lax.py",
        "dist.relax(batch.noise)",
        "dist.relax(dist.sample_noise(self.generator))",
        "test_exact_mdp.py::test_continuous_agents_estimate_the_exact_policy_gradient[LAX-AutoresetMode.SAME_STEP]",
    ),
    Plant(
        "a surrogate that never trains",
        "agents/surrogate.py",
        "            self.surrogate_optimizer.step(factor)\n",
        "",
        "test_agents.py::test_every_parameter_of_the_surrogate_learns",
    ),
    Plant(
        "the variance's gradient without the part of c's slope",
        "agents/surrogate.py",
        "control.add_gradient(weight.unsqueeze(0), direction.unsqueeze(0))",
        "control.add_gradient(weight.unsqueeze(0), 0 * direction.unsqueeze(0))",
        "test_agents.py::test_estimate_and_training_of_the_surrogate_are_those_of_the_core[False-0.0-RELAX-space0]",
    ),
    Plant(
        "a regression that pulls the surrogate away from the advantage",
        "agents/surrogate.py",
        "weight if at_value is None else weight + at_value",
        "weight if at_value is None else weight - at_value",
        "test_agents.py::test_estimate_and_training_of_the_surrogate_are_those_of_the_core[False-0.6-LAX-space3]",
    ),
    Plant(
        "errors of V that the surrogate learns after V has corrected them",
        "agents/replay.py",
        "if not self.anew:",
        "if self.anew:",
        "test_replay.py::test_the_last_rollouts_are_kept_and_seen_under_the_present_value_function",
    ),
    Plant(
        "z~ that moves with the parameters as z does",
        "distributions/categorical.py",
        "return -torch.expm1(z_tilde - z_tilde.amax(-1, keepdim=True))",
        "return torch.ones_like(z_tilde)",
        "test_agents.py::test_the_estimate_is_the_exact_gradient_on_average_for_discrete_actions[RELAX]",
    ),
    Plant(
        "a time limit taken for an end",
        "rollouts.py",
        "np.where(over, 0.0, gamma * next_v)",
        "np.where(over | cut, 0.0, gamma * next_v)",
        "test_exact_mdp.py::test_discrete_agents_estimate_the_exact_policy_gradient[A2C-AutoresetMode.NEXT_STEP]",
    ),
    Plant(
        "advantages that run on into the next episode",
        "rollouts.py",
        "decay = (gamma * gae_lambda) * (ok & ~over & ~cut)",
        "decay = (gamma * gae_lambda) * (ok & ~over)",
        "test_rollouts.py::test_gae_is_the_sum_of_discounted_deltas_within_an_episode[False-0.99-0.95]",
    ),
    Plant(
        "statistics that take the batch in before it is used",
        "agents/learning.py",
        "    obs = _observations(agent, rollout)\n",
        "    if agent.obs_normalizer is not None:\n        agent.obs_normalizer.update(rollout.obs[:-1], rollout.valid)\n"
        "    obs = _observations(agent, rollout)\n",
        "test_agents.py::test_statistics_take_a_rollout_in_after_its_update_and_are_frozen_elsewhere",
    ),
    Plant(
        "values regressed on advantages instead of returns",
        "agents/ascent.py",
        "weighted_error = (value.detach() - batch.return_) * weight",
        "weighted_error = (value.detach() - batch.advantage) * weight",
        "test_agents.py::test_value_is_regressed_on_returns_from_before_the_update",
    ),
)


@pytest.mark.parametrize("plant", PLANTS, ids=[plant.name for plant in PLANTS])
def test_a_planted_mistake_is_found(plant: Plant, tmp_path: Path) -> None:
    for folder in ("relax_rl", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "relax_rl" / plant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(plant.old) == 1, "the plant has lost its place: bring it up to date with the code"
    path.write_text(text.replace(plant.old, plant.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{plant.test}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 1, f"nothing noticed (exit code {run.returncode}):\n{run.stdout[-2000:]}"

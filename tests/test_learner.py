"""Several steps on one rollout: gradients of a later policy from actions of the one before it, the trust region, and
surrogates that learn after the policy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from relax_rl.agents import A2C, LAX, RELAX, ActorCritic, Marginal, Reinforce
from relax_rl.agents.batch import Batch, standardized
from relax_rl.agents.gradients import Objective, _unclipped, gradients
from relax_rl.agents.shards import Shard
from relax_rl.errors import SettingsError, TrainingDiverged
from relax_rl.estimators import noise_behind
from tests.oracles import assert_unbiased, collect
from tests.steps import (
    ACTIONS,
    BOX,
    DISCRETE,
    OBS,
    PASSES,
    applied,
    off_policy,
    rollout_for,
    shake,
    watch_steps,
    weights,
    whole_gradients,
)

MOST_RATIO = 2.0
POLICY_AND_VALUE = {"policy", "value"}


def agent_for(kind: type[ActorCritic], **settings: Any) -> ActorCritic:
    agent = kind(OBS, BOX if kind is LAX else DISCRETE, seed=0, hidden=(8,), surrogate_hidden=(8,), **settings)
    shake(agent)
    return agent


def draws(
    agent: ActorCritic, old: Tensor, new: Tensor, value: Any, clip_range: float, *, advantage_sign: float = 1.0
) -> Any:
    """Draws `[rows, P]` of what is applied at the parameters `new` in one state, where a policy at `old` acted."""
    generator = torch.Generator().manual_seed(11)

    def draw(rows: int) -> Tensor:
        acting = agent.policy.distribution(old.expand(rows, -1))
        noise = acting.sample_noise(generator)
        action = acting.threshold(acting.relax(noise))
        state, return_ = torch.tensor([0.5, -1.0, 2.0]).expand(rows, -1), value(action)
        batch = Batch(
            obs=state,
            action=action,
            noise=noise,
            advantage=advantage_sign * return_,
            return_=return_,
            weight=torch.ones(rows),
            shard=Shard(rows),
        )
        batch = off_policy(agent, batch, acting.log_prob(action))
        return applied(agent, batch, new.expand(rows, -1), off_policy=True, clip_range=clip_range)

    return draw


@pytest.mark.parametrize(("kind", "advantage_sign"), [(RELAX, 1.0), (Reinforce, -1.0)])
def test_gradients_are_those_of_ppos_objective_for_discrete_actions(
    kind: type[ActorCritic], advantage_sign: float
) -> None:
    """Of what multiplies the score: REINFORCE's return, whatever the sign of the advantage."""
    agent: Any = kind(OBS, DISCRETE, seed=0)
    shake(agent)
    if kind is RELAX:
        agent.surrogate.gain.data.fill_(0.3)
    old, new = torch.tensor([0.3, -0.8, 0.1]), torch.tensor([0.5, -1.1, 0.3]).requires_grad_()
    payoff = torch.tensor([2.0, -0.7, -1.0])
    ratio = new.softmax(-1) / old.softmax(-1)
    assert float(ratio[1].detach()) < 0.8 < 1.0 < float(ratio[0].detach()) < 1.2  # one clipped, two not
    objective = (old.softmax(-1) * torch.minimum(ratio * payoff, ratio.clamp(0.8, 1.2) * payoff)).sum()
    (exact,) = torch.autograd.grad(objective, new)
    draw = draws(agent, old, new.detach(), payoff.__getitem__, 0.2, advantage_sign=advantage_sign)
    assert_unbiased(collect(draw, 187_500), exact.double())


def test_gradients_are_those_of_the_later_policy_for_continuous_actions() -> None:
    agent = LAX(OBS, spaces.Box(-1, 1, (1,), np.float32), seed=0)
    shake(agent)
    mean, log_std = 0.2, -0.3
    old, new = torch.tensor([0.35, -0.2]), torch.tensor([mean, log_std])
    draw = draws(agent, old, new, lambda a: (a - 1.0).square().squeeze(-1) - 1.2, math.inf)
    exact = torch.tensor([2 * (mean - 1.0), 2 * np.exp(2 * log_std)], dtype=torch.float64)
    assert_unbiased(collect(draw, 1_000_000), exact, power=0.02)


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_noise_leads_to_the_action_under_the_later_policy(actions: str) -> None:
    agent = A2C(OBS, ACTIONS[actions], seed=0)
    batch = agent.batch(rollout_for(agent, steps=100))[0]
    shape = (len(batch.weight), agent.policy.num_params)
    new = agent.policy.distribution(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    batch = off_policy(agent, batch, batch.weight)
    noise = noise_behind(new, batch.action, batch.conditional_noise)
    torch.testing.assert_close(new.threshold(new.relax(noise)), batch.action)


@pytest.mark.parametrize("kind", [A2C, RELAX])
def test_one_minibatch_of_one_epoch_is_the_plain_update(kind: type[ActorCritic]) -> None:
    agents = [kind(OBS, DISCRETE, seed=0, max_grad_norm=math.inf, **more) for more in ({}, {"minibatch_size": 23})]
    rollout = rollout_for(agents[0])  # 24 rows, of which the second leaves one to a minibatch of its own
    assert agents[0].update(rollout)["policy/grad_norm"] > 0
    metrics = agents[1].update(rollout)
    assert metrics["policy/epochs"] == 1.0 and float(metrics["policy/clipped"]) == 0.0
    moved = [weights(agent)["policy.head.weight"] for agent in agents]
    assert not torch.equal(*moved)
    whole = kind(OBS, DISCRETE, seed=0, max_grad_norm=math.inf, epochs=1, minibatch_size=24)
    whole.update(rollout)
    for ours, theirs in zip(weights(agents[0]).values(), weights(whole).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_every_row_counts_once_an_epoch_and_the_advantages_stay() -> None:
    agent = A2C(OBS, DISCRETE, seed=0, epochs=3, minibatch_size=5, clip_range=0.2, gae_lambda=0.9)
    rollout, steps = rollout_for(agent), watch_steps(agent)
    expected = agent.batch(rollout)[0].advantage
    agent.update(rollout)
    assert all(step.objective.off_policy and step.objective.clip_range == 0.2 for step in steps)
    assert [step.batch.shard.rows for step in steps] == [5, 5, 5, 5, 4] * 3
    for epoch in range(3):
        found = torch.cat([step.batch.advantage for step in steps[5 * epoch : 5 * epoch + 5]])
        torch.testing.assert_close(found.sort().values, expected.sort().values)
        assert not torch.equal(found, expected)


def test_a_policy_that_goes_too_far_is_stopped() -> None:
    def run(target_kl: float) -> dict[str, Any]:
        agent = RELAX(OBS, DISCRETE, seed=0, epochs=20, target_kl=target_kl, policy_lr=0.05)
        metrics = agent.update(rollout_for(agent))
        assert agent.updates == 1 and agent.steps == 24
        return metrics

    free, bound = run(1e9), run(0.05)
    assert free["policy/epochs"] == 20 and bound["policy/epochs"] < 20
    assert float(bound["policy/kl"]) > 0.05 and float(free["policy/kl"]) > float(bound["policy/kl"])


def test_clipping_holds_the_policy_back() -> None:
    def divergence(clip_range: float) -> tuple[float, float]:
        agent = A2C(OBS, DISCRETE, seed=0, epochs=30, clip_range=clip_range, target_kl=1e9, policy_lr=0.01)
        metrics = agent.update(rollout_for(agent))
        return float(metrics["policy/kl"]), float(metrics["policy/clipped"])

    (tight, some), (loose, none) = divergence(0.05), divergence(math.inf)
    assert tight < 0.5 * loose and some > 0.3 and none == 0.0


def test_shares_and_divergences_are_of_the_rows_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that autoreset makes up are none of them, and those of a small minibatch count as others do."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def spy(batch: Batch, ratio: Tensor, *args: Any) -> Tensor:
        kept = _unclipped(batch, ratio, *args)
        seen.append((kept, (ratio - 1.0 - ratio.log()).detach(), batch.weight))
        return kept

    monkeypatch.setattr("relax_rl.agents.gradients._unclipped", spy)
    agent = A2C(OBS, DISCRETE, seed=0, epochs=3, minibatch_size=5, clip_range=0.01, policy_lr=0.05, compile="off")
    rollout = rollout_for(agent)
    rollout.valid[::2] = False
    metrics = agent.update(rollout)
    kept, divergence, weight = (torch.cat(each) for each in zip(*seen[-5:], strict=True))
    assert len(weight) == 24 and 0 < weight.sum() < 24
    torch.testing.assert_close(float(metrics["policy/clipped"]), float(1.0 - kept @ weight / weight.sum()))
    torch.testing.assert_close(float(metrics["policy/kl"]), float(divergence @ weight / weight.sum()))


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("kind", [RELAX, LAX, Marginal])
def test_clipping_holds_a_critics_own_gradient_back_too(kind: type[ActorCritic], weight: float) -> None:
    """Rows whose ratio is beyond the range are left out whole where their estimate pushes it farther, and only there."""

    def divergence(clip_range: float) -> float:
        more: dict[str, Any] = {"epochs": 30, "clip_range": clip_range, "target_kl": 1e9, "policy_lr": 0.01}
        agent = agent_for(kind, surrogate_loss="critic", residual_weight=weight, **more)
        return float(agent.update(rollout_for(agent))["policy/kl"])

    assert divergence(0.05) < 0.4 * divergence(math.inf)
    agent = agent_for(kind, surrogate_loss="critic", residual_weight=weight)
    batch, _ = agent.batch(rollout_for(agent))
    dist = agent.policy.distribution(agent.policy.params(agent.policy.torso(batch.obs)).detach())
    # In every second row the present policy takes the action twice as often as the one that acted.
    shift = math.log(2.0) * (torch.arange(len(batch.weight)) % 2)
    batch = off_policy(agent, batch, dist.log_prob(batch.action) - shift)
    objective = Objective(
        agent.estimator,
        ("policy", "value"),
        off_policy=True,
        value_coef=0.0,
        surrogate_loss="critic",
        residual_weight=weight,
    )
    for row, far in ((0, False), (1, True), (3, True), (5, True)):
        alone = replace(batch, weight=torch.eye(len(batch.weight))[row])
        torch.manual_seed(0)
        free = gradients(agent.networks, alone, objective).of["policy"]
        torch.manual_seed(0)
        held = gradients(agent.networks, alone, replace(objective, clip_range=0.2)).of["policy"]
        zero = all(not x.any() for x in held)
        # A step up the estimate: does the action become more likely?
        moved = agent_for(kind, surrogate_loss="critic", residual_weight=weight)
        before = moved.policy.distribution(moved.policy(batch.obs[row : row + 1])).log_prob(batch.action[row : row + 1])
        with torch.no_grad():
            for parameter, slope in zip(moved.policy.parameters(), free, strict=True):
                parameter -= 1e-4 * slope
        after = moved.policy.distribution(moved.policy(batch.obs[row : row + 1])).log_prob(batch.action[row : row + 1])
        assert zero == (far and bool(after > before)), row
        assert zero or all(torch.equal(x, y) for x, y in zip(free, held, strict=True))


def test_images_go_through_minibatches() -> None:
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    agent = RELAX(space, DISCRETE, seed=0, cnn_features=16, epochs=2, minibatch_size=8, clip_range=0.1)
    shake(agent)
    start = weights(agent)
    metrics = agent.update(rollout_for(agent))
    assert all(math.isfinite(float(x)) for x in metrics.values())
    assert not torch.equal(start["policy.torso.linear.0.weight"], weights(agent)["policy.torso.linear.0.weight"])


# Surrogates that learn after the policy


@pytest.mark.parametrize("kind", [RELAX, LAX, Marginal])
@pytest.mark.parametrize("surrogate_steps", [1, 3])
def test_the_policy_takes_its_steps_by_a_surrogate_that_has_not_seen_them(
    kind: type[ActorCritic], surrogate_steps: int
) -> None:
    agent = agent_for(kind, surrogate_steps=surrogate_steps, normalize_reward=True, value_lr=0.1, **PASSES)
    agent.update(rollout_for(agent, seed=0))
    rollout, steps = rollout_for(agent), watch_steps(agent)
    advantage = agent.batch(rollout)[0].advantage.sort().values
    metrics = agent.update(rollout)
    count = 3 * 4
    assert [set(step.gradients) for step in steps] == [POLICY_AND_VALUE] * count + [{"surrogate"}] * (
        count * surrogate_steps
    )
    # The surrogate learns from the advantages that the policy learned from, whatever V has become since.
    for begin in range(0, len(steps), 4):
        epoch = torch.cat([step.batch.advantage for step in steps[begin : begin + 4]])
        assert torch.equal(epoch.sort().values, advantage)
    assert float(metrics["losses/variance"]) > 0 and float(metrics["losses/value"]) > 0


@pytest.mark.parametrize("kind", [LAX, Marginal])
@pytest.mark.parametrize("critic_loss", ["mse", "hl_gauss"])
def test_without_a_residual_the_policy_takes_its_steps_by_a_critic_that_has_seen_them(
    kind: type[ActorCritic], critic_loss: str
) -> None:
    """In a single step both learn at once, as ever."""
    critic: dict[str, Any] = {"surrogate_loss": "critic", "critic_loss": critic_loss, "residual_weight": 0.0}
    agent = agent_for(kind, surrogate_steps=2, **critic, **PASSES)
    steps = watch_steps(agent)
    metrics = agent.update(rollout_for(agent))
    count = 3 * 4
    assert [set(step.gradients) for step in steps] == [{"surrogate"}] * (2 * count) + [POLICY_AND_VALUE] * count
    assert float(metrics["losses/action_value"]) > 0 and float(metrics["policy/epochs"]) == 3
    agent = agent_for(kind, **critic)
    steps = watch_steps(agent)
    agent.update(rollout_for(agent))
    assert [set(step.gradients) for step in steps] == [{*POLICY_AND_VALUE, "surrogate"}]


def test_a_plain_step_trains_the_surrogate_with_the_policy_and_further_ones_after_it() -> None:
    for count in (1, 3):
        agent = agent_for(RELAX, surrogate_steps=count)
        steps = watch_steps(agent)
        agent.update(rollout_for(agent))
        assert [set(step.gradients) for step in steps] == [{*POLICY_AND_VALUE, "surrogate"}] + [{"surrogate"}] * (
            count - 1
        )
        assert all(step.batch.shard.rows == 24 for step in steps)


@pytest.mark.parametrize("kind", [RELAX, LAX])
def test_rows_of_an_earlier_policy_count_by_their_present_probability(kind: type[ActorCritic]) -> None:
    agent = agent_for(kind, surrogate_steps=2, policy_lr=0.3, surrogate_lr=1e-12)
    rollout = rollout_for(agent)
    rollout = replace(rollout, valid=torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) > 0.3)
    old = agent.batch(rollout)[0]
    before = agent.policy.distribution(agent.policy(old.obs)).log_prob(old.action).detach()
    steps = watch_steps(agent)
    agent.update(rollout)
    part = steps[1].batch
    order = (part.obs.unsqueeze(1) - old.obs).abs().sum(-1).argmin(1)
    assert not torch.equal(order, torch.arange(24)) and torch.equal(part.obs, old.obs[order])
    now = agent.policy.distribution(agent.policy(part.obs).detach())
    log_prob = now.log_prob(part.action)
    ratio = torch.exp(log_prob - before[order])
    assert ratio.max() > MOST_RATIO and ratio.min() < 0.9
    torch.testing.assert_close(part.weight, old.weight[order] * ratio.clamp(max=MOST_RATIO))
    # As rows of the present policy, whose noise leads to the action.
    assert part.old_log_prob is None and not steps[1].objective.off_policy
    torch.testing.assert_close(now.threshold(now.relax(part.noise)), part.action)
    assert not torch.isclose(part.noise, old.noise[order]).any()
    # What the networks say is known by then: it is what they would say.
    found = whole_gradients(agent, part, steps[1].objective)
    torch.testing.assert_close(found.of["surrogate"], steps[1].gradients["surrogate"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [A2C, RELAX, LAX])
def test_normalised_advantages_shift_and_scale_the_whole_estimate(kind: type[ActorCritic]) -> None:
    """(A - mean) / std in the score's part, and the surrogate's part divided by the same std."""
    agent = agent_for(kind, normalize_advantage=True)
    batch, _ = agent.batch(rollout_for(agent))
    weight = batch.weight.clone()
    weight[::5] = 0.0
    batch = replace(batch, weight=weight, advantage=batch.advantage * 3.0 + 1.0)
    found = standardized(batch, agent.learner.workers)
    kept = batch.advantage[weight > 0].double()
    mean, std = kept.mean(), kept.std(correction=0)
    assert found.advantage_unit is not None
    assert float(found.advantage_unit) == pytest.approx(float(std), rel=1e-5)
    objective = Objective(agent.estimator, ("policy", "value"), value_coef=0.0)
    shifted = replace(batch, advantage=(batch.advantage - mean.float()) * (weight > 0))
    both = [gradients(agent.networks, each, objective).of["policy"] for each in (found, shifted)]
    for x, y in zip(*both, strict=True):
        torch.testing.assert_close(x, y / std.float(), rtol=1e-4, atol=1e-7)
    before = weights(agent)
    agent.update(rollout_for(agent))
    assert any(not torch.equal(x, before[name]) for name, x in weights(agent).items())


@pytest.mark.parametrize("kind", [A2C, RELAX, LAX])
def test_a_row_without_others_has_the_gradient_of_its_own_size(kind: type[ActorCritic]) -> None:
    """Nothing is divided by the deviation of one advantage, or of advantages that are all the same, which is 0."""
    agent = agent_for(kind, normalize_advantage=True)
    batch, _ = agent.batch(rollout_for(agent))
    alone = replace(batch, weight=torch.zeros_like(batch.weight).index_fill_(0, torch.tensor([3]), 1.0))
    equal = replace(batch, advantage=torch.full_like(batch.advantage, 7.3))
    objective = Objective(agent.estimator, ("policy", "value"), value_coef=0.0, max_grad_norm=math.inf)
    for rows, mean in ((alone, 0.0), (equal, 7.3)):
        found = standardized(rows, agent.learner.workers)
        assert float(found.advantage_unit) == 1.0  # type: ignore[arg-type]
        torch.testing.assert_close(found.advantage, (rows.advantage - mean) * (rows.weight > 0), atol=2e-6, rtol=0)
        norms = [gradients(agent.networks, each, objective).of["policy"] for each in (found, rows)]
        one, plain = (float(torch.cat([x.flatten() for x in each]).norm()) for each in norms)
        assert one < 10.0 * plain + 1e-3


def test_the_surrogate_learns_from_the_advantages_that_it_is_subtracted_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and afterwards: with normalised advantages both have mean 0."""
    agent = agent_for(RELAX, normalize_advantage=True, surrogate_steps=3, surrogate_loss="critic", num_steps=8)
    means: list[float] = []
    step = agent.learner.step

    def told(batch: Batch, *args: Any, **kwargs: Any) -> Any:
        means.append(float(batch.advantage @ batch.weight / batch.weight.sum()))
        return step(batch, *args, **kwargs)

    monkeypatch.setattr(agent.learner, "step", told)
    batch, acted = agent.batch(rollout_for(agent))
    agent.learner.learn(replace(batch, advantage=batch.advantage + 5.0), acted, 1.0)
    assert len(means) == 3 and max(map(abs, means)) < 1e-4


def test_returns_without_a_baseline_are_not_normalised() -> None:
    with pytest.raises(SettingsError, match="'reinforce' has no advantages"):
        agent_for(Reinforce, normalize_advantage=True)


@pytest.mark.parametrize("targets", ["kept", "anew"])
def test_a_rollout_that_could_not_be_learned_from_is_in_no_replay(targets: Any) -> None:
    agent = A2C(OBS, DISCRETE, seed=0, hidden=(8,), value_replay=2, replay_targets=targets, compile="off")
    rollouts = [rollout_for(agent, seed=k) for k in range(4)]
    agent.update(rollouts[0])
    with pytest.raises(TrainingDiverged):
        agent.update(replace(rollouts[1], reward=math.nan * rollouts[1].reward))
    assert math.isfinite(agent.update(rollouts[2])["policy/grad_norm"])


def test_a_ratio_beyond_floating_point_in_a_row_without_weight_changes_nothing() -> None:
    found = []
    for shift in (0.0, -90.0):
        agent = A2C(OBS, BOX, seed=0, hidden=(8,), compile="off", epochs=2, clip_range=0.2)
        made = rollout_for(agent)
        valid = made.valid.clone()
        valid[0, 1] = False
        known = agent.learner._log_prob

        def shifted(params: Any, batch: Any, shift: float = shift, known: Any = known) -> Tensor:
            log_prob: Tensor = known(params, batch).clone()
            log_prob[1] += shift  # the row that is not valid
            return log_prob

        agent.learner._log_prob = shifted  # type: ignore[method-assign]
        agent.update(replace(made, valid=valid))
        found.append([x.detach().clone() for x in agent.policy.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))

"""Several steps on one rollout: gradients of a later policy from actions of the one before it, and the trust region."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from relax_rl.agents.minibatches import noise_for
from relax_rl.agents.surrogate import SurrogateActorCritic
from torch import Tensor

from relax_rl.agents import A2C, LAX, RELAX, ActorCritic, Marginal
from relax_rl.agents.batch import Batch
from relax_rl.errors import SettingsError
from relax_rl.settings.config import AgentConfig
from tests.oracles import assert_unbiased, collect
from tests.steps import shake
from tests.test_agents import OBS, rollout_for, weights

DISCRETE = spaces.Discrete(3)
STATE = torch.tensor([0.5, -1.0, 2.0])


def later(agent: ActorCritic, old: Tensor, new: Tensor, value: Any, clip: float, generator: Any, rows: int) -> Batch:
    """Many actions of an old policy in one state, seen from a new one."""
    before = agent.policy.distribution(old.expand(rows, -1))
    action = before.threshold(before.relax(before.sample_noise(generator))).detach()
    dist = agent.policy.distribution(new.expand(rows, -1).clone().requires_grad_())
    return Batch(
        features=STATE.expand(rows, -1),
        action=action,
        noise=noise_for(dist, action, generator),
        advantage=value(action),
        return_=value(action),
        weight=torch.ones(rows),
        dist=dist,
        old_log_prob=before.log_prob(action),
        clip_range=clip,
    )


@pytest.mark.parametrize("clip", [math.inf, 0.2])
@pytest.mark.parametrize("kind", [A2C, RELAX, Marginal])
def test_gradients_are_those_of_ppos_objective_for_discrete_actions(kind: type[ActorCritic], clip: float) -> None:
    agent = kind(OBS, DISCRETE, seed=0)
    if isinstance(agent, SurrogateActorCritic):
        shake(agent)
        agent.surrogate.gain.data.mul_(0.3)
    old, new = torch.tensor([0.3, -0.8, 0.1]), torch.tensor([0.5, -1.1, 0.3]).requires_grad_()
    payoff = torch.tensor([2.0, -0.7, -1.0])
    ratio = new.softmax(-1) / old.softmax(-1)
    assert float(ratio[1].detach()) < 0.8 < 1.0 < float(ratio[0].detach()) < 1.2  # one clipped, two not
    objective = (old.softmax(-1) * torch.minimum(ratio * payoff, ratio.clamp(1 - clip, 1 + clip) * payoff)).sum()
    (exact,) = torch.autograd.grad(objective, new)
    generator = torch.Generator().manual_seed(11)
    draw = partial(later, agent, old, new.detach(), payoff.__getitem__, clip, generator)
    assert_unbiased(collect(lambda rows: agent.estimate(draw(rows)).grad, 1_500_000), exact.double())


@pytest.mark.parametrize("kind", [A2C, LAX])
def test_gradients_are_those_of_the_later_policy_for_continuous_actions(kind: type[ActorCritic]) -> None:
    agent = kind(OBS, spaces.Box(-1, 1, (1,), np.float32), seed=0)
    if kind is LAX:
        shake(agent)
    mean, log_std = 0.2, -0.3
    generator = torch.Generator().manual_seed(11)
    old, new = torch.tensor([0.35, -0.2]), torch.tensor([mean, log_std])
    draw = partial(later, agent, old, new, lambda a: (a - 1.0).square().squeeze(-1) - 1.2, math.inf, generator)
    exact = torch.tensor([2 * (mean - 1.0), 2 * np.exp(2 * log_std)], dtype=torch.float64)
    assert_unbiased(collect(lambda rows: agent.estimate(draw(rows)).grad, 4_500_000), exact)


@pytest.mark.parametrize(
    ("kind", "space"),
    [
        (RELAX, DISCRETE),
        (RELAX, spaces.MultiDiscrete([3, 2])),
        (RELAX, spaces.MultiBinary(3)),
        (LAX, spaces.Box(-1, 1, (2,), np.float32)),
    ],
)
def test_the_noise_leads_to_the_action_under_the_later_policy(kind: type[ActorCritic], space: Any) -> None:
    agent = kind(OBS, space, seed=0)
    shape = (500, agent.policy.num_params)
    old, new = (
        agent.policy.distribution(torch.randn(shape, generator=torch.Generator().manual_seed(i))) for i in (0, 1)
    )
    action = old.threshold(old.relax(old.sample_noise(agent.generator)))
    found = new.threshold(new.relax(noise_for(new, action, agent.generator)))
    torch.testing.assert_close(found, action)


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
    rollout = rollout_for(agent)
    expected = agent.batch(rollout)[0].advantage
    seen: list[Tensor] = []
    step = agent.step

    def watched(batch: Batch, params: Tensor, value: Tensor) -> Any:
        seen.append(batch.advantage)
        assert batch.old_log_prob is not None and batch.clip_range == 0.2
        return step(batch, params, value)

    agent.step = watched  # type: ignore[method-assign]
    agent.update(rollout)
    assert [len(part) for part in seen] == [5, 5, 5, 5, 4] * 3
    for epoch in range(3):
        found = torch.cat(seen[5 * epoch : 5 * epoch + 5])
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


def test_epochs_need_a_trust_region() -> None:
    with pytest.raises(SettingsError, match="epochs is 4, expected 1, or a finite clip_range or target_kl beside it"):
        AgentConfig(epochs=4)
    for name in ("clip_range", "target_kl"):
        with pytest.raises(SettingsError, match=f"{name} is 0.0, expected above 0"):
            AgentConfig(**{name: 0.0})
    with pytest.raises(SettingsError, match="minibatch_size is -1, expected 0 or above"):
        AgentConfig(minibatch_size=-1)


def test_images_go_through_minibatches() -> None:
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    agent = RELAX(space, DISCRETE, seed=0, cnn_features=16, epochs=2, minibatch_size=8, clip_range=0.1)
    shake(agent)
    start = weights(agent)
    metrics = agent.update(rollout_for(agent))
    assert all(math.isfinite(float(x)) for x in metrics.values())
    assert not torch.equal(start["policy.torso.linear.0.weight"], weights(agent)["policy.torso.linear.0.weight"])

"""Returns that count the entropy bonus of the states on the way: targets written out, on a chain in closed form, and in agents."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C, AGENTS, ActorCritic
from relax_rl.agents.rollouts import Rollout
from relax_rl.agents.trust_region import entropy_and_unit
from relax_rl.errors import SettingsError
from relax_rl.settings.config import AgentConfig
from tests.steps import (
    BOX,
    DISCRETE,
    OBS,
    assert_gone_on_with,
    rollout_for,
    shake,
    shake_module,
    watch_steps,
)

SOFT: dict[str, Any] = {"soft_returns": True, "entropy_coef": 0.3, "hidden": (8,), "surrogate_hidden": (8,)}


def agent_for(estimator: str, **settings: Any) -> ActorCritic:
    space = BOX if estimator == "lax" else DISCRETE
    agent = AGENTS[estimator](OBS, space, seed=0, **{**SOFT, **settings})
    shake(agent)
    for module in (agent.policy, agent.value):
        shake_module(module, torch.Generator().manual_seed(2))
    return agent


def rollout(agent: ActorCritic, seed: int = 1, *, masked: bool = False) -> Rollout:
    """One with ends of both kinds, last observations, rows that autoreset made up, and perhaps masks."""
    generator = torch.Generator().manual_seed(seed)
    made = rollout_for(agent, seed=seed, valid=torch.rand((6, 4), generator=generator) > 0.2)
    assert made.truncated.any() and made.terminated.any()
    index, mask = made.truncated.nonzero(), None
    if masked:
        mask = torch.rand((6, 4, 3), generator=generator) > 0.4
        mask.scatter_(-1, made.action.unsqueeze(-1), True)
    return replace(made, final_obs=torch.randn((len(index), 3), generator=generator), final_index=index, mask=mask)


def coef_of(agent: ActorCritic) -> float:
    learned = agent.learner.multipliers.entropy
    return agent.config.entropy_coef if learned is None else learned.value


def entropies(agent: ActorCritic, made: Rollout) -> torch.Tensor:
    """`[T, N]`"""
    mask = None if made.mask is None else made.mask.flatten(0, 1)
    params = agent.policy(agent.normalized(made.obs[:-1].flatten(0, 1))).detach()
    dist: Any = agent.policy.distribution(params, mask)
    entropy = dist.entropy() if agent.config.entropy_target is None else entropy_and_unit(dist)[0]
    return entropy.detach().view(6, 4)


def targets(agent: ActorCritic, made: Rollout) -> torch.Tensor:
    """`[T, N]` y = r + gamma (alpha H' + (1 - lambda) E q' + lambda y'), with V = E q + alpha H (Voelcker et al. 2025)."""
    gamma, lambda_, coef = agent.config.gamma, agent.config.gae_lambda, coef_of(agent)
    entropy, y = entropies(agent, made), torch.zeros(6, 4)
    last = {(int(t), int(n)): k for k, (t, n) in enumerate(made.final_index)}
    with torch.no_grad():
        value = agent.value(agent.normalized(made.obs.flatten(0, 1))).view(7, 4)
        ends = agent.value(agent.normalized(made.final_obs))
    for n in range(4):
        for t in reversed(range(6)):
            follows = t < 5 and bool(made.valid[t + 1, n])
            if made.terminated[t, n]:
                after = 0.0
            elif (t, n) in last:
                after = float(ends[last[t, n]])
            elif t == 5 or not follows:  # a row that was made up says nothing beyond its V
                after = float(value[t + 1, n])
            else:
                bonus = coef * float(entropy[t + 1, n])
                after = bonus + (1 - lambda_) * (float(value[t + 1, n]) - bonus) + lambda_ * float(y[t + 1, n])
            y[t, n] = made.reward[t, n] * agent.reward_unit + gamma * after
    return y


@pytest.mark.parametrize(
    ("estimator", "settings", "masked"),
    [
        ("relax", {"surrogate_loss": "critic", "critic_loss": "hl_gauss", "gae_lambda": 0.8}, True),
        ("a2c", {"normalize_reward": True, "normalize_obs": True}, False),
        ("lax", {"entropy_target": -0.5, "squash": True, "multiplier_lr": 0.5}, False),
    ],
)
def test_returns_are_those_of_the_recursion_and_the_states_own_bonus(
    estimator: str, settings: dict[str, Any], masked: bool
) -> None:
    agent = agent_for(estimator, **settings)
    if agent.config.normalize_reward:
        agent.update(rollout_for(agent, seed=5))
    if agent.learner.multipliers.entropy is not None:
        agent.learner.multipliers.entropy.update(1.0)
    made = rollout(agent, masked=masked)
    batch, _ = agent.batch(made)
    own = coef_of(agent) * entropies(agent, made)
    assert float(own.abs().max()) > 0.01
    found, kept = batch.return_.view(6, 4) - own, made.valid
    torch.testing.assert_close(found[kept], targets(agent, made)[kept], rtol=1e-4, atol=1e-5)
    # What is the same for all actions is not in the advantage.
    torch.testing.assert_close(batch.advantage, batch.return_ - agent.value(batch.obs).detach(), rtol=1e-4, atol=1e-5)
    assert not batch.advantage[~kept.flatten()].any()


def test_on_a_chain_of_two_states_v_and_q_are_those_of_maximum_entropy() -> None:
    """Action 0 stays and action 1 changes the state, or ends the episode in state 1; V in closed form, by its linear system."""
    alpha, gamma = 0.4, 0.9
    reward, leads = torch.tensor([[0.3, -0.2], [0.1, 1.0]]), torch.tensor([[0, 1], [1, -1]])
    logits = torch.tensor([[0.5, -0.4], [-0.2, 0.7]])
    probs = logits.softmax(-1)
    entropy = -(probs * probs.log()).sum(-1)
    move = torch.tensor([[probs[0, 0], probs[0, 1]], [0.0, probs[1, 0]]])
    value = torch.linalg.solve(torch.eye(2) - gamma * move, (probs * reward).sum(-1) + alpha * entropy)
    q = reward + gamma * torch.where(leads >= 0, value[leads.clamp(min=0)], 0.0)
    torch.testing.assert_close((probs * (q - alpha * probs.log())).sum(-1), value)
    space = spaces.Box(0.0, 1.0, (2,), np.float32)
    settings: dict[str, Any] = {"hidden": (), "entropy_coef": alpha, "gamma": gamma, "soft_returns": True}
    agent = A2C(space, spaces.Discrete(2), gae_lambda=0.0, **settings)
    with torch.no_grad():
        for head, rows in ((agent.policy.head, logits.T), (agent.value.head, value[None])):
            head.weight.copy_(rows)
            head.bias.zero_()
    # One step from each state by each action, the first cut off by a time limit: its successor is a last observation.
    state, action = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    after = leads[state, action]
    made = Rollout(
        obs=torch.stack([torch.eye(2)[state], torch.eye(2)[torch.tensor([1, 1, 1, 0])]]),
        action=action[None],
        noise=agent.sample_noise(1, 4),
        reward=reward[state, action][None],
        terminated=(after < 0)[None],
        truncated=torch.tensor([[True, False, False, False]]),
        valid=torch.ones((1, 4), dtype=torch.bool),
        final_obs=torch.eye(2)[:1],
        final_index=torch.tensor([[0, 0]]),
    )
    batch, _ = agent.batch(made)
    torch.testing.assert_close(batch.return_ - alpha * entropy[state], q[state, action])
    by_action = batch.advantage.view(2, 2)
    torch.testing.assert_close((probs * by_action).sum(-1), torch.zeros(2), atol=1e-6, rtol=0)
    assert float(batch.entropy_coef) == pytest.approx(alpha)  # type: ignore[arg-type]


def test_returns_of_earlier_rollouts_count_the_entropy_of_the_policy_at_hand() -> None:
    """With lambda 0 V-trace adds it once, times the ratio of probabilities, cut at 1."""
    still: dict[str, Any] = {"gae_lambda": 0.0, "value_lr": 1e-12, "policy_lr": 1e-12}
    found, made = {}, rollout(agent_for("a2c"), 1, masked=True)
    for soft in (True, False):
        agent = agent_for("a2c", value_replay=1, replay_targets="anew", soft_returns=soft, **still)
        steps, log_prob = watch_steps(agent), []
        for seed in (1, 2):
            assert made.mask is not None
            dist: Any = agent.policy.distribution(
                agent.policy(made.obs[:-1].flatten(0, 1)).detach(), made.mask.flatten(0, 1)
            )
            log_prob.append(dist.log_prob(made.action.flatten(0, 1)).view(6, 4))
            agent.update(made if seed == 1 else rollout(agent, seed, masked=True))
            if seed == 1:
                with torch.no_grad():
                    agent.policy.head.weight.copy_(torch.linspace(-1, 1, 24).view(3, 8))
                    agent.policy.head.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
        found[soft] = steps[-1].batch.past_return
    assert found[True] is not None and found[False] is not None
    ratio = (log_prob[1] - log_prob[0]).exp().clamp(max=1.0)
    assert (ratio < 0.9).any() and (ratio == 1.0).any()
    own = 0.3 * entropies(agent, made) * ratio * made.valid
    torch.testing.assert_close((found[True] - found[False])[0].view(6, 4), own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"entropy_schedule": "linear"}, {"entropy_target": 0.6}])
def test_an_agent_is_gone_on_with_bit_for_bit(settings: dict[str, Any], tmp_path: Any) -> None:
    agent = agent_for("relax", surrogate_loss="critic", critic_loss="hl_gauss", value_replay=1, **settings)
    agent.schedule_start, agent.schedule_end = 0, 100
    agent.update(rollout(agent, 0))
    assert_gone_on_with(agent, rollout(agent, 1), tmp_path)


def test_off_is_as_before_and_what_cannot_be_is_refused() -> None:
    plain, soft = (A2C(OBS, DISCRETE, seed=0, entropy_coef=0.3, soft_returns=on) for on in (False, True))
    made = rollout(plain)
    off, on = (agent.batch(made)[0].return_ for agent in (plain, soft))
    more = (on - off).view(6, 4)
    assert float(more[made.valid].min()) > 0.2 * math.log(3) and not more[~made.valid].any()
    with pytest.raises(SettingsError, match="soft_returns is True, expected an entropy_coef above 0"):
        AgentConfig(soft_returns=True)
    for name in ("normalize_advantage", "scale_advantage"):
        with pytest.raises(SettingsError, match=f"{name} is True, expected False beside soft_returns"):
            AgentConfig(soft_returns=True, entropy_coef=0.1, **{name: True})

"""The parts of the variance of agents under masks and of agents with a memory, against processes whose parts are known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from relax_rl.agents import A2C, RELAX, ActorCritic
from relax_rl.backends.snapshots import ForkableEnv
from relax_rl.cli import main
from relax_rl.runs.training import train
from relax_rl.variance import decomposition
from relax_rl.variance.contenders import contenders
from relax_rl.variance.decomposition import decompose, follow
from tests.masked import allowed
from tests.steps import small_run
from tests.test_variance_decomposition import NOISE, STATES, assert_within

SMALL: dict[str, Any] = {"hidden": (8,), "surrogate_hidden": (8,), "gae_lambda": 1.0, "gamma": 1.0}
MASKS = {-1.0: (True, True, False), 2.0: (False, True, True)}


class MaskedBandit(gym.Env):
    """One step, from one of two states x, in each of which one of three actions a is forbidden: the reward is x a plus noise."""

    def __init__(self, by_method: bool = False) -> None:
        self.observation_space = spaces.Box(-3, 3, (1,), np.float32)
        self.action_space, self.by_method = spaces.Discrete(3), by_method
        if by_method:
            self.action_masks = lambda: MASKS[self.x]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(self.np_random.choice(STATES))
        return np.array([self.x], np.float32), {} if self.by_method else {"action_mask": MASKS[self.x]}

    def step(self, action):
        assert allowed(self.action_space, np.array(MASKS[self.x]), action)
        reward = self.x * float(action) + NOISE * self.np_random.normal()
        return np.array([self.x], np.float32), reward, True, False, {}


class Recall(gym.Env):
    """A sign x is shown first; at the second and last step the reward is x a plus noise."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-3, 3, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.choice(STATES)), 0
        return np.array([self.x, 0.0], np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == 2
        reward = self.x * float(action) + NOISE * self.np_random.normal() if over else 0.0
        return np.array([0.0, 1.0], np.float32), reward, over, False, {}


gym.register("MaskedBandit-v0", MaskedBandit, disable_env_checker=True)
gym.register("Recall-v0", Recall, disable_env_checker=True)


@pytest.fixture(autouse=True)
def close_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decomposition, "_MEAN_GAP", 3)


def moved(agent: ActorCritic) -> ActorCritic:
    with torch.no_grad():
        agent.policy.head.weight.normal_(0, 0.7, generator=torch.Generator().manual_seed(0))
        agent.value.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return agent


def rows_of(outputs: Tensor, agent: ActorCritic) -> Tensor:
    """`[P, |theta|]` the Jacobian of outputs `[P]` in the policy's parameters."""
    theta = list(agent.policy.parameters())
    each = [torch.autograd.grad(x, theta, retain_graph=True) for x in outputs]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in each]).double()


def test_the_parts_under_masks_in_closed_form() -> None:
    env = MaskedBandit()
    agent = moved(RELAX(env.observation_space, env.action_space, num_steps=1, **SMALL))
    parts = decompose(agent, ForkableEnv("MaskedBandit-v0"), contenders(agent, fit_batches=0), num_states=300, seed=1)
    trajectory, action, means = 0.0, 0.0, []
    for x in STATES:
        params, v = agent.policy(torch.tensor([[x]]))[0], float(agent.value(torch.tensor([[x]])).detach())
        left = torch.tensor(MASKS[x])
        p = torch.where(left, params.detach().double(), -torch.inf).softmax(-1)
        scores = (torch.eye(3).double() - p) @ (rows_of(params, agent) * left.unsqueeze(-1))
        norms, q = scores.square().sum(-1), x * torch.arange(3.0).double() - v
        trajectory += 0.5 * NOISE**2 * float(p @ norms)
        means.append((p * q) @ scores)
        action += 0.5 * float(p @ (q.square() * norms) - means[-1].square().sum())
    assert_within(parts["a2c"].trajectory, trajectory)
    assert_within(parts["a2c"].action, action)
    state, found = float(torch.stack(means).var(0, correction=0).sum()), parts["a2c"].state
    assert abs(found.value - state) < 1.1 * (found.high - found.low)


def in_recall(agent: ActorCritic, t: int, x: float, place: int) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters of the policy with the graph that an update at this place of a rollout has, and V, at each step up to t."""
    obs = torch.tensor([[x, 0.0], [0.0, 1.0]])
    states = [agent.policy.torso.initial_state(1), agent.value.torso.initial_state(1)]
    params, values = [], []
    for row in obs[: t + 1]:
        if len(params) == t - place:  # a rollout begins: its state is given
            states = [state.detach() for state in states]
        (acting, states[0]), (seen, states[1]) = (
            torso.step(row.unsqueeze(0), state)
            for torso, state in zip((agent.policy.torso, agent.value.torso), states, strict=True)
        )
        params.append(agent.policy.params(acting)[0])
        values.append(agent.value.value(seen)[0].detach().double())
    return params[-1], torch.stack(values), obs[t]


def test_the_parts_of_a_policy_with_a_memory_in_closed_form() -> None:
    """A row of the second step is pulled back to the first where its rollout begins there; V goes on from its own memory."""
    env = Recall()
    agent = moved(A2C(env.observation_space, env.action_space, num_steps=2, memory="lstm", memory_size=4, **SMALL))
    parts = decompose(agent, ForkableEnv("Recall-v0"), contenders(agent, fit_batches=0), num_states=250, seed=3)
    trajectory, action, means = 0.0, 0.0, []
    for t, x, place in [(t, x, place) for t in (0, 1) for x in STATES for place in (0, 1)]:
        params, values, _ = in_recall(agent, t, x, place)
        scores = (torch.eye(2).double() - params.detach().double().softmax(-1)) @ rows_of(params, agent)
        p, norms = params.detach().double().softmax(-1), scores.square().sum(-1)
        later, all_values, _ = in_recall(agent, 1, x, 0)
        p_later = later.detach().double().softmax(-1)
        if t == 1:
            mean, noise = x * torch.arange(2.0).double() - values[1], NOISE**2
        elif place == 0:  # the rollout holds the second step too
            mean = (x * p_later[1] - values[0]).expand(2)
            noise = NOISE**2 + x**2 * float(p_later[0] * p_later[1])
        else:
            mean, noise = (all_values[1] - values[0]).expand(2), 0.0
        trajectory += noise * float(p @ norms) / 8
        means.append((p * mean) @ scores)
        action += float(p @ (mean.square() * norms) - means[-1].square().sum()) / 8
    state = float(torch.stack(means).var(0, correction=0).sum())
    for name, truth in (("trajectory", trajectory), ("action", action), ("state", state)):
        part = getattr(parts["a2c"], name)
        assert abs(part.value - truth) < 1.1 * (part.high - part.low) < 1.1 * (abs(truth) + 0.05), (name, part, truth)


def test_gradients_go_back_to_where_the_rollout_begins() -> None:
    env = Recall()
    agent = moved(A2C(env.observation_space, env.action_space, num_steps=2, memory="gru", memory_size=4, **SMALL))
    tails = follow(agent, ForkableEnv("Recall-v0"), num_states=12, num_actions=3, seed=0)
    products = (tails.coordinates @ tails.coordinates.transpose(1, 2)).double()
    shapes = [in_recall(agent, t, x, place) for t in (0, 1) for x in STATES for place in (0, 1)]
    known = [(params.detach(), (rows := rows_of(params, agent)) @ rows.T) for params, *_ in shapes]
    found = set()
    for params, product in zip(tails.dist.params[::3], products, strict=True):
        near = [
            k
            for k, (p, q) in enumerate(known)
            if torch.allclose(p, params, atol=1e-5) and torch.allclose(q, product, rtol=1e-3, atol=1e-5)
        ]
        assert near, params
        found.update(near)
    assert found & {4, 6} and found & {5, 7}  # second steps of both kinds


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("MaskedBandit-v0", {"env_kwargs": {"by_method": True}, "memory": "gru", "memory_size": 4}),
        (
            "relax_rl_tests/Masked-v0",
            {"env_kwargs": {"how": "key"}, "mask_key": "say.mask", "drop_keys": ("say.mask",)},
        ),
        ("relax_rl_tests/Masked-v0", {"env_kwargs": {"how": "key", "kind": "multi_discrete"}, "mask_key": "say.mask"}),
    ],
)
def test_the_command_measures_the_parts(env: str, settings: dict[str, Any], tmp_path, capsys) -> None:
    train(small_run(tmp_path / "run", env, "relax", total_steps=40, **settings))
    args = ["--batches", "2", "--fit-batches", "0", "--states", "3"]
    assert main(["variance", str(tmp_path / "run"), *args]) == 0
    assert "Parts of the variance" in capsys.readouterr().out

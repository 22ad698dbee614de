"""Recurrent policies and value functions: while acting, through a rollout, in passes, saved, and on a task that needs them."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.memory_tasks import Cue
from relax_rl import make_envs
from relax_rl.agents import AGENTS, ActorCritic, NetworkParts
from relax_rl.agents.gradients import Objective, gradients
from relax_rl.agents.memory import Memory, sequence_minibatches
from relax_rl.agents.networks import Outputs
from relax_rl.agents.shards import Shard
from relax_rl.errors import SettingsError
from relax_rl.networks.memory import MemoryTorso, RecurrentTorso, last_state, through_time
from relax_rl.networks.torsos import MLP
from relax_rl.runs.evaluation import evaluate
from relax_rl.settings.presets import preset_config

CUE = "benchmarks.memory_tasks:Cue-v0"
MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")
STARTS = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
FINAL = torch.tensor([[1, 0], [2, 1]])


def cue_envs(num_envs: int = 3, **settings: Any) -> Any:
    return make_envs(CUE, num_envs=num_envs, seed=1, vectorization="sync", **{"length": 4, **settings})


def agent_of(envs: Any, name: str = "relax", **settings: Any) -> ActorCritic:
    given = {"memory": "gru", "memory_size": 6, "hidden": (5,), "num_steps": 7, **settings}
    return AGENTS[name](envs.single_observation_space, envs.single_action_space, **given)


def step_by_step(
    torso: Any, obs: Tensor, state: Tensor, starts: Tensor, final: Tensor, *, cut: int = 0
) -> tuple[Tensor, Tensor]:
    """As `through_time`, by a loop, with the state after it; the chain of gradients is cut after `cut` steps."""
    steps, num = starts.shape
    rows, states = [], []
    for t in range(steps):
        state = torch.where(starts[t].unsqueeze(-1), torch.zeros_like(state), state)
        features, state = torso.step(obs[t * num : (t + 1) * num], state)
        rows.append(features)
        states.append(state)
        state = state.detach() if cut and t + 1 == cut else state
    after = torch.stack(states)
    last = [torso.step(obs[steps * num + k][None], after[t, n][None])[0] for k, (t, n) in enumerate(final.tolist())]
    return torch.cat([*rows, *last]), after[-1]


def torso_of(kind: Any) -> tuple[MemoryTorso, Tensor, Tensor]:
    torch.manual_seed(0)
    torso = MemoryTorso(MLP(3, (5,), "tanh"), kind, 4).double()
    rows = STARTS.numel() + len(FINAL)
    return torso, torch.randn(rows, 3).double(), torch.randn(3, torso.state_size).double()


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("starts", [STARTS, torch.zeros_like(STARTS)])
def test_sequences_are_the_steps_one_by_one(kind: str, starts: Tensor) -> None:
    torso, obs, state = torso_of(kind)
    final = FINAL if starts.any() else FINAL[:0]
    obs = obs[: starts.numel() + len(final)]
    expected, last = step_by_step(torso, obs, state, starts, final)
    found = through_time(torso, obs, state, starts, final)
    torch.testing.assert_close(found, expected)
    weights, parameters = torch.randn_like(found), list(torso.parameters())
    for x, y in zip(
        torch.autograd.grad((found * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(last_state(torso, obs[: starts.numel()], state, starts), last.detach())


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_chunks_give_the_gradient_of_the_whole_up_to_the_cut(kind: str) -> None:
    torso, obs, state = torso_of(kind)
    obs, half, none = obs[: STARTS.numel()], 3, FINAL[:0]
    middle = last_state(torso, obs[: half * 3], state, STARTS[:half])
    chunks = [
        through_time(torso, obs[: half * 3], state, STARTS[:half]),
        through_time(torso, obs[half * 3 :], middle, STARTS[half:]),
    ]
    parameters = list(torso.parameters())
    truncated, whole = (step_by_step(torso, obs, state, STARTS, none, cut=cut)[0] for cut in (half, 0))
    found, expected, other = (
        torch.cat([g.flatten() for g in torch.autograd.grad(x.square().sum(), parameters)])
        for x in (torch.cat(chunks), truncated, whole)
    )
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, other)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [False, True])
def test_a_rollout_begins_its_sequences_where_episodes_begin(mode: str, cut: bool) -> None:
    with cue_envs(autoreset_mode=mode, cut=cut) as envs:
        agent = agent_of(envs)
        collector = agent.collector(envs)
        agent.collect(collector)
        rollout = agent.collect(collector)
    memory = rollout.memory
    assert memory is not None and memory.state.abs().sum() > 0
    np.testing.assert_array_equal(memory.starts, rollout.obs[..., 1] == 1.0)
    assert bool(len(rollout.final_obs)) == (cut and mode != "NEXT_STEP")
    _, acted = agent.batch(rollout)
    networks, obs = agent.networks, torch.cat([rollout.obs.flatten(0, 1), rollout.final_obs])
    of_policy, of_value = memory.state.split(networks.state_sizes, -1)
    rows = rollout.num_steps * envs.num_envs
    features, after = step_by_step(networks.policy.torso, obs[:rows], of_policy, memory.starts[:-1], FINAL[:0])
    torch.testing.assert_close(acted.params, networks.policy.params(features), atol=1e-6, rtol=0)
    seen, _ = step_by_step(networks.value.torso, obs, of_value, memory.starts, rollout.final_index)
    torch.testing.assert_close(acted.value, networks.value.value(seen), atol=1e-6, rtol=0)
    torch.testing.assert_close(acted.features, seen[:rows].detach(), atol=1e-6, rtol=0)
    of_v = last_state(networks.value.torso, obs[:rows], of_value, memory.starts[:-1])
    kept = agent.env_memory.of(envs, 12, agent.device)
    torch.testing.assert_close(kept, torch.cat([after, of_v], -1), atol=1e-6, rtol=0)
    dist = networks.policy.distribution(acted.params)
    again = dist.threshold(dist.relax(rollout.noise.flatten(0, 1)))
    assert torch.equal(again, rollout.action.flatten())


@pytest.mark.parametrize("name", ["relax", "marginal", "a2c", "reinforce"])
def test_every_estimate_is_pulled_back_through_time(name: str) -> None:
    with cue_envs() as envs:
        agent = agent_of(envs, name)
        batch, _ = agent.batch(agent.collect(agent.collector(envs)))
    networks = agent.networks.double()
    double = {key: x.double() if x.is_floating_point() else x for key, x in batch.tensors().items()}
    assert batch.memory is not None
    memory = Memory(torch.randn_like(batch.memory.state.double()), batch.memory.starts)
    batch = replace(batch, memory=memory, **double)
    seen = [
        step_by_step(part.torso, batch.obs, state, memory.starts, FINAL[:0])[0]
        for part, state in zip((networks.policy, networks.value), memory.state.split(6, -1), strict=True)
    ]
    known = Outputs(networks.policy.params(seen[0]), networks.value.value(seen[1]), seen[1].detach())
    objective = Objective(agent.estimator, tuple(networks.parts()))
    found, expected = gradients(networks, batch, objective).of, gradients(networks, batch, objective, known=known).of
    for part in networks.parts():
        for x, y in zip(found[part], expected[part], strict=True):
            torch.testing.assert_close(x, y)
    # Two workers of some of the environments have the same mean.
    index = torch.arange(21).view(7, 3)
    halves = [index[:, :1].flatten(), index[:, 1:].flatten()]
    both = [gradients(networks, batch.select(own, Shard(21, own, 2)), objective).of["policy"] for own in halves]
    for x, y, whole in zip(*both, found["policy"], strict=True):
        torch.testing.assert_close((x + y) / 2, whole)


def test_minibatches_are_whole_sequences_alike_for_any_number_of_workers() -> None:
    steps, num = 5, 4
    place = torch.arange(steps * num).view(steps, num)
    alone = list(sequence_minibatches(Shard(20), steps, 10, torch.Generator().manual_seed(3)))
    assert [len(index) for index, _ in alone] == [10, 10]
    for columns in (slice(0, 2), slice(2, 4)):
        own = place[:, columns].flatten()
        parts = sequence_minibatches(Shard(20, own, 2), steps, 10, torch.Generator().manual_seed(3))
        for (index, shard), (whole, _) in zip(parts, alone, strict=True):
            assert shard.rows == 10 and shard.own is not None
            assert torch.equal(own[index], whole[shard.own])
    envs = torch.cat([index.view(steps, -1)[0] for index, _ in alone])
    assert envs.sort().values.tolist() == [0, 1, 2, 3]
    assert torch.equal(alone[0][0].view(steps, -1) % num, alone[0][0].view(steps, -1)[:1].expand(steps, -1))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_predict_goes_on_from_the_state_and_forgets_at_a_beginning(kind: str) -> None:
    with cue_envs() as envs:
        agent = agent_of(envs, memory=kind)
        obs = np.array(envs.obs)
    actions, state = agent.predict(obs, deterministic=True)
    assert actions.shape == (3,) and state.shape == (3, agent.networks.state_sizes[0])
    _, later = agent.predict(obs, state)
    _, mixed = agent.predict(obs, state, np.array([True, False, True]))
    assert not np.allclose(later, state)
    np.testing.assert_allclose(mixed, np.where([[True], [False], [True]], state, later))
    action, single = agent.predict(obs[0])
    assert np.shape(action) == ()
    np.testing.assert_allclose(single, state[:1], atol=1e-6)
    with pytest.raises(SettingsError, match=r"has a memory: call act_from"):
        agent.act(obs)
    with pytest.raises(SettingsError, match=r"expected \(3, "):
        agent.predict(obs, state[:2])
    with pytest.raises(SettingsError, match=r"state holds what is not a finite number"):
        agent.predict(obs, np.full_like(state, np.nan))
    with pytest.raises(SettingsError, match=r"the state is 'x', expected what `predict` returned"):
        agent.predict(obs, "x")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"episode_start has 2 entries, expected 3"):
        agent.predict(obs, state, [True, False])
    saved = io.BytesIO()
    agent.save(saved)
    saved.seek(0)
    again = ActorCritic.load(saved)
    np.testing.assert_array_equal(again.predict(obs, state, deterministic=True)[1], later)


def test_what_does_not_go_with_a_memory_is_refused() -> None:
    with cue_envs() as envs:
        with pytest.raises(SettingsError, match="value_replay is 2, expected 0 beside a memory"):
            agent_of(envs, value_replay=2)
        with pytest.raises(SettingsError, match="it is for networks without memory"):
            agent_of(envs, compile="on").learn(envs, 10)
    assert preset_config("CartPole-v1").agent.value_replay == 2
    assert preset_config("CartPole-v1", memory="gru").agent.value_replay == 0


class Sums(RecurrentTorso):
    """Remembers the sum of what it has seen."""

    num_features = state_size = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    def unroll(self, encoded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        sums = state + encoded.cumsum(0)
        return self.scale * sums, sums[-1]


def test_a_memory_of_the_users_own_is_shared_and_learns_in_passes() -> None:
    def shared(observations: Any, actions: Any, config: Any) -> NetworkParts:
        torso = Sums()
        return NetworkParts(torso, torso)

    def forgetful(observations: Any, actions: Any, config: Any) -> NetworkParts:
        return NetworkParts(MLP(3, (4,), "tanh"), MLP(3, (4,), "tanh"))

    with cue_envs() as envs:
        with pytest.raises(
            SettingsError, match="memory is 'gru', but networks of your own have what memory they are made"
        ):
            agent_of(envs, networks=forgetful, memory="gru")
        passes = {"epochs": 2, "clip_range": 0.2, "minibatch_size": 7, "surrogate_steps": 2, "memory": "none"}
        agent = agent_of(envs, networks=shared, **passes)
        assert agent.networks.state_sizes == (3, 0)
        before = [x.detach().clone() for x in agent.networks.parameters()]
        agent.learn(envs, 42)
        assert any(not torch.equal(x, y) for x, y in zip(before, agent.networks.parameters(), strict=True))
        state = agent.env_memory.of(envs, 3, agent.device)
        assert state[:, 1].max() <= 1.0  # the first step of an episode is marked once, and forgotten with it


def test_a_cue_is_remembered() -> None:
    settings = {"num_steps": 20, "policy_lr": 0.01, "value_lr": 0.01, "memory_size": 16, "hidden": (16,)}
    with cue_envs(16, length=5) as envs:
        agent = agent_of(envs, **settings)
        agent.learn(envs, 16_000)
    with cue_envs(4, length=5) as envs:
        scores = evaluate(agent, envs, episodes=20, seed=5, deterministic=True)
    assert scores is not None and scores.mean == 1.0


def test_the_cue_cannot_be_guessed() -> None:
    env = Cue(3)
    assert isinstance(env.observation_space, gym.spaces.Box)
    first = [env.reset(seed=seed)[0][0] for seed in range(20)]
    assert set(first) == {-1.0, 1.0}
    returns = []
    for action in (0, 1):
        env.reset(seed=0)
        steps = [env.step(action) for _ in range(3)]
        returns.append(sum(step[1] for step in steps))
        assert [step[2] for step in steps] == [False, False, True] and steps[1][0].tolist() == [0, 0, 1]
    assert sorted(returns) == [-1.0, 1.0]

"""Recurrent agents on the host, under masks, in runs, resumed, evaluated and in a video."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from relax_rl import make_envs
from relax_rl.agents import AGENTS, ActorCritic
from relax_rl.agents.acting import HostMemoryNetwork, acts_on_host
from relax_rl.agents.recurrence import policy_step
from relax_rl.networks.host_cells import lstm_step, unroll_gru
from relax_rl.runs.evaluation import evaluate
from relax_rl.runs.training import resume_config, train
from relax_rl.runs.video import record_video, rendering_env
from relax_rl.settings.config import EnvConfig
from tests.masked import SPACES
from tests.steps import OBS, PASSES, shake, small_run
from tests.test_masked_agents import masked_envs
from tests.test_training import assert_same_state, final_state

SMALL: dict[str, Any] = {"hidden": (8,), "memory_size": 6, "surrogate_hidden": (8,), "num_steps": 6}
KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])


def cell_of(kind: type[nn.Module], *sizes: int) -> Any:
    torch.manual_seed(0)
    return kind(*sizes).double()


def test_the_gru_on_the_host_is_torchs_with_its_gradients() -> None:
    cell = cell_of(nn.GRU, 3, 4)
    encoded, state = (torch.randn(*shape).double().requires_grad_() for shape in ((5, 2, 3), (2, 4)))
    at_output, at_state = torch.randn(5, 2, 4).double(), torch.randn(2, 4).double()

    def by_torch(encoded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, after = cell(encoded, state.unsqueeze(0))
        return outputs, after[0]

    found, expected = (
        (*(both := way(encoded, state)), *torch.autograd.grad(both, given, (at_output, at_state)))
        for way, given in (
            (lambda *x: unroll_gru(cell, *x), [encoded, state, *cell.parameters()]),
            (by_torch, [encoded, state, *cell.parameters()]),
        )
    )
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="has no second derivatives"):
        torch.autograd.grad(unroll_gru(cell, encoded, state)[0].sum(), state, create_graph=True)


def test_a_step_of_the_lstm_on_the_host_is_torchs() -> None:
    cell = cell_of(nn.LSTM, 3, 4)
    x, h, c = torch.randn(2, 3).double(), torch.randn(2, 4).double(), torch.randn(2, 4).double()
    _, after = cell(x.unsqueeze(0), (h.unsqueeze(0), c.unsqueeze(0)))
    told = nn.functional.linear(x, cell.weight_ih_l0, cell.bias_ih_l0).detach().numpy().T.copy()
    inner = nn.functional.linear(h, cell.weight_hh_l0, cell.bias_hh_l0).detach().numpy().T.copy()
    state = torch.cat([h, c], -1).numpy().T.copy()
    lstm_step(told, inner, state)
    np.testing.assert_allclose(state.T, torch.cat([x[0] for x in after], -1).detach(), rtol=1e-12)


@KINDS
@pytest.mark.parametrize("hidden", [(), (8, 5)])
def test_acting_on_the_host_is_acting_in_torch(kind: str, hidden: tuple[int, ...]) -> None:
    with make_envs("CartPole-v1", num_envs=3, vectorization="sync") as envs:
        how = {**SMALL, "memory": kind, "hidden": hidden, "normalize_obs": True}
        agent = AGENTS["a2c"](envs.single_observation_space, envs.single_action_space, **how)
        agent.learn(envs, 60)
    policy, normalizer, starts = agent.policy, agent.obs_normalizer, torch.rand(5, 3) < 0.4
    assert acts_on_host(policy.torso, 3) and not acts_on_host(policy.torso, 10**6) and normalizer is not None
    obs, state = torch.randn(5, 3, 4), torch.randn(3, agent.networks.state_sizes[0])
    begins = iter(starts.numpy())
    network = HostMemoryNetwork(policy.torso, policy.head, state, lambda: next(begins))
    for seen, start in zip(obs, starts, strict=True):
        with torch.no_grad():
            expected, state = policy_step(agent, seen, state, start)
        found = network(normalizer.on_host(seen.numpy()))
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(network.state, state, atol=1e-6)


@pytest.mark.parametrize(("space", "kind"), zip(SPACES, ("gru", "lstm", "gru"), strict=True))
@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        ("relax", {"surrogate_steps": 2, "surrogate_scale": "fitted"}),
        ("relax", {**PASSES, "entropy_coef": 0.01}),
        ("marginal", {}),
        ("a2c", {**PASSES, "mode": AutoresetMode.SAME_STEP}),
        ("reinforce", {"mode": AutoresetMode.DISABLED}),
    ],
)
def test_agents_with_a_memory_choose_what_is_allowed(
    space: str, kind: str, estimator: str, settings: dict[str, Any]
) -> None:
    """The environments refuse what they do not allow."""
    how = {**SMALL, **settings, "memory": kind}
    with masked_envs(space, how.pop("mode", AutoresetMode.NEXT_STEP)) as envs:
        agent = AGENTS[estimator](envs.single_observation_space, envs.single_action_space, **how)
        shake(agent)
        agent.learn(envs, 120)
    assert all(bool(x.isfinite().all()) for x in agent.networks.parameters())
    with masked_envs(space) as envs:
        scores = evaluate(agent, envs, episodes=4, seed=1, deterministic=False)
    assert scores is not None and len(scores.returns) == 4


@pytest.fixture(scope="module", params=["gru", "lstm"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("memory") / "run"
    train(small_run(path, "CartPole-v1", "relax", memory=request.param, memory_size=6))
    return path


def test_runs_with_a_memory_are_resumed_bit_for_bit(run: Path, tmp_path: Path) -> None:
    one, other = (shutil.copytree(run, tmp_path / name) for name in ("one", "other"))
    for path in (one, other):
        train(resume_config(path, total_steps=700))
    assert_same_state(one, other)
    (before, _), (after, state) = final_state(run), final_state(one)
    assert state["agent"]["steps"] >= 700
    moved = [name for name in before if "cell.weight" in name and not torch.equal(before[name], after[name])]
    assert len(moved) >= 4  # of policy and value function


def test_evaluations_and_videos_remember(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    agent = ActorCritic.load(next((run / "checkpoints").glob("step_*")))
    shake(agent)
    with rendering_env(EnvConfig(env="CartPole-v1"), seed=4) as env:
        scores = record_video(agent, env, tmp_path / "a.mp4", seed=4, deterministic=True)
        obs, state, length, over = env.reset(seed=4), None, 0, False
        while not over:
            action, state = agent.predict(obs, state, [length == 0], deterministic=True)
            step = env.step(action)
            obs, over, length = step.next_obs, bool((step.terminated | step.truncated)[0]), length + 1
    assert scores.lengths == (length,) and (tmp_path / "a.mp4").stat().st_size > 0


@KINDS
def test_predict_takes_masks_beside_a_state(kind: str) -> None:
    """What is left is chosen by the probabilities that the state gives it, and the state goes on as without masks."""
    agent = AGENTS["relax"](OBS, SPACES["discrete"], memory=kind, **SMALL)
    shake(agent)
    obs, mask = np.random.default_rng(0).normal(size=(6, *OBS.shape)).astype(np.float32), np.zeros((6, 5), bool)
    mask[:, [1, 3]] = True
    _, state = agent.predict(obs)
    chosen, after = agent.predict(obs, state, deterministic=True, action_masks=mask)
    free, expected = agent.predict(obs, state, deterministic=True)
    np.testing.assert_array_equal(after, expected)
    assert np.isin(chosen, [0, 2]).all() and not np.isin(free, [0, 2]).all()  # actions begin at -1
    one, _ = agent.predict(obs[0], state[:1], deterministic=True, action_masks=mask[0])
    assert one == chosen[0]

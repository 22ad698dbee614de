"""How agents learn: what their gradient is, what trains what, and what leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from relax_rl.agents import A2C, AGENTS, LAX, RELAX, ActorCritic, resolve_estimator
from relax_rl.agents.rollouts import Collector
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError, TrainingDiverged
from tests.fakes import DictEnv, ImageEnv, golden_envs, vector_of
from tests.steps import (
    ACTIONS,
    BOX,
    DISCRETE,
    OBS,
    assert_same,
    rollout_for,
    shake,
    target_envs,
    watch_steps,
    weights,
)

# What the gradient is


@pytest.mark.parametrize(("kind", "space"), [(RELAX, DISCRETE), (RELAX, ACTIONS["multi_binary"]), (LAX, BOX)])
def test_a_fresh_agent_with_a_surrogate_is_a2c_bit_for_bit(kind: type[ActorCritic], space: Any) -> None:
    ours, plain = kind(OBS, space, seed=3), A2C(OBS, space, seed=3)
    assert_same(weights(ours), weights(plain))
    rollout = rollout_for(plain)
    ours.update(rollout)
    plain.update(rollout)
    assert_same(weights(ours), weights(plain))


# What trains what


@pytest.mark.parametrize(("kind", "space"), [(RELAX, DISCRETE), (LAX, BOX)])
def test_the_training_of_the_surrogate_never_reaches_policy_or_value(kind: type[ActorCritic], space: Any) -> None:
    agents = [kind(OBS, space, seed=0, surrogate_lr=lr, surrogate_steps=steps) for lr, steps in ((1e-3, 1), (0.3, 3))]
    for agent in agents:
        shake(agent)
    rollout = rollout_for(kind(OBS, space, seed=0))
    for agent in agents:
        agent.update(rollout)
    assert_same(weights(agents[0]), weights(agents[1]))
    first, second = (agent.surrogate.head.weight for agent in agents)  # type: ignore[attr-defined]
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("kind", "space"), [(RELAX, DISCRETE), (LAX, BOX)])
def test_every_parameter_of_the_surrogate_learns(kind: type[ActorCritic], space: Any) -> None:
    agent: Any = kind(OBS, space, seed=0)
    before = {name: p.detach().clone() for name, p in agent.surrogate.named_parameters()}
    for seed in range(3):
        agent.update(rollout_for(agent, seed=seed))
    assert not {name for name, p in agent.surrogate.named_parameters() if torch.equal(p, before[name])}


@pytest.mark.parametrize(("kind", "space"), [(RELAX, DISCRETE), (LAX, BOX)])
def test_training_the_surrogate_lowers_the_variance(kind: type[ActorCritic], space: Any) -> None:
    agent: Any = kind(OBS, space, seed=0, policy_lr=1e-9, value_lr=1e-9, surrogate_lr=1e-2, num_steps=32)
    if space is DISCRETE:
        pays = torch.tensor([1.0, -2.0, 0.5])
    ratios = []
    for seed in range(150):
        rollout = rollout_for(agent, steps=32, seed=seed)
        reward = pays[rollout.action] if space is DISCRETE else rollout.action.square().sum(-1)
        over = torch.ones_like(rollout.terminated)
        metrics = agent.update(replace(rollout, reward=reward, terminated=over))
        ratios.append(float(metrics["estimate/variance"] / metrics["estimate/variance_a2c"]))
    assert ratios[0] == 1.0
    assert np.mean(ratios[-20:]) < 0.75


def test_a_row_that_is_not_valid_changes_nothing() -> None:
    agents = [RELAX(OBS, DISCRETE, seed=0) for _ in range(2)]
    for agent in agents:
        shake(agent)
    rollout = rollout_for(RELAX(OBS, DISCRETE, seed=0))
    valid = rollout.valid.clone()
    valid[2, 1] = valid[4, 3] = False
    terminated, truncated = rollout.terminated & valid, rollout.truncated & valid
    terminated[1, 1] = terminated[3, 3] = True  # the rows before the made-up ones end an episode
    rollout = replace(rollout, valid=valid, terminated=terminated, truncated=truncated)
    reward, action = rollout.reward.clone(), rollout.action.clone()
    reward[~valid] = 1e6
    agents[0].update(rollout)
    agents[1].update(replace(rollout, reward=reward, action=action))
    assert_same(weights(agents[0]), weights(agents[1]))
    assert agents[0].steps == int(valid.sum()) == 22


# Learning


@pytest.mark.parametrize(
    ("estimator", "actions", "settings", "steps"),
    [
        ("relax", "discrete", {"surrogate_steps": 3, "entropy_coef": 0.01}, 4_000),
        ("relax", "multi_discrete", {}, 4_000),
        ("relax", "multi_binary", {}, 4_000),
        ("lax", "box", {}, 16_000),
        ("lax", "box", {"squash": True}, 16_000),
        ("lax", "box", {"state_dependent_std": True, "policy_lr": 2e-3, "entropy_coef": 0.02}, 4_000),
        ("a2c", "discrete", {"optimizer": "rmsprop", "entropy_coef": 0.01}, 4_000),
        ("a2c", "box", {"normalize_obs": True, "normalize_reward": True}, 16_000),
        ("reinforce", "multi_binary", {"gae_lambda": 1.0}, 4_000),
    ],
)
def test_every_kind_of_action_is_learned(estimator: str, actions: str, settings: dict[str, Any], steps: int) -> None:
    envs = target_envs(ACTIONS[actions])
    agent = AGENTS[estimator](
        envs.single_observation_space,
        envs.single_action_space,
        **{"policy_lr": 5e-3, "value_lr": 5e-3, "gamma": 0.5, "num_steps": 8, **settings},
    )
    returns: list[float] = []
    agent.learn(envs, steps, [lambda _, info: returns.extend(e.return_ for e in info.episodes)])
    # 10 is the best; chance gives 5 at most with choices and bits, and less with floats.
    assert np.mean(returns[-100:]) > 7.5
    assert agent.episodes == len(returns)


@pytest.mark.parametrize("estimator", ["relax", "lax"])
def test_the_same_seed_trains_the_same_agent_and_the_global_generator_is_left_alone(estimator: str) -> None:
    space = DISCRETE if estimator == "relax" else BOX
    states = []
    for other in (1, 2):
        torch.manual_seed(other)
        before = torch.get_rng_state()
        envs = target_envs(space)
        agent = AGENTS[estimator](envs.single_observation_space, space, seed=5)
        agent.learn(envs, 400)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(agent.state_dict()[0])
    assert_same(*states)
    assert not torch.equal(states[0]["policy.head.weight"], AGENTS[estimator](OBS, space, seed=6).policy.head.weight)


@pytest.mark.parametrize("estimator", ["relax", "a2c"])
def test_images_share_a_torso_that_the_surrogate_only_reads(estimator: str) -> None:
    space = spaces.Box(0, 255, (4, 36, 36), np.uint8)
    agents = [
        AGENTS[estimator](space, DISCRETE, seed=0, cnn_features=16, surrogate_lr=lr, normalize_obs=True)
        for lr in (1e-3, 0.5)
    ]
    rollout = rollout_for(AGENTS[estimator](space, DISCRETE, seed=0, cnn_features=16))
    start = agents[0].policy.torso.linear[0].weight.detach().clone()  # type: ignore[union-attr, index]
    for agent in agents:
        if estimator == "relax":
            shake(agent)
        agent.update(rollout)
    assert_same(weights(agents[0]), weights(agents[1]))
    assert agents[0].policy.torso is agents[0].value.torso
    assert not torch.equal(agents[0].policy.torso.linear[0].weight, start)  # type: ignore[union-attr, index]
    assert agents[0].obs_normalizer is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_update_takes_over_the_features_of_acting(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = VectorEnvs(vector_of([lambda: ImageEnv(DISCRETE)] * 3, AutoresetMode.NEXT_STEP), seed=0)
    settings: dict[str, Any] = {"seed": 0, "cnn_features": 16, "num_steps": 12, "precision": precision}
    agents = [RELAX(envs.single_observation_space, DISCRETE, **settings) for _ in range(2)]
    rollout = agents[0].collect(agents[0].collector(envs))
    assert len(rollout.final_obs) == 0 and not rollout.valid.all()
    asked: list[int] = []
    torso: Any = agents[0].policy.torso
    convolved = torso.convolved
    monkeypatch.setattr(torso, "convolved", lambda obs: asked.append(len(obs)) or convolved(obs))
    agents[1].generator.set_state(agents[0].generator.get_state())
    steps = [watch_steps(agent) for agent in agents]
    for agent in agents:
        agent.update(rollout)
    assert sum(asked) == 3  # the last observations, which only bootstrap
    ours, theirs = (torch.cat([step.gradients[name] for name in ("policy", "value")]) for (step,) in steps)
    assert (ours - theirs).norm() < (1e-5 if precision == "float32" else 2e-2) * theirs.norm()
    agents[0].update(rollout)
    assert sum(asked) == 3 + 39  # no longer the policy that acted: everything is computed again


def test_an_agent_learns_from_nested_observations() -> None:
    envs = golden_envs(AutoresetMode.NEXT_STEP, env=DictEnv)
    agent = RELAX(envs.single_observation_space, envs.single_action_space, cnn_features=16)
    agent.learn(envs, 60)
    assert agent.steps >= 60
    assert agent.act(envs.obs).shape == (3,)


def test_callbacks_all_hear_and_any_can_end_the_training() -> None:
    heard: list[tuple[str, int]] = []
    envs = target_envs(DISCRETE)
    agent = A2C(envs.single_observation_space, DISCRETE)
    agent.learn(
        envs,
        400,
        [lambda _, info: info.updates < 3, lambda a, info: heard.append((a.name, info.steps))],
    )
    assert heard == [("a2c", 40), ("a2c", 80), ("a2c", 120)]


# Schedules and statistics


def test_a_linear_schedule_falls_to_zero_and_starts_anew_or_goes_on() -> None:
    envs = target_envs(DISCRETE)
    agent = RELAX(envs.single_observation_space, DISCRETE, lr_schedule="linear", policy_lr=1e-3)
    rates: list[float] = []
    steps = watch_steps(agent)

    def listen(agent: ActorCritic, info: Any) -> None:
        rates.append(float(info.metrics["policy/learning_rate"]))

    agent.learn(envs, 400, [listen])
    np.testing.assert_allclose(rates, 1e-3 * np.arange(10, 0, -1) / 10)
    np.testing.assert_allclose([step.factor for step in steps], np.arange(10, 0, -1) / 10)
    assert all(step.gradients.keys() == {"policy", "value", "surrogate"} for step in steps)
    rates.clear()
    agent.learn(envs, 400, [listen])
    assert rates[0] == pytest.approx(1e-3)
    rates.clear()
    agent.learn(envs, 800, [listen], reset_schedule=False)
    np.testing.assert_allclose(rates, 1e-3 * np.arange(20, 0, -1) / 30)


def test_a_linear_entropy_bonus_is_half_as_large_half_way() -> None:
    falling, constant, none = (
        A2C(OBS, DISCRETE, entropy_coef=coef, entropy_schedule=schedule, optimizer="rmsprop")
        for coef, schedule in ((0.2, "linear"), (0.1, "constant"), (0.0, "constant"))
    )
    falling.schedule_start, falling.schedule_end, falling.steps = 0, 200, 100
    for agent in (falling, constant, none):
        torch.nn.init.normal_(agent.policy.head.weight, generator=torch.Generator().manual_seed(1))
        agent.update(rollout_for(agent))
    assert torch.equal(falling.policy.head.weight, constant.policy.head.weight)
    assert not torch.equal(falling.policy.head.weight, none.policy.head.weight)


def test_statistics_take_a_rollout_in_after_its_update_and_are_frozen_elsewhere() -> None:
    agent = RELAX(OBS, DISCRETE, normalize_obs=True, normalize_reward=True)
    plain = RELAX(OBS, DISCRETE)
    rollout = rollout_for(plain)
    agent.update(rollout)
    plain.update(rollout)
    assert_same(weights(agent), weights(plain))  # all statistics were the identity until then
    assert agent.obs_normalizer is not None
    np.testing.assert_allclose(agent.obs_normalizer.moments.mean, rollout.obs[:-1].flatten(0, 1).mean(0), rtol=1e-5)
    before = agent.state_dict()[0]
    agent.act(rollout.obs[0].numpy())
    agent.predict(rollout.obs[0].numpy(), deterministic=True)
    changed = {name for name, x in agent.state_dict()[0].items() if not torch.equal(x, before[name])}
    assert changed == {"generator"}


def test_rewards_are_clipped_for_learning_and_counted_raw() -> None:
    envs = golden_envs(AutoresetMode.SAME_STEP)
    agent = A2C(envs.single_observation_space, envs.single_action_space, reward_clip=1.0, gamma=0.0)
    collector = Collector(envs, agent.observations.encode, agent.to_env, 6)
    rollout = collector.collect(agent.sample, agent.sample_noise(6, 3))
    assert rollout.reward.max() > 10
    clipped = replace(rollout, reward=rollout.reward.clamp(-1, 1))
    twin = A2C(envs.single_observation_space, envs.single_action_space, gamma=0.0)
    agent.update(rollout)
    twin.update(clipped)
    assert_same(weights(agent), weights(twin))
    assert max(e.return_ for e in rollout.episodes) > 10


# What cannot work


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    agent = RELAX(OBS, DISCRETE, normalize_obs=True, normalize_reward=True)
    agent.update(rollout_for(agent))
    before, counters = agent.state_dict()
    rollout = rollout_for(agent)
    rollout.reward[2, 2] = np.nan
    with pytest.raises(TrainingDiverged, match="not finite after 24 steps"):
        agent.update(rollout)
    after, same = agent.state_dict()
    assert same == counters
    assert {name for name, x in after.items() if not torch.equal(x, before[name])} <= {"generator"}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: RELAX(OBS, BOX), "use 'lax'"),
        (lambda: LAX(OBS, DISCRETE), "use 'relax'"),
        (lambda: LAX(OBS, spaces.MultiBinary(3)), "use 'relax'"),
        (lambda: LAX(OBS, spaces.Box(-np.inf, np.inf, (2,)), squash=True), "bound"),
        (lambda: resolve_estimator("relaxx", DISCRETE), "did you mean relax"),
        (lambda: A2C(OBS, DISCRETE).learn(target_envs(DISCRETE), 100), "the agent was made for the space"),
    ],
)
def test_what_does_not_fit_together_is_refused(call: Callable[[], Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        call()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"policylr": 1e-3}, "did you mean policy_lr"),
        ({"precision": "float16"}, "precision is 'float16', expected float32 or bfloat16"),
        (
            {"epochs": 4},
            "epochs is 4 and clip_range, target_kl and kl_bound are inf, expected one of them to bound",
        ),
        ({"clip_range": 0.0}, "clip_range is 0.0, expected above 0"),
        ({"target_kl": 0.0}, "target_kl is 0.0, expected above 0"),
        ({"minibatch_size": -1}, "minibatch_size is -1, expected 0 or above"),
        ({"value_replay": -1}, "value_replay is -1, expected 0 or above"),
        *(
            ({"ordinal_std_init": std}, f"ordinal_std_init is {std}, expected at least 0.01")
            for std in (0.0, -0.4, 0.001, np.nan)
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        A2C(OBS, DISCRETE, **settings)


@pytest.mark.parametrize(
    ("name", "space", "expected"),
    [
        ("auto", DISCRETE, "relax"),
        ("auto", spaces.MultiBinary(2), "relax"),
        ("auto", BOX, "lax"),
        ("a2c", BOX, "a2c"),
    ],
)
def test_auto_goes_by_the_actions(name: str, space: Any, expected: str) -> None:
    assert resolve_estimator(name, space) == expected

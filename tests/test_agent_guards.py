"""What an agent is given and handed on: states that do not fit, replaced parts, callbacks, threads, copies."""

from __future__ import annotations

import copy
import io
import json
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from torch import nn

import relax_rl
from relax_rl import A2C, LAX, RELAX, ActorCritic, make_envs
from relax_rl.agents import UpdateInfo
from relax_rl.agents.compiled import why_not_compiled
from relax_rl.envs import VectorEnvs
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.networks.space_json import space_from_json, space_to_json
from relax_rl.networks.spaces import ObservationEncoder
from relax_rl.runs.evaluation import evaluate
from relax_rl.settings.fields import whole
from tests.fakes import ImageEnv

OBS = spaces.Box(-4, 4, (4,))
SMALL: dict[str, Any] = {"hidden": (8,), "surrogate_hidden": (8,), "num_steps": 5}


def cartpole(num_envs: int = 4) -> VectorEnvs:
    return make_envs("CartPole-v1", num_envs=num_envs, seed=0)


def made(kind: type[ActorCritic] = RELAX, actions: spaces.Space[Any] | None = None, **settings: Any) -> ActorCritic:
    return kind(OBS, spaces.Discrete(4) if actions is None else actions, **{**SMALL, **settings})


def of_cartpole(envs: VectorEnvs, **settings: Any) -> ActorCritic:
    return RELAX(envs.single_observation_space, envs.single_action_space, **{**SMALL, **settings})


def same(one: ActorCritic, other: ActorCritic) -> bool:
    mine, theirs = one.state_dict()[0], other.state_dict()[0]
    return mine.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in mine.items())


def test_what_is_no_space_is_refused() -> None:
    with pytest.raises(
        SettingsError, match="observation_space is a str, expected a space of Gymnasium; an agent is made of"
    ):
        A2C("MlpPolicy", OBS)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="action_space is a int, expected a space"):
        A2C(OBS, 2)  # type: ignore[arg-type]


# States

MISFITS: dict[str, tuple[Callable[[], ActorCritic], Callable[[], ActorCritic]]] = {
    "a normaliser too many": (lambda: made(normalize_obs=True), made),
    "a normaliser too few": (made, lambda: made(normalize_obs=True)),
    "another width": (made, lambda: made(hidden=(9,))),
    "another activation": (made, lambda: made(activation="relu")),
    "bits for choices": (lambda: made(A2C, spaces.MultiBinary(4)), lambda: made(A2C)),
    "a squashed one": (
        lambda: made(LAX, spaces.Box(-1, 1, (2,)), squash=True),
        lambda: made(LAX, spaces.Box(-1, 1, (2,))),
    ),
    "another kind": (made, lambda: made(A2C)),
    "another optimiser": (made, lambda: made(optimizer="rmsprop")),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(case: str) -> None:
    theirs, ours = (make() for make in MISFITS[case])
    before = copy.deepcopy(ours)
    with pytest.raises(CheckpointError):
        ours.load_state_dict(*theirs.state_dict())
    assert same(ours, before) and ours.steps == before.steps


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, state: tensors.update(more=torch.zeros(2)),
        lambda tensors, state: tensors.pop("value.head.weight"),
        lambda tensors, state: tensors["policy.head.bias"].fill_(float("nan")),
        lambda tensors, state: tensors["surrogate_optimizer.square"].fill_(float("inf")),
        lambda tensors, state: state.update(steps=-1),
        lambda tensors, state: state.update(steps=float("inf")),
        lambda tensors, state: state.update(updates=10**400),
        lambda tensors, state: state.update(episodes=None),
        lambda tensors, state: state.pop("schedule_end"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: Callable[..., Any]) -> None:
    agent, before = made(), made()
    tensors, state = made(seed=1).state_dict()
    tensors = {name: x.clone() for name, x in tensors.items()}
    damage(tensors, state)
    with pytest.raises(CheckpointError):
        agent.load_state_dict(tensors, state)
    assert same(agent, before) and agent.steps == 0


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.int64])
@pytest.mark.parametrize(
    "make", [lambda d: spaces.Discrete(3, start=d(1), dtype=d), lambda d: spaces.MultiDiscrete([[3, 4]], d)]
)
def test_spaces_of_whole_numbers_keep_their_type(make: Callable[[Any], spaces.Space[Any]], dtype: Any) -> None:
    space = make(dtype)
    back = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert back == space and back.dtype == space.dtype
    actions = make(dtype)
    buffer = io.BytesIO()
    A2C(space, actions, hidden=(4,)).save(buffer)
    buffer.seek(0)
    again = A2C.load(buffer)
    assert again.observation_space == space and again.action_space == actions


def test_saving_makes_the_folder_and_takes_open_files(tmp_path: Path) -> None:
    agent = made(seed=3)
    agent.save(tmp_path / "not" / "there" / "agent.safetensors")
    assert same(ActorCritic.load(tmp_path / "not" / "there" / "agent.safetensors"), agent)
    with open(tmp_path / "open", "w+b") as file:
        agent.save(file)
        file.seek(0)
        assert same(RELAX.load(file), agent)


def test_weights_alone_are_saved_to_act_and_say_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with cartpole() as envs:
        agent = of_cartpole(envs, value_replay=2, normalize_obs=True, normalize_reward=True).learn(envs, 100)
        agent.save(path, optimizer=False)
        agent.save(tmp_path / "whole.safetensors")
        assert path.stat().st_size < 0.8 * (tmp_path / "whole.safetensors").stat().st_size
        missing = "policy_optimizer, surrogate_optimizer, value_optimizer, value_replay"
        with pytest.raises(CheckpointError, match=f"saved without {missing}: load it with optimizer=False"):
            RELAX.load(path)
        for file in (path, tmp_path / "whole.safetensors"):
            other = RELAX.load(file, optimizer=False)
            assert other.steps == agent.steps and other.reward_unit == agent.reward_unit
            assert np.array_equal(
                other.predict(envs.obs, deterministic=True)[0], agent.predict(envs.obs, deterministic=True)[0]
            )
            assert not other.state_dict()[0]["policy_optimizer.square"].any()
            assert other.learn(envs, 40).steps >= agent.steps + 40
            other.save(path)  # whole again
            assert same(RELAX.load(path), other)
            agent.save(path, optimizer=False)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    "setting",
    [
        {"entropy_target": 0.5},
        {"kl_bound": 0.1},
        {"value_replay": 2},
        {"residual_weight": "adaptive", "surrogate_loss": "critic"},
    ],
)
def test_weights_go_to_an_agent_with_another_loss(setting: dict[str, Any], there: bool) -> None:
    """A new agent takes weights and statistics alone, whatever of either agent is there for learning."""
    more = {"surrogate_loss": "critic"} if "residual_weight" in setting else {}
    with cartpole() as envs:
        old = of_cartpole(envs, **(setting if there else more)).learn(envs, 100)
        new = of_cartpole(envs, seed=1, **(more if there else setting))
        new.load_state_dict(*old.state_dict(), optimizer=False)
        for name in ("policy", "value", "surrogate"):
            ours, theirs = (getattr(agent.networks, name).state_dict() for agent in (new, old))
            assert all(torch.equal(x, theirs[key]) for key, x in ours.items())
        assert new.learn(envs, 40).steps >= old.steps + 40


def test_weights_alone_have_to_fit_too(tmp_path: Path) -> None:
    agent, before = made(), made()
    tensors, state = made(seed=1).state_dict()
    for damage in ({**tensors, "more": torch.zeros(2)}, {**tensors, "policy.head.bias": torch.zeros(9)}):
        with pytest.raises(CheckpointError):
            agent.load_state_dict(damage, state, optimizer=False)
    tensors.pop("value.head.weight")
    with pytest.raises(CheckpointError):
        agent.load_state_dict(tensors, state, optimizer=False)
    assert same(agent, before)


@pytest.mark.parametrize("hand_on", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_agents_are_handed_on(hand_on: Callable[[ActorCritic], ActorCritic]) -> None:
    with cartpole() as envs:
        agent = of_cartpole(envs, value_replay=2, normalize_obs=True).learn(envs, 100)
        other = hand_on(agent)
        assert type(other) is RELAX and same(agent, other) and other.steps == agent.steps
        before = {name: x.clone() for name, x in other.networks.state_dict().items()}
        other.learn(envs, 40)
        assert not same(agent, other)
        # The weights that it acts with are those that learn, each network's.
        moved = {
            name.split(".")[0] for name, x in other.networks.state_dict().items() if not torch.equal(x, before[name])
        }
        assert moved == {"policy", "value", "surrogate"}
        other.learner.check_networks()


@pytest.mark.skipif(why_not_compiled(made().networks, 1) is not None, reason="needs a C++ compiler")
def test_copies_of_agents_with_compiled_code_learn_as_they_do() -> None:
    agents = []
    with cartpole() as envs:
        agent = of_cartpole(envs, compile="on").learn(envs, 20)
        for each in (agent, copy.deepcopy(agent)):
            with cartpole() as fresh:
                agents.append(each.learn(fresh, 40))
    assert agents[0].learner.compiled is not agents[1].learner.compiled
    for (name, x), y in zip(agents[0].state_dict()[0].items(), agents[1].state_dict()[0].values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5, msg=name)


# Learning


def test_replaced_parts_are_told() -> None:
    with cartpole() as envs:
        agent = of_cartpole(envs)
        agent.policy.torso = nn.Linear(4, 8)  # type: ignore[assignment]
        with pytest.raises(SettingsError, match="policy network were replaced"):
            agent.learn(envs, 20)
        agent = of_cartpole(envs)
        agent.networks.surrogate = copy.deepcopy(agent.networks.surrogate)
        with pytest.raises(SettingsError, match="surrogate network were replaced"):
            agent.learn(envs, 20)
        agent = of_cartpole(envs)
        numbers = nn.utils.parameters_to_vector(agent.policy.parameters()).detach()
        nn.utils.vector_to_parameters(numbers, agent.policy.parameters())
        with pytest.raises(
            SettingsError, match=r"policy network were replaced.* copy numbers into those that are there"
        ):
            agent.learn(envs, 20)


def test_environments_of_another_kind_are_told() -> None:
    agent = made()
    with pytest.raises(
        SettingsError, match=r"are str, expected VectorEnvs, or an environment .*; use relax_rl\.make_envs"
    ):
        agent.learn("CartPole-v1", 10)  # type: ignore[arg-type]
    for other in (gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"), gym.make("CartPole-v1")):
        with pytest.raises(SettingsError, match="the agent was made for the space"):
            agent.learn(other, 10)
    with cartpole() as envs, pytest.raises(SettingsError, match="the agent was made for the space"):
        agent.learn(envs, 10)
    with cartpole() as envs, pytest.raises(SettingsError, match="the agent was made for the space"):
        evaluate(agent, envs, episodes=1, seed=0, deterministic=True)


@pytest.mark.parametrize("answer", [False, np.bool_(False), torch.tensor(False)])
def test_a_callback_ends_the_training_by_whatever_is_false(answer: Any) -> None:
    with cartpole() as envs:
        agent = of_cartpole(envs)
        agent.learn(envs, 100, lambda agent, info: answer)
        assert agent.updates == 1


@pytest.mark.parametrize("answer", [None, True, np.bool_(True), 0, ""])
def test_and_by_nothing_else(answer: Any) -> None:
    with cartpole() as envs:
        assert of_cartpole(envs).learn(envs, 100, [lambda agent, info: answer]).updates > 4
        assert of_cartpole(envs).learn(envs, 100, None).updates > 4


def test_callbacks_hear_plain_numbers() -> None:
    heard: list[UpdateInfo] = []
    with cartpole() as envs:
        agent = of_cartpole(envs, surrogate_scale="fitted")
        agent.learn(envs, 2_000, lambda agent, info: heard.append(info))
    for info in heard:
        assert all(type(x) is float for x in info.metrics.values())
    assert {"return_mean", "losses/variance", "surrogate/gain", "surrogate/scale"} <= heard[-1].metrics.keys()
    returns = [episode.return_ for info in heard for episode in info.episodes]
    assert len(returns) > 20 and heard[-1].metrics["return_mean"] == pytest.approx(np.mean(returns[-100:]))
    assert np.isnan(heard[0].metrics["return_mean"])


def test_the_gain_that_is_told_is_that_of_the_estimate() -> None:
    told: list[float] = []
    with cartpole() as envs:
        agent = of_cartpole(envs, surrogate_lr=0.1, compile="off")
        gain = float(agent.networks.surrogate.gain.detach())  # type: ignore[union-attr, operator]
        agent.learn(envs, 20, lambda agent, info: told.append(info.metrics["surrogate/gain"]))
        assert told == [gain]


def test_episodes_of_steps_by_hand_are_not_counted() -> None:
    with cartpole() as envs:
        agent = of_cartpole(envs)
        for _ in range(200):
            envs.step(envs.vector_env.action_space.sample())
        agent.learn(envs, 20)
        assert agent.episodes <= 4


@pytest.mark.parametrize(("threads", "within"), [(1, 1), (2, 2), (None, 3)])
def test_learning_limits_threads_and_gives_them_back(threads: int | None, within: int) -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with cartpole() as envs:
            of_cartpole(envs).learn(envs, 20, lambda agent, info: seen.append(torch.get_num_threads()), threads=threads)
        assert seen == [within] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [-1, 1.5, 10**6])
def test_a_number_of_threads_that_no_machine_has_is_refused(wrong: float) -> None:
    with make_envs("CartPole-v1", num_envs=2) as envs, pytest.raises(SettingsError, match=r"threads is"):
        of_cartpole(envs).learn(envs, 20, threads=wrong)  # type: ignore[arg-type]


def test_agents_made_in_threads_are_those_made_alone() -> None:
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: made(seed=seed), range(48)))
    assert all(same(agent, made(seed=seed)) for seed, agent in enumerate(together))


@pytest.mark.parametrize("number", [np.int64(40), np.int32(40), 40.0, torch.tensor(40)])
def test_numbers_of_every_library_are_taken(number: Any) -> None:
    with cartpole() as envs:
        agent = RELAX(envs.single_observation_space, envs.single_action_space, seed=number, num_steps=number)
        assert agent.learn(envs, number).steps >= 40 and agent.seed == 40 and agent.config.num_steps == 40


def str_of(value: Any) -> str:
    return hex(value)[:9] if isinstance(value, int) else str(value)


@pytest.mark.parametrize("value", [-1, 1.5, float("nan"), float("inf"), 2**64, 10**400, "1", None, True], ids=str_of)
def test_what_is_no_whole_number_is_told(value: Any) -> None:
    with pytest.raises(SettingsError, match="seed is"):
        whole("seed", value, least=0)
    assert whole("seed", 2**63 - 1, least=0) == 2**63 - 1


@pytest.mark.parametrize(
    ("kind", "env", "settings"),
    [
        (RELAX, "CartPole-v1", {"normalize_obs": True, "surrogate_scale": "fitted"}),
        (LAX, "Pendulum-v1", {"epochs": 2, "clip_range": 0.2, "minibatch_size": 16, "surrogate_steps": 2}),
    ],
)
def test_another_default_dtype_changes_nothing(kind: Any, env: str, settings: dict[str, Any], tmp_path: Path) -> None:
    states, before = [], torch.get_default_dtype()
    for dtype in (torch.float32, torch.float64):
        with make_envs(env, num_envs=2, seed=0) as envs:
            agent = kind(envs.single_observation_space, envs.single_action_space, hidden=(4,), num_steps=20, **settings)
            try:
                torch.set_default_dtype(dtype)
                agent.learn(envs, 100).save(tmp_path / "agent")
                loaded = relax_rl.ActorCritic.load(tmp_path / "agent")
                np.testing.assert_array_equal(loaded.act(envs.obs), agent.act(envs.obs))
                assert loaded.policy.head.weight.dtype == torch.float32 and torch.get_default_dtype() == dtype
            finally:
                torch.set_default_dtype(before)
        states.append(agent.state_dict()[0])
    for name, x in states[0].items():
        assert torch.equal(x, states[1][name]) and x.dtype == states[1][name].dtype, name


def test_a_run_under_another_default_dtype_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relax_rl.runs.plotting.plot_curves", lambda *_, **__: None)
    found, before = [], torch.get_default_dtype()
    for dtype in (torch.float32, torch.float64):
        config = relax_rl.TrainConfig(
            run=relax_rl.RunConfig(total_steps=60, run_dir=str(tmp_path / str(dtype)), tensorboard=False, quiet=True),
            agent=relax_rl.AgentConfig(hidden=(4,)),
        )
        try:
            torch.set_default_dtype(dtype)
            found.append(relax_rl.train(config).agent.state_dict()[0])
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(before)
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())


def test_an_agent_made_under_another_default_dtype_is_refused() -> None:
    before = torch.get_default_dtype()
    with make_envs("CartPole-v1", num_envs=2, seed=0) as envs:
        try:
            torch.set_default_dtype(torch.float64)
            agent = RELAX(envs.single_observation_space, envs.single_action_space)
        finally:
            torch.set_default_dtype(before)
        for call in (lambda: agent.learn(envs, 100), lambda: agent.act(envs.obs), lambda: agent.predict(envs.obs)):
            with pytest.raises(SettingsError, match=r"networks are torch.float64.*set_default_dtype\(torch.float32\)"):
                call()


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), "'obs' (uint8, 7x7x3)"),
        (spaces.Box(0, 1, (10, 10, 4), np.bool_), "'obs' (bool, 10x10x4)"),
        (spaces.Box(0, 1, (84, 84), np.float32), "'obs' (float32, 84x84)"),
        (spaces.Box(0, 1, (3, 84, 84), np.float32), "'obs' (float32, 3x84x84)"),
        (spaces.Box(0, 255, (84, 84), np.uint8), ""),
        (spaces.Box(0, 1, (5, 7), np.float32), ""),
        (spaces.Dict({"eye": spaces.Box(0, 255, (9, 9), np.uint8), "x": spaces.Box(0, 1, (3,))}), "'eye' (uint8, 9x9)"),
    ],
)
def test_images_that_go_to_an_mlp_are_named(space: Any, told: str) -> None:
    assert ", ".join(ObservationEncoder(space).small_images()) == told


def test_and_said_once_when_learning_begins() -> None:
    class Small(ImageEnv):
        def __init__(self) -> None:
            super().__init__(spaces.Discrete(2))
            self.observation_space = spaces.Box(0, 255, (7, 7, 3), np.uint8)

    with VectorEnvs(SyncVectorEnv([Small])) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, hidden=(4,), cnn="legacy")
        with pytest.warns(
            UserWarning, match="goes to an MLP as plain numbers; the CNN is for uint8 images of at least 36"
        ):
            agent.learn(envs, 10)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            agent.learn(envs, 10)

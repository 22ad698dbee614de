"""Environments that give what is no number, or end in one: what counts is named, what does not count is ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from relax_rl import A2C, LAX, RELAX, ActorCritic
from relax_rl.cli import main
from relax_rl.envs import VectorEnvs
from relax_rl.errors import EnvironmentFault, SettingsError
from relax_rl.networks.spaces import ObservationEncoder

MODES = list(AutoresetMode)
LIMIT = "gymnasium.wrappers:TimeLimit"
NAN, INF = float("nan"), float("inf")


class Twenty(gym.Env):
    """Episodes of 20 steps, with reward 1.

    Args:
        actions: the action space.
        obs: what is given as the second entry of the observation in the step numbered `at`, of all steps.
        reward: what is given as the reward in that step.
        last: fills the last observation of every episode.
        truncates: whether episodes are cut off rather than over.
    """

    observation_space = spaces.Dict({"here": spaces.Box(-1, 1, (2,)), "there": spaces.Box(-1, 1, (3,), np.float64)})

    def __init__(self, actions: spaces.Space[Any], at: int = 0, **gives: Any) -> None:
        self.action_space, self.at, self.gives = actions, at, gives
        self.steps = self.t = 0

    def see(self) -> dict[str, np.ndarray]:
        return {"here": np.array([0.1, 0.2], np.float32), "there": np.array([0.3, 0.4, 0.5])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def step(self, action: Any) -> Any:
        self.steps, self.t = self.steps + 1, self.t + 1
        obs, reward, ends = self.see(), 1.0, self.t == 20
        if self.steps == self.at:
            reward = self.gives.get("reward", reward)
            obs["there"][1] = self.gives.get("obs", 0.4)
        if ends and "last" in self.gives:
            obs["there"][:] = self.gives["last"]
        truncates = self.gives.get("truncates", False)
        return obs, reward, ends and not truncates, ends and truncates, {}


def envs_with(mode: AutoresetMode = AutoresetMode.NEXT_STEP, *, continuous: bool = False, **broken: Any) -> VectorEnvs:
    """Three environments, the second of which is broken."""
    actions: spaces.Space[Any] = spaces.Box(-1, 1, (2,)) if continuous else spaces.Discrete(2)
    each = [lambda: Twenty(actions), lambda: Twenty(actions, **broken), lambda: Twenty(actions)]
    return VectorEnvs(SyncVectorEnv(each, autoreset_mode=mode), env_id="Twenty")


def learned(envs: VectorEnvs, steps: int = 300, **settings: Any) -> ActorCritic:
    kind = LAX if isinstance(envs.single_action_space, spaces.Box) else RELAX
    agent = kind(
        envs.single_observation_space,
        envs.single_action_space,
        hidden=(4,),
        surrogate_hidden=(4,),
        num_steps=5,
        **settings,
    )
    with envs:
        return agent.learn(envs, steps)


@pytest.mark.parametrize("normalize_obs", [False, True])
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"reward": NAN}, "a reward of nan in step 7"),
        ({"reward": INF}, "a reward of inf in step 7"),
        ({"reward": None}, "a reward of nan in step 7"),
        ({"reward": 1e300}, "a reward of inf in step 7"),
        ({"obs": NAN}, "nan in the observation 'there' in step 7"),
        ({"obs": -INF}, "-inf in the observation 'there' in step 7"),
        ({"obs": 1e39}, "inf in the observation 'there' in step 7"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value")
def test_a_broken_number_has_a_name(broken: dict[str, Any], named: str, continuous: bool, normalize_obs: bool) -> None:
    with pytest.raises(EnvironmentFault, match=f"environment 1 of Twenty gave {named} of its episode"):
        learned(envs_with(continuous=continuous, at=7, **broken), normalize_obs=normalize_obs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("last", [NAN, INF])
def test_the_last_observation_of_an_episode_that_is_over_may_be_anything(
    last: float, continuous: bool, mode: AutoresetMode
) -> None:
    broken = learned(envs_with(mode, continuous=continuous, last=last), normalize_obs=True)
    whole = learned(envs_with(mode, continuous=continuous, last=0.0), normalize_obs=True)
    for name, x in whole.state_dict()[0].items():
        np.testing.assert_array_equal(broken.state_dict()[0][name].numpy(), x.numpy(), err_msg=name)


@pytest.mark.parametrize("mode", MODES)
def test_that_of_one_that_is_cut_off_has_to_be_finite(mode: AutoresetMode) -> None:
    with pytest.raises(EnvironmentFault, match=r"gave nan in the .*observation 'there' .*in step 20"):
        learned(envs_with(mode, last=NAN, truncates=True))


@pytest.mark.parametrize(
    "settings",
    [{"num_steps": 1}, {"num_steps": 2, "minibatch_size": 2, "epochs": 2, "clip_range": 0.2}],
    ids=["a rollout", "a minibatch"],
)
@pytest.mark.parametrize("kind", [A2C, RELAX])
def test_rows_that_autoreset_makes_up_alone_teach_nothing(kind: type[ActorCritic], settings: dict[str, Any]) -> None:
    spaces_of = envs_with()
    agent = kind(spaces_of.single_observation_space, spaces_of.single_action_space, hidden=(4,), **settings)
    envs = VectorEnvs(SyncVectorEnv([lambda: Twenty(spaces.Discrete(2))]))
    with envs:
        agent.learn(envs, 60)  # a single environment makes up one row in 21
    assert agent.steps >= 60 and all(np.isfinite(x.numpy()).all() for x in agent.state_dict()[0].values())


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_whole_numbers_of_any_type_are_seen(dtype: Any) -> None:
    several = ObservationEncoder(spaces.MultiDiscrete([3, 2], dtype))
    np.testing.assert_array_equal(several.encode(np.array([[2, 0]], dtype)), [[0, 0, 1, 1, 0]])
    one = ObservationEncoder(spaces.Discrete(3, start=dtype(1), dtype=dtype))
    np.testing.assert_array_equal(one.encode(np.array([3, 1], dtype)), [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("obs", "told"),
    [
        (np.zeros((4, 2)), r"'here'|no array"),
        ({"here": np.zeros(2)}, "no leaf 'there'"),
        ({"here": np.zeros(2), "there": np.zeros(4)}, r"'there' has shape \(4,\), not \(3,\)"),
        ({"here": np.zeros(2), "there": np.zeros((2, 3))}, "unequal lengths .*'here' a single one, 'there' 2"),
        ({"here": np.zeros((4, 2)), "there": np.zeros((1, 3))}, "unequal lengths .*'here' 4, 'there' 1"),
        ({"here": np.zeros(2), "there": np.array([0, 1e39, 0])}, "'there' holds what is not a finite number"),
        ({"here": np.zeros(2), "there": np.array([0, NAN, 0])}, "'there' holds what is not a finite number"),
        (({"here": np.zeros(2), "there": np.zeros(3)}, {}), "give the first part of what env.reset"),
        ({"here": "left", "there": np.zeros(3)}, "'here'"),
    ],
)
def test_predict_takes_observations_alone(obs: Any, told: str) -> None:
    agent = A2C(Twenty.observation_space, spaces.Discrete(2), hidden=(4,))
    with pytest.raises(SettingsError, match=told):
        agent.predict(obs)


def test_predict_refuses_a_transposed_image() -> None:
    agent = A2C(spaces.Box(0, 255, (84, 84, 3), np.uint8), spaces.Discrete(2), cnn_features=4)
    with pytest.raises(SettingsError, match=r"has shape \(3, 84, 84\), not \(84, 84, 3\)"):
        agent.predict(np.zeros((3, 84, 84), np.uint8))


def test_predict_takes_the_keyword_of_stable_baselines3_and_gives_arrays() -> None:
    agent = A2C(spaces.Discrete(3), spaces.Discrete(2), hidden=(4,))
    action, state = agent.predict(observation=1, state="kept", deterministic=True)
    assert isinstance(action, np.ndarray) and action.shape == () and state == "kept"
    many, _ = agent.predict(np.array([1, 2]), deterministic=True)
    assert many.shape == (2,) and many[0] == action


class Older(gym.Env):
    """Keeps to the API of before Gymnasium.

    Args:
        what: `reset` or `step`, which of it.
    """

    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, what: str) -> None:
        self.what = what

    def reset(self, **kwargs: Any) -> Any:
        see = np.zeros(2, np.float32)  # unpacks into two
        return see if self.what == "reset" else (see, {})

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, {}


class Seedless(Older):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


STEP = "step of Older returned 4 values, expected (obs, reward, terminated, truncated, info)"


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["Older", "--env-kwargs", "what=step"], STEP),
        (["Older", "--env-kwargs", "what=step", "--wrapper", LIMIT, "max_episode_steps=9"], STEP),
        (["Older", "--env-kwargs", "what=reset"], "reset of Older returned ndarray alone, expected (obs, info)"),
        (["Seedless", "--env-kwargs", "what=none"], "reset of Seedless takes no seed, expected reset("),
    ],
)
def test_an_older_api_is_told_in_one_line(
    args: list[str], told: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--backend", how, "--num-envs", "2", "--run-dir", str(tmp_path / "run"), "--total-steps", "50", "--quiet"]
    assert main(["--env", f"tests.test_broken_environments:{args[0]}", *args[1:], *run]) == 2
    last = capsys.readouterr().err.splitlines()
    assert len(last) == 1 and last[0].startswith(f"error: {told}") and "see Gymnasium's API" in last[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("broken", [{"reward": NAN}, {"obs": NAN}], ids=["reward", "obs"])
@pytest.mark.parametrize(("at", "step"), [(1, 1), (20, 20), (47, 7), (61, 1), (79, 19)])
def test_a_broken_number_is_of_the_step_that_the_environment_itself_counts(
    at: int, step: int, broken: dict[str, Any], mode: AutoresetMode
) -> None:
    """Whatever rows autoreset makes up, and wherever rollouts begin."""
    with pytest.raises(EnvironmentFault, match=f"nan .*in step {step} of its episode, expected"):
        learned(envs_with(mode, at=at, truncates=True, **broken))

"""Environments that a user brings: classes, functions, names, objects; wrappers, frame stacks, and learning in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

from relax_rl import A2C, EnvConfig, check_env, make_envs, train
from relax_rl.backends.frames import FrameStack, stacked_space
from relax_rl.backends.snapshots import ForkableEnv
from relax_rl.commands.main import main
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError
from relax_rl.runs.evaluation import evaluate
from relax_rl.runs.training import resume_config
from tests.fakes import DictEnv, GoldenEnv, TargetEnv, TupleEnv
from tests.old_artefacts import blank_figures

HERE = "tests.test_env_own"
TINY = ["--hidden", "4", "--num-envs", "2", "--num-steps", "10", "--no-tensorboard", "--quiet", "--estimator", "a2c"]
LOOP = ((4, "terminated"),)


class Loop(GoldenEnv):
    """Episodes of `length` steps, rewards as in golden ones."""

    def __init__(self, length: int = 4) -> None:
        super().__init__(cycle=((length, "terminated"),))


class Times(gym.RewardWrapper):
    """Rewards times `by`, plus `plus`."""

    def __init__(self, env: gym.Env, by: float = 2.0, plus: float = 0.0) -> None:
        super().__init__(env)
        self.by, self.plus = by, plus

    def reward(self, reward: Any) -> float:
        return float(self.by * reward + self.plus)


class VectorTimes(VectorWrapper):
    def step(self, actions: Any) -> Any:
        obs, reward, *rest = self.env.step(actions)
        return obs, 10 * reward, *rest


class Vector(SyncVectorEnv):
    def __init__(self, num_envs: int, length: int = 4) -> None:
        super().__init__([partial(Loop, length)] * num_envs)


def made(length: int = 4) -> gym.Env:
    return gym.wrappers.TimeLimit(Loop(length), 3)


def target() -> gym.Env:
    return TargetEnv(spaces.Discrete(2))


def no_env(env: gym.Env) -> int:
    return 1


def failing(env: gym.Env) -> gym.Env:
    raise RuntimeError("not today")


def rewards(envs: VectorEnvs, steps: int = 3) -> list[float]:
    return [float(envs.step(np.ones(envs.num_envs, int)).reward[0]) for _ in range(steps)]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_whatever_makes_an_environment(how: Any) -> None:
    for env, name in ((Loop, f"{HERE}:Loop"), (f"{HERE}:Loop", f"{HERE}:Loop"), (partial(Loop, 4), f"{HERE}:Loop")):
        with make_envs(env, num_envs=2, vectorization=how) as envs:
            assert envs.env_id == name and envs.num_envs == 2 and rewards(envs) == [1.0, 11.0, 21.0]
    with make_envs(f"{HERE}:made", num_envs=2, vectorization=how, length=9) as envs:
        rewards(envs)
        assert [episode.length for episode in envs.drain_episodes()] == [3, 3]
    with make_envs(lambda: Loop(1), num_envs=1) as envs:
        rewards(envs, 1)
        assert [episode.length for episode in envs.drain_episodes()] == [1]


def test_a_vector_environment_made_elsewhere() -> None:
    for env, single in (
        (Vector(3), False),
        (gym.make_vec("CartPole-v1", num_envs=3), False),
        (Loop(), True),
        (made(), True),
    ):
        with make_envs(env) as envs:
            assert envs.num_envs == (1 if single else 3)
            rewards(envs)
    with make_envs(f"{HERE}:Vector", num_envs=3, length=2) as envs:
        assert envs.num_envs == 3 and envs.vectorization == "native"
        rewards(envs, 2)
        assert [episode.length for episode in envs.drain_episodes()] == [2, 2, 2]
    with pytest.raises(
        SettingsError, match=r"made already, too late for length, wrappers of single .*, frame_stack; give"
    ):
        make_envs(Vector(2), length=3, wrappers=[Times], frame_stack=2)
    with pytest.raises(SettingsError, match="too late for vectorization, autoreset_mode; give"):
        make_envs(Vector(2), vectorization="sync", autoreset_mode="SAME_STEP")
    with pytest.raises(SettingsError, match="native vector code only, which a wrapper cannot be had with"):
        make_envs(Vector, num_envs=2, wrappers=[Times])


@pytest.mark.parametrize("how", ["sync", "async"])
def test_wrappers_lie_around_one_another(how: Any) -> None:
    given: list[Any] = [partial(Times, by=3), f"{HERE}:Times", "by=1", "plus=5", VectorTimes]
    with make_envs(Loop, num_envs=2, vectorization=how, wrappers=given) as envs:
        assert rewards(envs) == [10 * (3 * raw + 5) for raw in (1.0, 11.0, 21.0)]
    with make_envs("CartPole-v1", num_envs=2, wrappers=[VectorTimes]) as envs:
        assert envs.vectorization == "native" and rewards(envs, 1) == [10.0]
    with make_envs(Loop(), wrappers=[Times, VectorTimes]) as envs:
        assert rewards(envs, 1) == [20.0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["Times"], "expected module:Wrapper"),
        (["by=2"], "expected module:Wrapper"),
        ([f"{HERE}:Times", "=2"], "expected module:Wrapper"),
        ([f"{HERE}:Timer"], "has no 'Timer'; did you mean Times"),
        ([f"{HERE}:LOOP"], "is tuple, expected a class or function"),
        ([no_env], "made int, expected a Env"),
        ([failing], "cannot be put around it: RuntimeError: not today"),
        ([f"{HERE}:Times", "length=2"], "unexpected keyword argument 'length'"),
    ],
)
def test_what_is_no_wrapper(given: list[Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        make_envs(Loop, num_envs=1, wrappers=given)
    with pytest.raises(SettingsError, match="a wrapper needs vectorization 'sync' or 'async', not 'native'"):
        make_envs("CartPole-v1", num_envs=1, wrappers=[Times], vectorization="native")


def test_what_is_no_environment() -> None:
    with pytest.raises(SettingsError, match="the environment is int, expected an id, a class or function"):
        make_envs(3)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="the environment is tuple"):
        make_envs(f"{HERE}:LOOP")
    with pytest.raises(SettingsError, match=r"unknown environment .*expected a Gymnasium id .*module:ClassOrFunction"):
        make_envs(f"{HERE}:Unwritten")
    with pytest.raises(SettingsError, match="does not take these settings"):
        make_envs(Loop, num_envs=1, size=3)


STACKED: list[tuple[spaces.Space, spaces.Space]] = [
    (
        spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), dtype=np.float64),
        spaces.Box(np.array([[-1.0, 0.0]] * 3), np.array([[1.0, 2.0]] * 3), dtype=np.float64),
    ),
    (spaces.Box(-1, 1, (), np.float32), spaces.Box(-1, 1, (3,), np.float32)),
    (spaces.Discrete(4, start=2), spaces.MultiDiscrete([4, 4, 4], start=[2, 2, 2])),
    (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([[2, 3]] * 3)),
    (spaces.MultiBinary(2), spaces.MultiBinary((3, 2))),
]


def test_spaces_are_stacked_leaf_by_leaf() -> None:
    for single, stacked in STACKED:
        assert stacked_space(single, 3) == stacked
    nested = spaces.Dict({"a": spaces.Tuple([single for single, _ in STACKED])})
    assert stacked_space(nested, 3) == spaces.Dict({"a": spaces.Tuple([stacked for _, stacked in STACKED])})
    with pytest.raises(SettingsError, match="frame_stack cannot stack Text"):
        stacked_space(spaces.Text(3), 2)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_newest_frame_is_the_last(mode: AutoresetMode) -> None:
    with make_envs(Loop, num_envs=2, frame_stack=3, autoreset_mode=mode, vectorization="sync", length=3) as envs:
        assert envs.obs[0, :, 2].tolist() == [0, 0, 0]
        steps = [envs.step(np.zeros(2, int)) for _ in range(3)]
        assert [step.next_obs[0, :, 2].tolist() for step in steps] == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]
        if mode is AutoresetMode.NEXT_STEP:
            envs.step(np.zeros(2, int))
        assert envs.obs[0, :, 1:].tolist() == [[1, 0]] * 3  # of the next episode: no frame of the last is left


@pytest.mark.parametrize("env", [DictEnv, TupleEnv])
def test_stacks_of_parts_are_inside_their_space(env: type[GoldenEnv]) -> None:
    stack = FrameStack(env(cycle=((9, "terminated"),)), 2)
    first, _ = stack.reset(seed=0)
    second = stack.step(1)[0]
    assert first in stack.observation_space and second in stack.observation_space
    clock = [obs["inner"]["clock"] if env is DictEnv else obs[1] for obs in (first, second)]
    assert [x.tolist() for x in clock] == ([[1, 1], [1, 2]] if env is DictEnv else [[0, 0], [0, 1]])


def test_blank_frames_stand_before_a_game() -> None:
    stack = FrameStack(Loop(), 3, blank=True)
    assert stack.reset(seed=0)[0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]
    stack = FrameStack(TargetEnv(spaces.Discrete(2)), 3, blank=True)
    assert stack.reset(seed=0)[0].sum(1).tolist() == [0, 0, 1]


@pytest.mark.parametrize("how", ["native", "sync"])
def test_atari_has_one_stack(how: Any) -> None:
    pytest.importorskip("cv2", reason="needs the extra atari-wrappers")
    with make_envs("ALE/Pong-v5", num_envs=1, vectorization=how, frame_stack=2) as envs:
        assert envs.single_observation_space.shape == (2, 84, 84)
    with pytest.raises(SettingsError, match="both frame_stack and stack_num"):
        make_envs("ALE/Pong-v5", num_envs=1, vectorization=how, frame_stack=2, stack_num=3)


@pytest.mark.parametrize("env", [Loop, partial(Vector, 2)])
def test_an_agent_learns_in_what_gymnasium_has(env: Callable[[], Any]) -> None:
    envs = env()
    space, actions = getattr(envs, "single_observation_space", envs.observation_space), spaces.Discrete(2)
    first, second = (A2C(space, actions, hidden=(4,), num_steps=4, seed=3) for _ in range(2))
    first.learn(envs, 40)
    assert first.steps >= 40 and first.episodes > 0
    second.learn(env(), 40)
    for one, other in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach(), other.detach())
    first.learn(envs, 40)  # goes on with what it is given
    scores = evaluate(first, envs, episodes=2, seed=0, deterministic=True)
    assert scores is not None and scores.lengths == (4, 4)


def test_a_forked_environment_has_its_wrappers() -> None:
    fork = ForkableEnv(f"{HERE}:Loop", wrappers=[f"{HERE}:Times", "by=3"], frame_stack=2)
    assert fork.obs.shape == (2, 3) and fork.step(1)[1] == 3.0 * (100 * fork.obs[0, 1] + 1)
    with pytest.raises(SettingsError, match="goes around vectors"):
        ForkableEnv(f"{HERE}:Loop", wrappers=[VectorTimes])


# Runs


def test_wrappers_and_classes_are_named_again(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blank_figures(monkeypatch)
    run = str(tmp_path / "run")
    env, wrapper = ["--env", f"{HERE}:Loop"], ["--wrapper", f"{HERE}:Times", "by=3", "--wrapper", f"{HERE}:VectorTimes"]
    options = [*env, *wrapper, "--frame-stack", "2", "--env-kwargs", "length=5"]
    assert main([*options, "--total-steps", "60", "--run-dir", run, *TINY]) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["env"]
    assert saved["wrapper"] == [f"{HERE}:Times", "by=3", f"{HERE}:VectorTimes"] and saved["frame_stack"] == 2
    again = ["--resume", run, "--total-steps", "90", "--quiet"]
    for command in (again, ["evaluate", run, "--episodes", "1"], ["variance", run]):
        assert "env of this run is" in refused(*command, *wrapper)
        assert f"name it again if you trust it: --wrapper {HERE}:Times by=3" in refused(*command, *env)
    assert "--wrapper" in refused(*again, *env, "--wrapper", f"{HERE}:Times", "by=4")
    assert "but the run was trained in" in refused("evaluate", run, *env, "--wrapper", f"{HERE}:Times")
    with pytest.raises(SettingsError, match="wrapper of this run"):
        train(resume_config(run, total_steps=90, quiet=True, env=f"{HERE}:Loop"))
    assert main([*again, *env, *wrapper]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["env"] == saved
    assert main(["evaluate", run, "--episodes", "1", *env, *wrapper, "--env-kwargs", "length=3"]) == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["lengths"] == [3] and result["returns"][0] % 30 == 0


@pytest.mark.parametrize("texts", [("by=2",), ("Times",), ("a:b", "c")])
def test_a_setting_that_names_no_wrapper(texts: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r"wrapper is .*, expected module:Wrapper, and name=value pairs behind it"):
        EnvConfig(wrapper=texts)


def test_the_checker_takes_classes() -> None:
    lines = check_env(TargetEnv(spaces.Discrete(2)))
    assert check_env(partial(TargetEnv, spaces.Discrete(2))) == lines == check_env(f"{HERE}:target")

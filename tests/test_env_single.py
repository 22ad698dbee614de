"""Environments as third parties write them: text among the observations, infos of any shape, rewards of several numbers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from relax_rl import A2C, ActorCritic, make_envs
from relax_rl.backends.single import SingleEnv, kept_space
from relax_rl.backends.snapshots import ForkableEnv
from relax_rl.cli import main
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError
from tests.fakes import DictEnv, GoldenEnv

NAME = "relax_rl_tests/Odd-v0"
PLACE = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (7, 7, 3), np.uint8)
TINY = ["--hidden", "4", "--num-envs", "2", "--num-steps", "10", "--no-tensorboard", "--quiet", "--estimator", "a2c"]


class Odd(gym.Env):
    """Episodes of twenty steps with reward 1; observations, infos and rewards as told.

    Args:
        obs: "dict" with text and a small image, "tuple" with text in the middle, "text" alone, or "plain".
        infos: an array whose length is drawn in every step.
        reward: of every step.
        fails: raised when it is made.
    """

    action_space = spaces.Discrete(2)

    def __init__(
        self, obs: str = "plain", infos: bool = False, reward: Any = 1.0, fails: Any = None, gap: int = 0
    ) -> None:
        text = spaces.Text(20)
        self.gap, self.infos, self.reward, self.t = gap, infos, reward, 0
        self.observation_space = {
            "plain": PLACE,
            "dict": spaces.Dict({"image": IMAGE, "mission": text, "place": PLACE}),
            "tuple": spaces.Tuple((PLACE, text, spaces.Discrete(3))),
            "text": spaces.Dict({"mission": text}),
        }[obs]
        if fails is not None:
            raise {"assert": AssertionError, "value": ValueError, "emulator": RuntimeError}[fails](
                "Cannot create multiple emulator instances per process, make sure" * (fails == "emulator")
            )

    def see(self) -> Any:
        place = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        parts = {"image": np.full((7, 7, 3), self.t, np.uint8), "mission": "go to the door", "place": place}
        if isinstance(self.observation_space, spaces.Dict):
            return {key: parts[key] for key in self.observation_space.spaces}
        return (place, "go", np.int64(self.t % 3)) if isinstance(self.observation_space, spaces.Tuple) else place

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {"path": np.zeros(self.np_random.integers(1, 9))} if self.infos else {}

    def step(self, action: Any) -> Any:
        self.t += 1
        info = {"path": np.zeros(self.np_random.integers(1, 9)), "lives": 3} if self.infos else {}
        if self.infos and action == 0:
            info |= {"action_mask": np.ones(2, np.int8), "episode": {"r": 1.0, "path": np.zeros(self.t)}}
        return self.see(), self.reward, False, self.t == 20, info


gym.register(NAME, Odd)
gym.register("relax_rl_tests/Dict-v0", DictEnv)


def agent_of(envs: VectorEnvs) -> ActorCritic:
    return A2C(envs.single_observation_space, envs.single_action_space, hidden=(4,))


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.filterwarnings("ignore:.*goes to an MLP")
def test_text_is_left_out_with_a_word(how: Any) -> None:
    with pytest.warns(UserWarning, match="left out of the observations, as no network here reads them: mission$"):
        envs = make_envs(NAME, num_envs=2, vectorization=how, obs="dict")
    with envs:
        assert envs.single_observation_space == spaces.Dict({"image": IMAGE, "place": PLACE})
        agent = agent_of(envs).learn(envs, 60)
    raw, _ = Odd(obs="dict").reset(seed=0)
    assert "mission" in raw
    action, _ = agent.predict(raw, deterministic=True)
    lean = {key: raw[key] for key in ("image", "place")}
    assert action.shape == () and action == agent.predict(lean, deterministic=True)[0]


def test_leaves_are_left_out_by_name() -> None:
    with make_envs("relax_rl_tests/Dict-v0", num_envs=2, drop_keys=["camera", "inner.clock"]) as envs:
        left = envs.single_observation_space
        assert isinstance(left, spaces.Dict) and set(left.spaces) == {"inner", "place"}
        assert envs.obs["inner"].keys() == {"lights"} and envs.obs["place"].shape == (2, 3)
    with pytest.raises(SettingsError, match=r"names 'nothing', but .* have camera, inner, inner.clock, inner.lights"):
        make_envs("relax_rl_tests/Dict-v0", num_envs=2, drop_keys=["nothing"])
    with pytest.raises(SettingsError, match="needs vectorization 'sync' or 'async', not 'native'"):
        make_envs("CartPole-v1", num_envs=2, vectorization="native", drop_keys=["x"])


def test_a_space_that_keeps_all_its_leaves_is_the_same() -> None:
    for env in (DictEnv(), GoldenEnv()):
        assert SingleEnv(env).observation_space is env.observation_space
    with pytest.raises(SettingsError, match="one leaf without a name"):
        kept_space(PLACE, ["mission"], "it")


@pytest.mark.filterwarnings("ignore:.*left out of the observations")
def test_parts_of_a_tuple_keep_their_places() -> None:
    with make_envs(NAME, num_envs=2, obs="tuple") as envs:
        left = envs.single_observation_space
        assert isinstance(left, spaces.Dict) and list(left.spaces) == ["0", "2"]
        agent = agent_of(envs).learn(envs, 60)
    raw, _ = Odd(obs="tuple").reset(seed=0)
    assert agent.predict(raw)[0].shape == ()
    batch = agent.observations.encode(agent.observations.as_batch(raw)[0])
    np.testing.assert_array_equal(batch, [[*raw[0], 1, 0, 0]])


@pytest.mark.parametrize("how", ["sync", "async"])
def test_text_alone_is_refused(how: Any) -> None:
    with pytest.raises(SettingsError, match=r"nothing of the observations .* is left; expected Box, Discrete"):
        make_envs(NAME, num_envs=1, vectorization=how, obs="text")


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("how", ["sync", "async"])
def test_infos_whose_shape_varies_do_no_harm(how: Any, mode: AutoresetMode) -> None:
    if how == "async" and mode is AutoresetMode.DISABLED:
        mode = AutoresetMode.SAME_STEP
    with make_envs(NAME, num_envs=3, vectorization=how, autoreset_mode=mode, infos=True) as envs:
        for _ in range(25):
            envs.step(np.ones(3, int))
        *_, infos = envs.vector_env.step(np.zeros(3, int))
    assert "path" not in infos and infos["lives"].tolist() == [3, 3, 3]
    assert infos["action_mask"].shape == (3, 2) and set(infos["episode"]) == {"r", "_r"}


@pytest.mark.parametrize("how", ["sync", "async"])
def test_rewards_of_several_numbers_are_refused(how: Any) -> None:
    envs = make_envs(NAME, num_envs=2, vectorization=how, reward=np.array([1.0, 2.0]))
    with envs, pytest.raises(SettingsError, match=r"rewards of shape \(2,\), expected one number; .*LinearReward"):
        envs.step(np.zeros(2, int))


class LastOfTwo(Odd):
    """Rewards of two numbers where episodes end."""

    def step(self, action: Any) -> Any:
        obs, reward, *ends, info = super().step(action)
        return obs, np.ones(2) if any(ends) else reward, *ends, info


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_so_are_those_at_the_end_of_an_episode(mode: AutoresetMode) -> None:
    with (
        make_envs(LastOfTwo, num_envs=2, vectorization="sync", autoreset_mode=mode) as envs,
        pytest.raises(SettingsError, match="LinearReward"),
    ):
        for _ in range(20):
            envs.step(np.zeros(2, int))


def test_so_are_those_of_vector_code() -> None:
    class Several(gym.vector.VectorWrapper):
        def step(self, actions: Any) -> Any:
            obs, rewards, *rest = self.env.step(actions)
            return obs, np.stack([rewards, rewards], 1), *rest

    with (
        VectorEnvs(Several(gym.make_vec("CartPole-v1", 2))) as envs,
        pytest.raises(SettingsError, match="LinearReward"),
    ):
        envs.step(np.zeros(2, int))


def test_a_reward_may_be_an_array_of_one_number() -> None:
    with make_envs(NAME, num_envs=2, reward=np.array([0.5])) as envs:
        np.testing.assert_array_equal(envs.step(np.zeros(2, int)).reward, [0.5, 0.5])


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"wings": 2}, "does not take these settings.*wings"),
        ({"fails": "assert"}, "Odd-v0 cannot be made: AssertionError"),
        ({"fails": "value"}, "Odd-v0 cannot be made: ValueError"),
        ({"fails": "emulator"}, "multiple emulator instances per process.*; use vectorization 'async'"),
    ],
)
def test_whatever_goes_wrong_in_the_making_is_one_line(settings: dict[str, Any], told: str, how: Any) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        make_envs(NAME, num_envs=1, vectorization=how, **settings)
    assert "\n" not in str(caught.value)


def test_settings_come_one_by_one_or_as_a_dictionary() -> None:
    for given in ({"gap": 3}, {"env_kwargs": {"gap": 3}}, {"env_kwargs": {"gap": 4}, "gap": 3}):
        with make_envs(NAME, num_envs=2, **given) as envs:
            assert envs.vector_env.get_attr("gap") == (3, 3)
    fork = ForkableEnv(NAME, env_kwargs={"gap": 3, "obs": "dict"}, drop_keys=["image"])
    assert fork._env.unwrapped.gap == 3 and fork.reset(0).keys() == {"place"}  # type: ignore[attr-defined]


def test_settings_and_leaves_left_out_belong_to_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("relax_rl.runs.plotting.plot_curves", lambda *_, **__: None)
    made: list[Odd] = []
    whole = Odd.__init__
    monkeypatch.setattr(Odd, "__init__", lambda self, **given: made.append(self) or whole(self, **given))
    given = ["--env-kwargs", "obs=dict", "gap=7", "--drop-keys", "image", "--total-steps", "40"]
    assert main(["--env", NAME, "--run-dir", "run", *TINY, *given]) == 0
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and "mission" in told
    env = json.loads(Path("run/config.json").read_text())["env"]
    assert env["env_kwargs"] == {"obs": "dict", "gap": 7} and env["drop_keys"] == ["image"]
    assert main(["--resume", "run", "--total-steps", "80", "--quiet"]) == 0
    assert main(["evaluate", "run", "--episodes", "1"]) == 0
    assert {env.gap for env in made} == {7} and len(made) > 4
    assert main(["--resume", "run", "--total-steps", "120", "--env-kwargs", '{"obs": "dict"}']) == 2
    assert "--env-kwargs is {'obs': 'dict'}, but the run to resume has" in capsys.readouterr().err


@pytest.mark.parametrize("home", ["late_module", "late_package.gym"])
def test_modules_may_register_by_a_function(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = home.removesuffix(".gym"), NAME.replace("Odd", home.replace(".", "_"))
    code = f"""
        import gymnasium
        def register_envs():
            gymnasium.register("{name}", "tests.test_env_single:Odd")
    """
    if home != module:
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").touch()
    (tmp_path / f"{home.replace('.', '/')}.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            make_envs(f"{module}:{name}", num_envs=1).close()


def test_a_module_that_fails_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_module.py").write_text("raise ValueError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=r".failing_module. cannot be imported .ValueError: no licence"):
        make_envs("failing_module:Env-v0")

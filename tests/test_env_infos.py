"""What infos tell: success and numbers, over an episode, and on their way to callbacks, tables and displays."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from relax_rl import A2C, EnvConfig, RunConfig, TrainConfig, make_envs, train
from relax_rl.agents import UpdateInfo
from relax_rl.agents.statistics import episodes_of_all
from relax_rl.backends.infos import InfoTerms, followed, info_means, number
from relax_rl.cli import main
from relax_rl.compute import distributed
from relax_rl.envs import Episode, VectorEnvs
from relax_rl.errors import SettingsError
from relax_rl.runs.agent import AgentRun
from relax_rl.runs.displays import describe_return
from relax_rl.runs.loggers import CsvLogger, read_csv, truncate_csv
from relax_rl.runs.training import resume_config
from tests.fakes import GoldenEnv, vector_of
from tests.old_artefacts import blank_figures
from tests.workers import run_workers

HERE = "tests.test_env_infos"


class Telling(gym.Env):
    """Episodes of `length` steps; tells `done` t of every step, and success at the end, of every other episode."""

    observation_space = spaces.Box(0, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 4, flag: str = "is_success") -> None:
        self.length, self.flag, self.t, self.episode = length, flag, 0, -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return np.zeros(1, np.float32), {"done": 1000.0}

    def step(self, action: Any) -> Any:
        self.t += 1
        over = self.t == self.length
        info: dict[str, Any] = {
            "done": self.t,
            "seldom" if self.t == 2 else "name": np.float32(7),
            "path": np.zeros(self.t),
        }
        if over:
            info[self.flag] = np.bool_(self.episode % 2)
        return np.full(1, self.t, np.float32), 1.0, over, False, info


class Numbered(Telling):
    """Names some of its infos by what is no text."""

    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        return *rest, {**info, 0: 1.0, ("a", 1): 2.0}


def test_only_infos_that_are_named_by_texts_are_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert followed(["all"], {0: 1.0, "near": 2.0, ("a",): 3.0}) == ["near"]  # type: ignore[dict-item]
    assert main(["check", "--env", f"{HERE}:Numbered", "--steps", "50"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "(--info-keys); others path, 0, ('a', 1)" in told
    settings = {"run_dir": str(tmp_path / "run"), "total_steps": 50, "quiet": True, "tensorboard": False}
    env = EnvConfig(env=f"{HERE}:Numbered", num_envs=2, info_keys=("all",))
    train(TrainConfig(env=env, run=RunConfig(**settings)))  # type: ignore[arg-type]
    assert "info/done" in read_csv(tmp_path / "run" / "progress.csv")


def episodes(envs: VectorEnvs, count: int) -> list[Episode]:
    found: list[Episode] = []
    while len(found) < count:
        envs.step(np.zeros(envs.num_envs, int))
        found += envs.drain_episodes()
    return found


@pytest.mark.parametrize("flag", ["is_success", "success"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("how", ["sync", "async"])
def test_terms_are_those_of_the_episode(how: Any, mode: AutoresetMode, flag: str) -> None:
    if how == "async" and (mode is AutoresetMode.DISABLED or flag == "success"):
        pytest.skip("one of each will do")
    given: dict[str, Any] = {"vectorization": how, "autoreset_mode": mode, "flag": flag}
    with make_envs(Telling, num_envs=2, info_keys=["done", "seldom"], **given) as envs:
        found = episodes(envs, 6)
    assert [episode.info["success"] for episode in found] == [0, 0, 1, 1, 0, 0]
    assert all(episode.info["done"] == 2.5 and episode.info["seldom"] == 7 for episode in found)
    assert all(set(episode.info) == {"success", "done", "seldom"} for episode in found)


def test_success_alone_is_followed_unasked_and_all_numbers_if_asked() -> None:
    with make_envs(Telling, num_envs=1) as envs:
        assert [episode.info for episode in episodes(envs, 2)] == [{"success": 0.0}, {"success": 1.0}]
    with make_envs(Telling, num_envs=1, info_keys=["all"]) as envs:
        assert episodes(envs, 1)[0].info == {"success": 0.0, "done": 2.5, "seldom": 7.0, "name": 7.0}
    with make_envs("CartPole-v1", num_envs=2) as envs:
        assert episodes(envs, 2)[0].info == {}


def test_a_vector_environment_made_elsewhere_tells_too() -> None:
    with make_envs(SyncVectorEnv([Telling, Telling]), info_keys=["done"]) as envs:
        assert episodes(envs, 2)[1].info == {"success": 0.0, "done": 2.5}


def test_infos_of_vector_code() -> None:
    """Arrays without masks, of objects, of more than a number each; rows that are no steps; numbers that are none."""
    terms, every = InfoTerms(3, ["x", "y", "z", "w"]), np.ones(3, bool)
    infos = {"x": np.array([1, 2, np.nan]), "y": np.array([True, None, 2.0], object), "z": np.ones((3, 2))}
    terms.add({**infos, "w": {"v": np.ones(3)}}, every, ~every)
    terms.add({"x": np.full(3, 5.0), "_x": np.array([True, True, False])}, np.array([True, False, True]), ~every)
    with pytest.warns(UserWarning, match="info_keys names '[wz]', which no info of the first episode") as said:
        assert terms.of(0) == {"x": 3.0, "y": 1.0}
    assert len(said) == 2 and terms.of(1) == {"x": 2.0} and terms.of(2) == {"y": 2.0} and terms.of(0) == {}
    terms.add(infos, every, ~every)
    terms.clear()
    assert terms.of(0) == {}


def test_no_more_terms_than_a_table_takes() -> None:
    terms, every = InfoTerms(1, ["all"]), np.ones(1, bool)
    terms.add({f"x{i}": np.ones(1) for i in range(100)}, every, every)
    assert len(terms.of(0)) == 64
    assert followed(["all"], {"a, b": 1, "_x": 1, "lives": 1, "is_success": 1, "x.y": 1}) == ["x.y"]
    with pytest.raises(SettingsError, match="info_keys names 'a,b', expected letters"):
        make_envs(Telling, info_keys=["a,b"])
    with pytest.raises(SettingsError, match="EnvPool tells nothing in its infos"):
        make_envs("CartPole-v1", vectorization="envpool", info_keys=["x"])


def test_numbers() -> None:
    known = (True, 2, 2.5, np.float32(1), np.int64(3), np.bool_(False), np.array(4))
    assert [number(x) for x in known] == [1, 2, 2.5, 1, 3, 0, 4]
    assert [number(x) for x in ("1", None, np.ones(1), [1], 10**400, 1j)] == [None] * 6


def test_means_over_episodes() -> None:
    infos = [{"success": 1.0, "x": 3.0}, {"success": 0.0}, {"x": 4.0}]
    assert info_means(infos) == {"info/success_rate": 0.5, "info/x": 3.5} and info_means([]) == {}


def test_callbacks_hear_what_infos_tell() -> None:
    heard: list[UpdateInfo] = []
    with make_envs(Telling, num_envs=2, info_keys=["done"]) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, hidden=(4,), num_steps=5)
        agent.learn(envs, 80, lambda agent, info: heard.append(info) or True)
    assert "info/done" not in {**heard[0].metrics} or heard[0].episodes
    assert heard[-1].metrics["info/done"] == 2.5 and heard[-1].metrics["return_mean"] == 4.0
    told = [episode.info["success"] for info in heard for episode in info.episodes]
    assert heard[-1].metrics["info/success_rate"] == sum(told) / len(told)


def test_a_run_logs_evaluates_and_resumes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first row is written before any episode ends; the column comes with the first that tells."""
    blank_figures(monkeypatch)
    path = tmp_path / "run"
    env = EnvConfig(env=f"{HERE}:Telling", env_kwargs={"length": 30}, info_keys=("done",), num_envs=2)
    run = RunConfig(run_dir=str(path), total_steps=240, estimator="a2c", log_interval=20, quiet=True, tensorboard=False)
    first = train(TrainConfig(run=run, env=env))
    rows = list(csv.DictReader((path / "progress.csv").read_text().splitlines()))
    columns = list(rows[0])
    assert columns[:6] == ["step", "episodes", "return_mean", "seconds", "steps_per_second", "length_mean"]
    assert columns[-2:] == ["info/success_rate", "info/done"] and rows[0]["info/done"] == ""
    assert rows[-1]["info/done"] == "15.5" and rows[-1]["info/success_rate"] == "0.5"
    changes = {"env": env.env, "total_steps": first.steps + 200, "eval_interval": 100, "eval_episodes": 2}
    train(resume_config(path, quiet=True, **changes))
    rows = list(csv.DictReader((path / "progress.csv").read_text().splitlines()))
    assert list(rows[0]) == columns and rows[-1]["info/done"] == "15.5"
    evaluations = list(csv.DictReader((path / "evaluation.csv").read_text().splitlines()))
    assert evaluations[-1]["info/done"] == "15.5"
    assert main(["evaluate", str(path), "--episodes", "4", "--env", env.env]) == 0
    assert "  success     100.0%\n  info/done  15.5\n" in capsys.readouterr().out
    result = json.loads((path / "evaluation.json").read_text())
    assert result["info/success_rate"] == 1.0 and result["info/done"] == 15.5


def test_what_a_run_remembers(tmp_path: Path) -> None:
    golden = GoldenEnv()
    agent = A2C(golden.observation_space, golden.action_space, hidden=(4,))
    run, again, plain = AgentRun(agent), AgentRun(agent), AgentRun(agent)
    plain.add([Episode(1.0, 2)])
    assert "infos" not in plain.state()[1]["run"] and plain.status == 1.0
    run.add([Episode(1.0, 2, {"success": 1.0}), Episode(3.0, 4, {"success": 0.0, "x": 5.0})])
    again.load({}, json.loads(json.dumps(run.state()[1])))
    assert again.info_means() == run.info_means() == {"info/success_rate": 0.5, "info/x": 5.0}
    assert again.status == (2.0, 0.5) and describe_return(again.status) == "return 2.00, success 50%"
    assert describe_return(2.0) == "mean return 2.00"


def test_workers_know_the_infos_of_all() -> None:
    """By rank, exact to the bit, and without a word where no info says anything."""
    theirs = (Episode(3.0, 1, {"success": 0.0, "näher": 1 / 3}), Episode(4.0, 2))
    own = (Episode(5.0, 3, {"success": 1.0}),)

    class Two:
        count = 2

        def __init__(self, rank: int) -> None:
            self.rank, self.sent = rank, list[np.ndarray]()

        def gather(self, table: np.ndarray) -> np.ndarray:
            self.sent.append(table)
            return np.stack([others[len(self.sent) - 1], table])

    text = json.dumps(dict(theirs[0].info)).encode()
    of_other = np.array([3.0, 1.0, len(text), 4.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    others = [of_other, np.frombuffer(text, np.uint8).astype(float)]
    assert episodes_of_all(Two(1), own, 3) == (*theirs, *own)  # type: ignore[arg-type]
    others = [np.array([3.0, 1.0, 0.0])]
    silent = Two(1)
    found = episodes_of_all(silent, (Episode(1.0, 2),), 1)  # type: ignore[arg-type]
    assert found == (Episode(3.0, 1), Episode(1.0, 2)) and len(silent.sent) == 1


def infos_by_rank(rank: int) -> tuple[list[dict[str, float]], float]:
    with distributed.joined(timeout=60.0) as workers:
        agent = A2C(GoldenEnv().observation_space, GoldenEnv().action_space, hidden=(4,), num_steps=8)
        agent.join(workers)
        heard: list[dict[str, float]] = []
        means = []

        def listen(_: Any, info: Any) -> None:
            heard.extend(dict(episode.info) for episode in info.episodes)
            means.append(info.metrics.get("info/rank", math.nan))

        with VectorEnvs(vector_of([lambda: Ranked(rank)], AutoresetMode.NEXT_STEP), info_keys=("rank",)) as envs:
            agent.learn(envs, 200, [listen])
    return heard, means[-1]


class Ranked(GoldenEnv):
    """Tells the rank of its process."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rank = rank

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, "rank": float(self.rank)}


def test_workers_agree_on_the_means_over_all_episodes() -> None:
    (first, (heard, mean)), (second, (other, other_mean)) = run_workers(2, infos_by_rank)
    assert first == second == "done" and heard == other and mean == other_mean
    assert {terms["rank"] for terms in heard} == {0.0, 1.0} and 0.0 < mean < 1.0


def test_late_columns_stand_behind_the_others(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    logger = CsvLogger(path, ("step",))
    logger.log({"step": 1, "x": 2.0})
    logger.log({"step": 2, "x": 3.0, "y": 4.0, "info/b": 1.0})
    logger.log({"step": 3, "info/a": 0.5})
    logger.close()
    assert path.read_text() == "step,x,info/b,info/a\n1,2,,\n2,3,1,\n3,,,0.5\n"
    truncate_csv(path, 2)
    assert read_csv(path)["step"] == [1, 2]

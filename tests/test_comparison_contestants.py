"""Contestants and settings from the command line, and the peers' published settings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from relax_rl.agents import AGENTS
from relax_rl.commands.train import train_config as _train_config
from relax_rl.comparison import peers
from relax_rl.comparison.config import CompareConfig, check_resumable, own_code, read_settings, write_settings
from relax_rl.comparison.contestants import (
    Contestant,
    parse_settings,
    read_contestant,
    read_contestants,
    safe_name,
)
from relax_rl.comparison.frozen_variance import measurement
from relax_rl.comparison.peers import planned_steps, published, read_published, with_overrides
from relax_rl.comparison.plan import Folder, check_contestants, make_environments, options, own_config, run_task
from relax_rl.errors import CheckpointError, RelaxRLError, SettingsError
from relax_rl.runs import RunFolder, write_config
from relax_rl.settings.presets import preset_config


def test_a_bare_estimator():
    contestant = read_contestant("relax")
    assert (contestant.label, contestant.kind, contestant.settings, contestant.peer) == ("relax", "relax", {}, False)


@pytest.mark.parametrize(
    ("text", "label", "settings"),
    [
        ("examples.your_own:HALF_WAY", None, {}),
        ("half=examples.your_own:HALF_WAY", "half", {}),
        ("half=examples.your_own:HALF_WAY:gamma=0.9,hidden=8", "half", {"gamma": 0.9, "hidden": (8,)}),
    ],
)
def test_an_estimator_of_ones_own(text, label, settings):
    contestant = read_contestant(text)
    assert contestant == Contestant(label or text, "examples.your_own:HALF_WAY", settings, frozenset(settings))
    config = CompareConfig(env=("CartPole-v1",), estimators=("a2c", text))
    assert own_code(config) == {"estimators": config.estimators}, "code that only a file names is not imported"
    (env,), spaces = make_environments(config)
    with mock.patch.dict(AGENTS):
        check_contestants([contestant], [env], spaces)
    task = run_task(config, env, contestant, 0, "runs/x", name="x")
    for command in (task.begin, task.resume):
        assert command.count("--estimator=examples.your_own:HALF_WAY") == 1


def test_settings_and_labels():
    contestant = read_contestant("best=relax:surrogate_steps=4,policy-lr=1e-3,hidden=64x32,normalize_obs=false")
    assert (contestant.label, contestant.kind) == ("best", "relax")
    assert contestant.settings == {
        "surrogate_steps": 4,
        "policy_lr": 1e-3,
        "hidden": (64, 32),
        "normalize_obs": False,
    }
    assert contestant.pinned == set(contestant.settings)
    plain = read_contestant("relax:gamma=0.9")
    assert plain.label == "relax:gamma=0.9" and safe_name(plain.label) == "relax-gamma-0.9"


def test_a_contestants_own_settings_win_over_the_common_ones():
    first, second, peer = read_contestants(["relax", "a2c:gamma=0.9"], ["sb3-ppo"], ["gamma=0.98", "num_envs=4"])
    assert first.settings == {"gamma": 0.98, "num_envs": 4}
    assert second.settings == {"gamma": 0.9, "num_envs": 4}
    assert peer.settings == {} and peer.peer and peer.kind == "sb3-ppo"


def test_settings_that_go_together_may_be_given_apart():
    (found,) = read_contestants(["relax:epochs=4"], [], ["clip_range=0.2"])
    assert found.settings == {"epochs": 4, "clip_range": 0.2}
    given = CompareConfig(env=("CartPole-v1",), estimators=("relax:epochs=4",), set=("epochs=4", "clip_range=0.2"))
    assert own_code(given) == {}
    assert own_code(CompareConfig(set=('env_kwargs={"a": 1, "b": 2}',))) == {}


def test_loggers_of_ones_own_are_code_to_be_named_again():
    config = CompareConfig(env=("CartPole-v1",), estimators=("relax", "a2c:logger=mine:Log"), set=("logger=evil:Log",))
    assert own_code(config) == {"estimators": config.estimators, "set": config.set}
    (env,), _ = make_environments(config)
    for contestant, logger in zip(
        read_contestants(config.estimators, [], config.set), ("evil:Log", "mine:Log"), strict=True
    ):
        task = run_task(config, env, contestant, 0, "runs/x", name="x")
        assert (
            " ".join(task.begin).count(f"--logger {logger}") == " ".join(task.resume).count(f"--logger {logger}") == 1
        )


def test_values_have_the_type_of_their_setting():
    assert parse_settings(["max_grad_norm=inf"])["max_grad_norm"] == math.inf
    assert parse_settings(["activation=silu", "num_steps=8"]) == {"activation": "silu", "num_steps": 8}
    assert parse_settings(["preset=none"]) == {"preset": "none"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("relaks", "unknown estimator 'relaks', expected one of auto, relax, .*; did you mean relax"),
        ("relax:policy_rl=1", "unknown setting 'policy_rl'; did you mean policy_lr"),
        ("relax:learning_rate=1", "unknown setting 'learning_rate'; did you mean policy_lr"),
        ("relax:policy_lr=fast", "policy_lr is 'fast', expected a number"),
        ("relax:policy_lr=-1", "policy_lr is -1.0, expected above 0"),
        ("relax:num_steps=1.5", "num_steps is '1.5', expected a whole number"),
        ("relax:activation=sine", "activation is 'sine', expected one of tanh, relu"),
        ("relax:normalize_obs=1", "normalize_obs is '1', expected true or false"),
        ("relax:hidden=wide", "hidden is 'wide', expected widths such as 64x64"),
        ("relax:seed=3", "seed cannot be set for a contestant; use --seeds"),
        ("relax:total_steps=3", "use --total-steps"),
        ("relax:", "setting '' is not of the form name=value"),
        ("=relax", "not of the form"),
        ("=mine:GRAD", "not of the form"),
        ("mine/own.py:GRAD", "unknown estimator 'mine/own.py', .* of your own; did you mean mine.own:GRAD?"),
        ("mine:GRAD:", "setting '' is not of the form name=value"),
        ("best=relax:policy_rl=1", "contestant 'best': unknown setting 'policy_rl'"),
        ("mine:GRAD:policy_rl=1", "unknown setting 'policy_rl'; did you mean policy_lr"),
    ],
)
def test_mistakes_are_told_in_one_line(text, expected):
    with pytest.raises(SettingsError, match=expected) as told:
        read_contestant(text)
    assert "\n" not in str(told.value)


def test_labels_must_differ():
    with pytest.raises(SettingsError, match="two contestants are called 'relax'"):
        read_contestants(["relax", "relax"], [], [])
    with pytest.raises(SettingsError, match="two contestants are called 'é'"):
        read_contestants(["é=relax", "é=a2c"], [], [])


def test_what_differs_has_files_of_its_own(tmp_path):
    texts = ["bins-7-a2c=a2c", "a2c", "é=a2c", "ü=relax", "relax:gamma=0.9", "relax-gamma-0.9=a2c"]
    environments = ("Pendulum-v1", "Pendulum-v1,bins=7", "Pendulum-v1-bins-7")
    contestants = read_contestants(texts, [], [])
    folder = Folder.holding(tmp_path, environments, contestants)
    every = [(env, contestant) for env in environments for contestant in contestants]
    runs = [folder.run(*pair, seed).name for pair in every for seed in (0, 1)]
    assert len(set(runs)) == len(runs) and len({folder.tuning(*pair) for pair in every}) == len(every)
    assert len({folder.tuning("together", contestant) for contestant in contestants}) == len(contestants)
    assert len({folder.figure(env, "curves") for env in environments}) == 3
    assert len({folder.variance(env, "early") for env in environments}) == 3
    # The first has the name that it has alone, and always had.
    plain = ["Pendulum-v1-bins-7-a2c-s0", "Pendulum-v1-a2c-s0", "Pendulum-v1---s0", "Pendulum-v1-relax-gamma-0.9-s0"]
    assert [runs[at] for at in (0, 2, 4, 8)] == plain
    again = Folder.holding(tmp_path / "moved", environments, contestants)
    assert [again.run(*pair, 0).name for pair in every] == runs[::2]


def test_names_that_no_file_can_have_are_cut(tmp_path):
    long = [f"relax:policy_lr=0.001,hidden=64x64,{'gamma=0.99,' * 40}gae_lambda=0.{k}" for k in range(2)]
    names = [Folder(tmp_path).run("CartPole-v1", read_contestant(text), 10**6).name for text in long]
    assert len(set(names)) == 2
    for name in names:
        assert len(name) < 110 and name.startswith("CartPole-v1-relax-policy_lr-0.001-hidden-64x64-gamma")
        (tmp_path / f"{name}.log").touch()
    fits = f"a2c:{'x' * 180}"
    assert safe_name(fits) == f"a2c-{'x' * 180}" and len(safe_name("E" * 150, fits)) < 100


def test_options_are_kept_and_read_back(tmp_path):
    config = CompareConfig(env=("CartPole-v1", "Acrobot-v1"), estimators=("relax",), seeds=3, set=("gamma=0.9",))
    write_settings(tmp_path / "settings.json", config, "compare")
    assert read_settings(tmp_path / "settings.json") == config


def test_a_folder_without_a_comparison(tmp_path):
    with pytest.raises(CheckpointError, match="holds no comparison"):
        read_settings(tmp_path / "settings.json")
    for text in ("{", "[]", '{"options": {"seeds": 0}}', '{"options": {"seeds": "x"}}'):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(CheckpointError, match="damaged"):
            read_settings(tmp_path / "settings.json")
    (tmp_path / "settings.json").write_text('{"options": {"sedes": 1}}')
    with pytest.raises(CheckpointError, match="unknown setting 'sedes'"):
        read_settings(tmp_path / "settings.json")


def test_what_may_change_when_a_comparison_goes_on():
    saved = CompareConfig(seeds=3)
    check_resumable(saved, CompareConfig(seeds=5, num_workers=3, threshold=("100",), quiet=True))
    with pytest.raises(SettingsError, match=r"estimators is \('lax',\), but the comparison to go on with has"):
        check_resumable(saved, CompareConfig(seeds=3, estimators=("lax",)))
    with pytest.raises(SettingsError, match="threshold"):
        check_resumable(CompareConfig(stop_when_solved=True), CompareConfig(stop_when_solved=True, threshold=("1",)))


@pytest.mark.parametrize("options", [{"seeds": 0}, {"tune": -1}, {"env": ("A", "A")}, {"estimators": ()}])
def test_options_that_cannot_work(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        CompareConfig(**options)


WANTED = [
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "Pendulum-v1",
    "LunarLander-v3",
    "LunarLanderContinuous-v3",
    "BipedalWalker-v3",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Swimmer-v5",
    "Ant-v5",
    "Humanoid-v5",
    "Reacher-v5",
    "ALE/Pong-v5",
]


DISCRETE = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3", "ALE/Pong-v5")
PAIRS = [(env, algo) for env in WANTED for algo in peers.ALGORITHMS if algo != "sb3-sac" or env not in DISCRETE]


def test_peers_take_arguments_and_a_label() -> None:
    plain, tuned = read_contestants(
        [], ["sb3-ppo", "tuned=sb3-ppo:learning_rate=1e-3,n_steps=256,policy=MlpPolicy"], []
    )
    assert (plain.label, plain.kind, plain.settings, plain.peer) == ("sb3-ppo", "sb3-ppo", {}, True)
    assert (tuned.label, tuned.kind, tuned.peer) == ("tuned", "sb3-ppo", True)
    assert tuned.settings == {"learning_rate": 0.001, "n_steps": 256, "policy": "MlpPolicy"}
    assert tuned.pinned == {"learning_rate", "n_steps", "policy"}, "tuning leaves them alone"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sb3-pqo", "unknown peer 'sb3-pqo', expected one of sb3-a2c, sb3-ppo, sb3-sac; did you mean sb3-ppo"),
        ("=sb3-ppo", "is not of the form \\[LABEL=\\]PEER\\[:name=value,...\\]"),
        ("sb3-ppo:", "is not of the form"),
        ("sb3-ppo:n_steps", "contestant 'sb3-ppo:n_steps': setting 'n_steps' is not of the form name=value"),
        ("mine=sb3-ppo:n_steps=", "contestant 'mine': setting 'n_steps=' is not of the form name=value"),
        ("sb3-ppo:n_steps=8,n_steps=16", "setting 'n_steps=16' is there twice"),
        (
            "sb3-ppo:policy_kwargs={}",
            "policy_kwargs of sb3-ppo is what the comparison gives or the published entry has",
        ),
        ("sb3-ppo:n_envs=4", "n_envs of sb3-ppo is what the comparison gives"),
        ("sb3-ppo:n_step=8", "sb3-ppo has no argument 'n_step'; did you mean n_steps"),
        ("sb3-ppo:n_steps=many", "n_steps of sb3-ppo is 'many', expected a whole number of at least 1"),
        ("sb3-ppo:n_steps=true", "n_steps of sb3-ppo is True, expected a whole number"),
        ("sb3-ppo:n_steps=1.5", "n_steps of sb3-ppo is 1.5, expected a whole number of at least 1"),
        ("sb3-ppo:batch_size=0", "batch_size of sb3-ppo is 0, expected a whole number of at least 1"),
        ("sb3-ppo:gamma=7", "gamma of sb3-ppo is 7, expected a number between 0 and 1"),
        ("sb3-ppo:learning_rate=-1", "learning_rate of sb3-ppo is -1, expected a number of at least 0"),
        ("sb3-ppo:ent_coef=NaN", "ent_coef of sb3-ppo is nan, expected a number of at least 0"),
        ("sb3-ppo:normalize_advantage=1", "normalize_advantage of sb3-ppo is 1, expected true or false"),
        ("sb3-ppo:use_sde=true", "use_sde of sb3-ppo is True, but it explores continuous actions"),
    ],
)
def test_mistakes_in_peers_are_told_before_anything_is_trained(text: str, expected: str) -> None:
    environments, spaces = make_environments(CompareConfig(env=("CartPole-v1",)))
    with pytest.raises(SettingsError, match=expected):
        check_contestants(read_contestants([], [text], []), environments, spaces)


@pytest.mark.parametrize("algo", peers.ALGORITHMS)
def test_published_settings_and_defaults_are_such_as_can_be_given(algo: str) -> None:
    known = peers.parameters_of(algo)
    given = {name: value for name, value in known.items() if type(value) in (bool, int, float)}
    peers.check_arguments(algo, given)
    for peer in peers.read_published():
        if peer.algo == algo:
            peers.check_arguments(algo, {**peer.settings, **peer.linear})


@pytest.mark.parametrize(("env", "algo"), PAIRS)
def test_every_peer_has_a_source_and_takes_its_settings(env, algo):
    peer = published(env, algo)
    assert peer.env == env and peer.algo == algo
    assert "rl-baselines3-zoo/blob/" in peer.source and algo[4:] + ".yml (" in peer.source
    entry = peer.source.rpartition("(")[2].rstrip(")")
    assert (entry in (env, "atari")) == (peer.departure == "none" or entry == "atari"), "a departure is told"
    import inspect

    import stable_baselines3

    known = inspect.signature(getattr(stable_baselines3, peers.ALGORITHMS[algo])).parameters
    assert set(peer.settings) | set(peer.linear) <= set(known)
    assert not set(peer.settings) & set(peer.linear)


def test_peers_are_told_apart_by_environment_and_algorithm():
    keys = [(peer.env, peer.algo) for peer in read_published()]
    assert len(set(keys)) == len(keys)
    assert all(env == "atari" or env in gym.registry for env, _ in keys)


def test_an_environment_without_an_entry():
    peer = published("Taxi-v3", "sb3-ppo")
    assert peer.source == "none" and "defaults" in peer.departure and not peer.settings
    assert (peer.num_envs, published("Pusher-v5", "sb3-sac").num_envs) == (1, 1)


def test_sac_takes_continuous_actions_alone():
    peer = Contestant("sb3-sac", "sb3-sac", peer=True)
    for name in ("CartPole-v1", "Pendulum-v1,bins=3"):
        environments, spaces = make_environments(CompareConfig(env=(name,)))
        with pytest.raises(
            SettingsError, match=r"sb3-sac takes continuous actions \(Box\), not .*; leave it out of --peers"
        ):
            check_contestants([peer], environments, spaces)
    check_contestants([peer], *make_environments(CompareConfig(env=("Pendulum-v1",))))


def test_overrides_keep_schedules():
    peer = with_overrides(published("CartPole-v1", "sb3-ppo"), {"learning_rate": 0.01, "n_epochs": 3})
    assert peer.linear == {"learning_rate": 0.01, "clip_range": 0.2} and peer.settings["n_epochs"] == 3


def test_published_settings_that_cannot_be_read(tmp_path):
    path = tmp_path / "published.json"
    with pytest.raises(RelaxRLError, match=r"published.json cannot be read: No such file .*; install relax_rl anew"):
        read_published(path)
    sources = '{"sources": {"sb3-a2c": "zoo"}, "entries": [{"env": "A", "algo": "sb3-a2c", "entry": "A"'
    for number, text in enumerate(("{", "[]", sources + ', "total_steps": 5, "n_envs": 1}]}', sources + "}]}")):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(RelaxRLError, match="is damaged"):
            read_published(path)


def test_a_contestant_is_a_command():
    config = CompareConfig(env=("CartPole-v1",), total_steps=500, stop_when_solved=True, threshold=("-5",))
    (env,), _ = make_environments(config)
    contestant = read_contestant("relax:hidden=64x32,normalize_obs=false,max_grad_norm=inf,threads=4,device=cuda")
    task = run_task(config, env, contestant, 7, "runs/x", name="x")
    assert task.begin[:2] == ("relax_rl", "train") and task.resume == (
        "relax_rl",
        "train",
        "--quiet",
        "--resume=runs/x",
    )
    given = _train_config([*task.begin[2:]], "train")
    assert (given.run.seed, given.run.total_steps, given.run.stop_at_return) == (7, 500, -5.0)
    assert given.agent.hidden == (64, 32) and given.agent.max_grad_norm == math.inf and not given.agent.normalize_obs
    assert (given.run.threads, task.cpus, task.gpus) == (4, 4, 1) and not given.run.tensorboard
    frozen = _train_config([*run_task(config, env, contestant, 7, "x", name="x", snapshots=True).begin[2:]], "train")
    assert (frozen.run.keep_checkpoints, frozen.run.checkpoint_interval) == (0, 16)
    assert options({"a_b": True, "c": False, "d": (1, 2), "e": -1e-5}) == [
        "--a-b",
        "--no-c",
        "--d",
        "1",
        "2",
        "--e=-1e-05",
    ]


def test_cut_actions_are_another_environment():
    config = CompareConfig(env=("Pendulum-v1", "Pendulum-v1,bins=5"), threshold=("-300", "Pendulum-v1,bins=5=-400"))
    environments, spaces = make_environments(config)
    whole, cut = environments
    assert (whole.id, whole.bins, whole.threshold) == ("Pendulum-v1", 0, -300.0)
    assert (cut.id, cut.bins, cut.threshold, cut.name) == ("Pendulum-v1", 5, -400.0, "Pendulum-v1,bins=5")
    for contestant in (read_contestant("relax"), Contestant("sb3-ppo", "sb3-ppo", peer=True)):
        begin = run_task(config, cut, contestant, 0, "runs/x", name="x").begin
        assert {"--env=Pendulum-v1", "--bins=5", "--run-dir=runs/x"} <= set(begin)
    check_contestants([read_contestant("relax"), read_contestant("auto")], [cut], spaces)
    check_contestants([read_contestant("lax"), read_contestant("relax:bins=3")], [whole], spaces)
    with pytest.raises(
        SettingsError, match=r"contestant 'lax' on Pendulum-v1,bins=5: .* does not fit discrete actions"
    ):
        check_contestants([read_contestant("lax")], environments, spaces)


@pytest.mark.parametrize("env", ["Pendulum-v1,bins=1", "Pendulum-v1,bins=x", "Pendulum-v1,sticky=3", "Pendulum-v1,"])
def test_environments_that_cannot_be_understood(env):
    with pytest.raises(SettingsError, match="expected an id, or ID,bins=N"):
        make_environments(CompareConfig(env=(env,)))


def test_only_continuous_actions_can_be_cut():
    with pytest.raises(SettingsError, match="bins cuts a Box of floats"):
        make_environments(CompareConfig(env=("CartPole-v1,bins=3",)))


def test_a_schedule_ends_where_it_was_published_to_end():
    cartpole = published("CartPole-v1", "sb3-ppo")
    assert planned_steps(cartpole, 500_000) == (cartpole, 100_000)
    peer, steps = planned_steps(cartpole, 30_000)
    assert (
        steps == 30_000 and "30,000 steps instead of 100,000 (its schedules fall to zero over these)" in peer.departure
    )
    peer, steps = planned_steps(published("Hopper-v5", "sb3-ppo"), 2_000_000)
    assert steps == 2_000_000 and peer.departure.startswith("published for version 4 of the environment; 2,000,000")


def test_settings_of_the_environments_reach_every_contestant():
    config = CompareConfig(env=("Pendulum-v1",), env_kwargs={"g": 5.0}, set=("drop_keys=",))
    (env,), _ = make_environments(config)
    own, peer = read_contestant("a2c"), Contestant("sb3-ppo", "sb3-ppo", peer=True)
    for contestant in (own, peer):
        assert '--env-kwargs={"g": 5.0}' in run_task(config, env, contestant, 0, "runs/x", name="x").begin
    given = _train_config([*run_task(config, env, own, 0, "x", name="x").begin[2:]], "train")
    assert given.env.env_kwargs == {"g": 5.0} and own_config(env, own).env.env_kwargs == {"g": 5.0}
    plain = run_task(CompareConfig(), replace(env, kwargs=None), own, 0, "x", name="x")
    assert "--env-kwargs" not in " ".join(plain.begin)
    with pytest.raises(SettingsError, match=r"does not take these settings.*wings"):
        make_environments(CompareConfig(env=("CartPole-v1",), env_kwargs={"wings": 2}))


def test_peers_make_their_environments_with_settings():
    pytest.importorskip("stable_baselines3")
    from relax_rl.comparison.peer_envs import make_peer_envs

    envs = make_peer_envs(published("Pendulum-v1", "sb3-ppo"), 0, 0, {"g": 5.0})
    assert set(envs.get_attr("g")) == {5.0}
    envs.close()


class Parts(gym.Env[Any, Any]):
    """Observations of several parts, one of which is a text."""

    action_space = spaces.Discrete(2)

    def __init__(self, side: int) -> None:
        image = spaces.Box(0, 255, (side, side, 3), np.uint8)
        self.observation_space = spaces.Dict(image=image, place=spaces.Discrete(3), task=spaces.Text(9))

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 1.0, True, False, {}


@pytest.mark.parametrize(("side", "expected"), [(7, 7 * 7 * 3 + 3), (36, None)])
def test_peers_learn_from_the_parts_of_an_observation_that_can_be_read(side: int, expected: int | None) -> None:
    pytest.importorskip("stable_baselines3")
    from relax_rl.comparison.peer_envs import make_peer_envs
    from relax_rl.comparison.peer_training import make_peer

    peer = replace(published(f"{__name__}:Parts", "sb3-ppo"), num_envs=2, settings={"n_steps": 8})
    envs = make_peer_envs(peer, 0, env_kwargs={"side": side})
    space = envs.observation_space
    assert list(space) == ["image", "place"] if expected is None else space.shape == (expected,)
    model = make_peer(peer, envs, 0)
    model.learn(16)
    assert len(model.ep_info_buffer) == 16  # the monitor's words have come through
    envs.close()


def test_peers_find_ids_that_a_package_registers_when_it_is_asked() -> None:
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("minatar")
    from relax_rl.comparison.peer_envs import make_peer_envs

    envs = make_peer_envs(published("minatar:MinAtar/Seaquest-v1", "sb3-ppo"), 0)
    assert envs.observation_space.shape == (10, 10, 10)
    envs.close()


WRAPPED: dict[str, Any] = {"wrapper": ("gymnasium.wrappers:TimeLimit", "max_episode_steps=3"), "frame_stack": 2}


def test_wrappers_and_stacks_go_around_the_environments_of_every_contestant():
    config = CompareConfig(env=("Pendulum-v1,bins=3",), **WRAPPED)
    (env,), spaces = make_environments(config)
    assert spaces[env.name][0].shape == (2, 3)
    assert own_code(config)["wrapper"] == WRAPPED["wrapper"]
    own, peer = read_contestant("a2c"), Contestant("sb3-ppo", "sb3-ppo", peer=True)
    tasks = [run_task(config, env, contestant, 0, "runs/x", name="x") for contestant in (own, peer)]
    for task in tasks:
        words = " ".join(task.begin)
        assert "--wrapper gymnasium.wrappers:TimeLimit max_episode_steps=3" in words and "--frame-stack=2" in words
        assert "--wrapper gymnasium.wrappers:TimeLimit max_episode_steps=3" in " ".join(task.resume)
    given = _train_config([*tasks[0].begin[2:]], "train")
    assert given.env.wrapper == WRAPPED["wrapper"] and given.env.frame_stack == 2
    assert own_config(env, own).env == replace(given.env, num_envs=own_config(env, own).env.num_envs)
    check_contestants([own, peer], [env], spaces)
    refused = {
        "Pendulum-v1": ("gymnasium.wrappers.vector:RecordEpisodeStatistics",),
        "ALE/Pong-v5": WRAPPED["wrapper"],
    }
    for name, wrapper in refused.items():
        with pytest.raises(SettingsError, match=r"goes around .*, which no peer is trained in; leave --peers out"):
            check_contestants([peer], [replace(env, id=name, wrapper=wrapper)], spaces)


def test_peers_learn_in_wrapped_environments():
    pytest.importorskip("stable_baselines3")
    from relax_rl.comparison.peer_envs import make_peer_envs
    from relax_rl.comparison.peer_training import PeerConfig

    peer = replace(published("Pendulum-v1", "sb3-a2c"), num_envs=2, normalize=False)
    envs = make_peer_envs(peer, 0, bins=3, **WRAPPED)
    try:
        assert envs.observation_space.shape == (2, 3) and list(envs.action_space.nvec) == [3]
        envs.reset()
        for _ in range(3):
            _, _, dones, infos = envs.step([[0], [1]])
        assert dones.all() and all(info["episode"]["l"] == 3 for info in infos)  # the monitor sees the wrapper's end
    finally:
        envs.close()
    assert PeerConfig(**WRAPPED).frame_stack == 2


def test_what_only_the_file_of_a_run_names_is_not_measured_in(tmp_path):
    (env,), _ = make_environments(CompareConfig(env=("CartPole-v1",)))
    run, checkpoint = RunFolder(tmp_path / "run"), tmp_path / "step_000000001.safetensors"
    run.create()
    checkpoint.touch()
    write_config(run, preset_config("evil:Env-v0", "evil:GRAD", wrapper=("evil:Wrapper",), networks="evil:nets"), {})
    task = measurement(CompareConfig(), Folder(tmp_path), env, read_contestant("a2c"), "early", run.path, checkpoint)
    assert not any("evil" in word for word in task.begin)
    given = read_contestant("a2c", {"networks": "mine:nets"})
    task = measurement(CompareConfig(), Folder(tmp_path), env, given, "late", run.path, checkpoint)
    assert "--networks=mine:nets" in task.begin and not any("--estimator" in word for word in task.begin)
    given = read_contestant("mine:GRAD")
    task = measurement(CompareConfig(), Folder(tmp_path), env, given, "late", run.path, checkpoint)
    assert "--estimator=mine:GRAD" in task.begin


def test_an_id_without_a_version_is_that_of_its_run(tmp_path, monkeypatch):
    """A run that was begun under the newest version goes on under it, however it is named again."""
    (tmp_path / "versioned.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "for version in (2, 3):\n"
        "    gym.register(f'Versioned-v{version}', CartPoleEnv, max_episode_steps=50)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = CompareConfig(env=("versioned:Versioned",))
    with pytest.warns(UserWarning, match="names no version: versioned:Versioned-v3 is taken"):
        (env,), _ = make_environments(config)
    assert (env.name, env.id) == ("versioned:Versioned", "versioned:Versioned-v3")
    task = run_task(config, env, read_contestant("a2c"), 0, "runs/x", name="x")
    assert {"--env=versioned:Versioned-v3"} <= set(task.begin) & set(task.resume)

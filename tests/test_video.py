"""Videos: an MP4 file of a whole episode, or one line that says what is missing."""

from __future__ import annotations

import os

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from relax_rl.agents import A2C
from relax_rl.envs import VectorEnvs
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs.video import record_video, rendering_env
from relax_rl.settings.config import EnvConfig
from tests.fakes import GoldenEnv

CARTPOLE = EnvConfig(env="CartPole-v1", num_envs=8)


@pytest.fixture
def env():
    pytest.importorskip("moviepy")
    with rendering_env(CARTPOLE, seed=0) as env:
        yield env


@pytest.fixture
def agent(env):
    return A2C(env.single_observation_space, env.single_action_space, seed=0, hidden=(4,))


def test_one_frame_per_step_of_one_episode(env, agent, tmp_path):
    from moviepy import VideoFileClip

    path = tmp_path / "videos" / "a.mp4"
    scores = record_video(agent, env, path, seed=0, deterministic=False)
    with VideoFileClip(str(path)) as clip:
        assert list(clip.size) == [600, 400]
        assert clip.n_frames == scores.lengths[0]
        assert np.ptp(clip.get_frame(0)) > 0
    assert [entry.name for entry in path.parent.iterdir()] == ["a.mp4"]


def test_frames_with_odd_sides_are_cut_to_even_ones(env, agent, tmp_path, monkeypatch):
    from moviepy import VideoFileClip

    monkeypatch.setattr(env, "render", lambda: (np.zeros((101, 151, 3), np.uint8),))
    record_video(agent, env, tmp_path / "a.mp4", seed=0, deterministic=False)
    with VideoFileClip(str(tmp_path / "a.mp4")) as clip:
        assert list(clip.size) == [150, 100]


def test_a_recording_that_fails_leaves_no_file(env, agent, tmp_path, monkeypatch):
    frames = iter([(np.zeros((64, 64, 3), np.uint8),)] * 3)

    def render():
        frame = next(frames, None)
        if frame is None:
            raise OSError(28, "No space left on device")
        return frame

    monkeypatch.setattr(env, "render", render)
    with pytest.raises(RelaxRLError, match="No space left"):
        record_video(agent, env, tmp_path / "a.mp4", seed=0, deterministic=False)
    assert list(tmp_path.iterdir()) == []


def test_what_renders_for_humans_alone_cannot_be_recorded():
    pytest.importorskip("moviepy")
    for modes, told in (
        (["human"], "renders human only, expected rgb_array"),
        ([], "renders nothing, expected rgb_array"),
    ):
        kind = type("ForHumans", (GoldenEnv,), {"metadata": {"render_modes": modes}})
        gym.register("relax_rl_tests/ForHumans-v0", kind)
        with pytest.raises(SettingsError, match=f"{told}; no video can be recorded"):
            rendering_env(EnvConfig(env="relax_rl_tests/ForHumans-v0"), seed=0)
        del gym.registry["relax_rl_tests/ForHumans-v0"]


def test_drawing_that_fails_is_told_in_one_line():
    class Undrawn(GoldenEnv):
        def render(self):
            raise NameError("name 'sns' is not defined\nand so on")

    told = r".* cannot be drawn: NameError: name 'sns' is not defined$"
    with VectorEnvs(SyncVectorEnv([Undrawn])) as envs, pytest.raises(SettingsError, match=told):
        envs.render()


@pytest.mark.parametrize(("screen", "expected"), [(None, "dummy"), (":0", None)])
def test_without_a_screen_none_is_looked_for(screen, expected, monkeypatch):
    pytest.importorskip("moviepy")
    monkeypatch.setattr("os.environ", {} if screen is None else {"DISPLAY": screen})
    monkeypatch.setattr("relax_rl.runs.video.evaluation_envs", lambda *_, **__: None)
    rendering_env(CARTPOLE, seed=0)
    assert os.environ.get("SDL_VIDEODRIVER") == expected

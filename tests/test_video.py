"""Videos: an MP4 file of a whole episode, or one line that says what is missing."""

from __future__ import annotations

import os

import numpy as np
import pytest

from relax_rl.agents import A2C
from relax_rl.errors import RelaxRLError
from relax_rl.runs.video import record_video, rendering_env
from relax_rl.settings.config import EnvConfig

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


@pytest.mark.parametrize(("screen", "expected"), [(None, "dummy"), (":0", None)])
def test_without_a_screen_none_is_looked_for(screen, expected, monkeypatch):
    pytest.importorskip("moviepy")
    monkeypatch.setattr("os.environ", {} if screen is None else {"DISPLAY": screen})
    monkeypatch.setattr("relax_rl.runs.video.evaluation_envs", lambda *_, **__: None)
    rendering_env(CARTPOLE, seed=0)
    assert os.environ.get("SDL_VIDEODRIVER") == expected

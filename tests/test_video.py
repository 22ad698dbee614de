"""Videos: an MP4 file of a whole episode, or one line that says what is missing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from relax_rl.agents import A2C
from relax_rl.commands.main import main
from relax_rl.envs import VectorEnvs
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs.training import train
from relax_rl.runs.video import record_video, rendering_env
from relax_rl.settings.config import EnvConfig
from tests.fakes import GoldenEnv
from tests.steps import small_run

HERE = "tests.test_video"
CARTPOLE = EnvConfig(env="CartPole-v1", num_envs=8)


def picture(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


FRAMES = {
    "right": lambda t: picture(32, 48, 3),
    "small": lambda t: picture(2, 3, 3),
    "transparent": lambda t: picture(32, 48, 4),
    "grey": lambda t: picture(32, 48),
    "fractions": lambda t: picture(32, 48, 3, dtype=np.float32),
    "growing": lambda t: picture(32 + t, 48, 3),
    "dots": lambda t: picture(1, 1, 3),
    "words": lambda t: "a frame",
    "ragged": lambda t: [[1, 2], [3]],
}


class Filmed(GoldenEnv):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, frames="right", fps=30, render_mode=None):
        super().__init__(cycle=[(3, "terminated")])
        self.render_mode, self.frames = render_mode, FRAMES[frames]
        self.metadata = {**self.metadata, "render_fps": fps}

    def render(self):
        return self.frames(self.t)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """The folder of a small run on it."""
    path = tmp_path_factory.mktemp("filmed") / "run"
    train(small_run(path, f"{HERE}:Filmed", total_steps=40))
    return path


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


def film(run, *settings):
    (run / "evaluation.json").unlink(missing_ok=True)
    args = ["--env", f"{HERE}:Filmed", "--episodes", "2", "--video", "--env-kwargs", "frames=right", *settings]
    return main(["evaluate", str(run), *args])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            "frames=transparent",
            "a frame is uint8 [32, 48, 4], expected uint8 [H, W, 3] of at least 2 x 2; mend its render()",
        ),
        ("frames=grey", "a frame is uint8 [32, 48], expected uint8 [H, W, 3]"),
        ("frames=fractions", "a frame is float32 [32, 48, 3], expected uint8 [H, W, 3]"),
        ("frames=growing", "], expected [33, 48, 3] as the first one"),
        ("frames=dots", "a frame is uint8 [1, 1, 3], expected uint8 [H, W, 3] of at least 2 x 2"),
        ("frames=words", "a frame is <U7 [], expected uint8 [H, W, 3]"),
        ("frames=ragged", "cannot be drawn: ValueError: "),
        ("fps=null", "render_fps of its metadata is None, expected a number above 0; mend it there"),
        ("fps=0", "render_fps of its metadata is 0, expected a number above 0"),
        ('fps="30"', "render_fps of its metadata is '30', expected a number above 0"),
    ],
)
def test_frames_that_make_no_video_cost_no_scores(setting, told, filmed, capsys):
    pytest.importorskip("moviepy")
    capsys.readouterr()
    assert film(filmed, setting) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("error: ") and told in line
    kept = json.loads((filmed / "evaluation.json").read_text())
    assert len(kept["returns"]) == 2 and kept["video"] is None
    assert "\nreturn " in out and "  written to  " in out and not list((filmed / "videos").glob("*"))


@pytest.mark.parametrize("settings", [["frames=right"], ["frames=small", "fps=0.5"]])
def test_whatever_is_a_picture_is_recorded(settings, filmed, tmp_path):
    pytest.importorskip("moviepy")
    run = shutil.copytree(filmed, tmp_path / "run")
    assert film(run, *settings) == 0
    kept = json.loads((run / "evaluation.json").read_text())
    assert os.path.getsize(kept["video"]) > 0 and isinstance(kept["video_return"], float)


def test_an_encoder_that_fails_without_a_word_is_told(env, agent, tmp_path, monkeypatch):
    monkeypatch.setattr("relax_rl.runs.video._video_writer", lambda: Failing)
    with pytest.raises(RelaxRLError, match=r"a\.mp4: the encoder failed with exit code 3"):
        record_video(agent, env, tmp_path / "a.mp4", seed=0, deterministic=False)


class Failing:
    def __init__(self, path, size, fps):
        self.proc = SimpleNamespace(returncode=3)
        Path(path).write_bytes(b"half")

    def write_frame(self, frame):
        pass

    def close(self):
        pass


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

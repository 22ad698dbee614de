"""Videos of an agent at play, recorded in a single environment of their own (extra `video`)."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax_rl.compute.installation import install_line
from relax_rl.compute.serialization import replacing, writing
from relax_rl.errors import SettingsError
from relax_rl.runs.evaluation import Scores, evaluate, evaluation_envs
from relax_rl.settings.config import STEP_LIMIT

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic
    from relax_rl.envs import VectorEnvs
    from relax_rl.settings.config import EnvConfig

__all__ = ["record_video", "rendering_env"]

DEFAULT_FPS = 30


def rendering_env(config: EnvConfig, *, seed: int) -> VectorEnvs:
    """A single environment that renders frames; a lost life ends nothing in it.

    Raises:
        SettingsError: the extra `video` is missing, or the environment cannot be made so.
    """
    _video_writer()
    if not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
        os.environ.setdefault(
            "SDL_VIDEODRIVER", "dummy"
        )  # else pygame looks for a screen, and something else complains
    return evaluation_envs(config, episodes=1, seed=seed, vectorization="sync", render_mode="rgb_array")


def record_video(
    agent: ActorCritic, env: VectorEnvs, path: Path, *, seed: int, deterministic: bool, step_limit: int = STEP_LIMIT
) -> Scores:
    """Play one episode and write it as an MP4 file; returns its score.

    Args:
        agent: is not changed.
        env: from `rendering_env`.
        path: the file; its folder is made if need be. It appears when it is complete.
        seed: of the environment and of the agent's actions.
        deterministic: take the mode of the policy instead of a sample.
        step_limit: steps after which the episode is cut off; 0 for none.

    Raises:
        SettingsError: the extra `video` is missing, or the environment renders no frames.
        RelaxRLError: the file cannot be written.
    """
    fps = env.vector_env.metadata.get("render_fps", DEFAULT_FPS)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, suffix=".tmp.mp4") as unfinished, closing(_Recorder(env, unfinished, fps)) as recorder:
            scores = evaluate(
                agent,
                env,
                episodes=1,
                seed=seed,
                deterministic=deterministic,
                step_limit=step_limit,
                after_step=recorder.take_frame,
            )
    assert scores is not None  # nothing breaks it off
    return scores


class _Recorder:
    """Hands frames to the encoder one by one: a long game would not fit into memory."""

    def __init__(self, env: VectorEnvs, path: Path, fps: float) -> None:
        self._env, self._path, self._fps = env, path, fps
        self._writer: Any = None

    def take_frame(self) -> None:
        frame = self._env.render()[0]
        height, width = (side // 2 * 2 for side in frame.shape[:2])  # the H.264 encoder wants even sides
        if self._writer is None:
            self._writer = _video_writer()(str(self._path), (width, height), self._fps)
        self._writer.write_frame(np.ascontiguousarray(frame[:height, :width]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _video_writer() -> Any:
    try:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
    except ImportError:
        raise SettingsError(f"recording video needs the extra video; {install_line('video')}") from None
    return FFMPEG_VideoWriter

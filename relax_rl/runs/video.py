"""Videos of an agent at play, recorded in a single environment of their own (extra `video`)."""

from __future__ import annotations

import math
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax_rl.backends.infos import number
from relax_rl.compute.installation import install_line
from relax_rl.compute.serialization import replacing, writing
from relax_rl.errors import SettingsError, shown
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
        SettingsError: the extra `video` is missing, or the environment renders no frames, or none that a video is made of.
        RelaxRLError: the file cannot be written.
    """
    fps = _frames_per_second(env)
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
            recorder.finish()
    assert scores is not None  # nothing breaks it off
    return scores


def _frames_per_second(env: VectorEnvs) -> float:
    """What the environment's metadata says, or 30; the encoder is told two decimals.

    Raises:
        SettingsError: it is no number above 0.
    """
    fps = env.vector_env.metadata.get("render_fps", DEFAULT_FPS)
    known = number(fps)
    if known is None or not math.isfinite(known) or round(known, 2) <= 0:
        raise SettingsError(
            f"no video of {env.env_id}: render_fps of its metadata is {shown(fps)}, expected a number above 0; mend it there"
        )
    return known


class _Recorder:
    """Hands frames to the encoder one by one: a long game would not fit into memory."""

    def __init__(self, env: VectorEnvs, path: Path, fps: float) -> None:
        self._env, self._path, self._fps = env, path, fps
        self._shape: tuple[int, ...] | None = None
        self._writer: Any = None

    def take_frame(self) -> None:
        frame = self._checked(self._env.render()[0])
        height, width = (side // 2 * 2 for side in frame.shape[:2])  # the H.264 encoder wants even sides
        if self._writer is None:
            self._writer = _video_writer()(str(self._path), (width, height), self._fps)
        self._writer.write_frame(np.ascontiguousarray(frame[:height, :width]))

    def finish(self) -> None:
        """Wait for the encoder; raises OSError if it has failed, which it may say by its exit code alone."""
        encoder = None if self._writer is None else self._writer.proc
        self.close()
        if encoder is not None and encoder.returncode:
            raise OSError(f"the encoder failed with exit code {encoder.returncode}")

    def _checked(self, frame: np.ndarray) -> np.ndarray:
        """The frame; the encoder takes bytes as they come, and would make something else of any other."""
        height, width, colours = frame.shape if frame.ndim == 3 else (0, 0, 0)
        if min(height, width) < 2 or colours != 3 or frame.dtype != np.uint8:
            expected = "uint8 [H, W, 3] of at least 2 x 2"
        elif frame.shape != (self._shape or frame.shape):
            expected = f"{list(self._shape or ())} as the first one"
        else:
            self._shape = frame.shape
            return frame
        raise SettingsError(
            f"no video of {self._env.env_id}: a frame is {frame.dtype} {list(frame.shape)}, expected {expected}; "
            "mend its render()"
        )

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

"""A peer trained by Stable-Baselines3, recorded in the files that our own runs leave."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from relax_rl.comparison.peer import Peer
from relax_rl.comparison.peers import ALGORITHMS, planned_steps, published, with_bins, with_overrides
from relax_rl.comparison.recording import EpisodeTable, ReportProgress, Send, write_outcome
from relax_rl.env_actions import BinnedActions
from relax_rl.runs import write_json
from relax_rl.runs.callbacks import Every
from relax_rl.runs.interruption import Interruption, interruptible
from relax_rl.runs.loggers import PROGRESS_COLUMNS, CsvLogger

__all__ = ["train_peer"]

WINDOW = 100
LOG_INTERVAL = 2_000


def train_peer(task: dict[str, Any], send: Send) -> dict[str, Any]:
    """Train a peer in `task["folder"]`; returns its outcome, which is also written there.

    What such a run would need to be gone on with is only kept in pickles, so an interrupted one starts over.

    Args:
        task: `env`, `bins`, `peer`, `seed`, `folder`, `total_steps`, `stop_at_return`, and `settings` over the
            published ones.
        send: hears of the progress.
    """
    path = Path(task["folder"])
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    peer = with_bins(published(task["env"], task["peer"]), task["bins"])
    peer, steps = planned_steps(peer, task["total_steps"])
    peer = with_overrides(peer, task["settings"])
    about = {"stable_baselines3": stable_baselines3.__version__, "torch": torch.__version__}
    write_json(path / "config.json", {"peer": asdict(peer), "seed": task["seed"], "steps": steps, "versions": about})
    torch.set_num_threads(1)
    with interruptible() as interruption:
        envs = _make_envs(peer, task["seed"], task["bins"])
        try:
            recorder = _Recorder(path, task["stop_at_return"], send, interruption)
            _make_model(peer, envs, task["seed"]).learn(steps, callback=recorder)
        finally:
            envs.close()
    outcome = recorder.outcome()
    if outcome["status"] == "finished":
        write_outcome(path, outcome)
    return outcome


class _Recorder(BaseCallback):
    """Writes progress and episodes, and stops the training when it is solved or interrupted.

    Episodes are those of the Monitor inside every environment, so returns are raw whatever lies around it.
    """

    def __init__(self, folder: Path, stop_at: float | None, send: Send, interruption: Interruption) -> None:
        super().__init__()
        self._folder, self._stop_at, self._interruption = folder, stop_at, interruption
        self._returns: deque[float] = deque(maxlen=WINDOW)
        self._lengths: deque[int] = deque(maxlen=WINDOW)
        self._episodes = 0
        self._report = ReportProgress(send)
        self._every = Every(LOG_INTERVAL)
        self._solved = False

    def _on_training_start(self) -> None:
        self._progress = CsvLogger(self._folder / "progress.csv", PROGRESS_COLUMNS)
        self._table = EpisodeTable(self._folder)
        self._started = self._row_time = time.perf_counter()
        self._row_step = 0

    def _on_step(self) -> bool:
        ended = [info["episode"] for info in self.locals["infos"] if "episode" in info]
        finished = [(float(episode["r"]), int(episode["l"])) for episode in ended]
        if finished:
            self._returns.extend(r for r, _ in finished)
            self._lengths.extend(n for _, n in finished)
            self._episodes += len(finished)
            self._table.add(self.num_timesteps, finished)
        self._report.update(self.num_timesteps, [r for r, _ in finished])
        full = len(self._returns) == WINDOW
        self._solved = self._stop_at is not None and full and self._mean(self._returns) >= self._stop_at
        if self._every.due(self.num_timesteps):
            self._write_row()
        return not (self._solved or self._interruption)

    def _on_training_end(self) -> None:
        if self._row_step < self.num_timesteps:
            self._write_row()
        self._progress.close()
        self._table.close()

    def _write_row(self) -> None:
        now = time.perf_counter()
        row = {
            "step": self.num_timesteps,
            "episodes": self._episodes,
            "return_mean": self._mean(self._returns),
            "seconds": now - self._started,
            "steps_per_second": (self.num_timesteps - self._row_step) / max(now - self._row_time, 1e-9),
            "length_mean": self._mean(self._lengths),
        }
        self._progress.log(row)
        self._row_step, self._row_time = self.num_timesteps, now

    @staticmethod
    def _mean(values: deque[Any]) -> float:
        return sum(values) / len(values) if values else float("nan")

    def outcome(self) -> dict[str, Any]:
        """How the training ended."""
        signal = self._interruption.signal
        return {
            "status": "finished" if signal is None else "interrupted",
            "steps": self.num_timesteps,
            "episodes": self._episodes,
            "return_mean": self._mean(self._returns),
            "stopped_by": signal.name if signal else "return" if self._solved else "total_steps",
        }


def _make_envs(peer: Peer, seed: int, bins: int) -> VecEnv:
    """The peer's environments, seeded, each with a Monitor."""
    if peer.atari:
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        skipping = {"frameskip": 1} if peer.env.startswith("ALE/") else None
        games = make_atari_env(peer.env, n_envs=peer.num_envs, seed=seed, env_kwargs=skipping)
        return VecFrameStack(games, n_stack=4)
    cut: dict[str, Any] = {"wrapper_class": BinnedActions, "wrapper_kwargs": {"bins": bins}} if bins else {}
    envs: VecEnv = make_vec_env(peer.env, n_envs=peer.num_envs, seed=seed, **cut)
    return VecNormalize(envs, gamma=peer.settings.get("gamma", 0.99)) if peer.normalize else envs


def _make_model(peer: Peer, envs: VecEnv, seed: int) -> Any:
    kind = getattr(stable_baselines3, ALGORITHMS[peer.algo])
    schedules = {name: _linear_to_zero(start) for name, start in peer.linear.items()}
    policy_kwargs = dict(peer.policy_kwargs)
    if "activation_fn" in policy_kwargs:
        policy_kwargs["activation_fn"] = getattr(torch.nn, policy_kwargs["activation_fn"])
    if "optimizer_class" in policy_kwargs:
        policy_kwargs["optimizer_class"] = {"RMSpropTFLike": RMSpropTFLike}[policy_kwargs["optimizer_class"]]
    arguments = {**peer.settings, **schedules, "policy_kwargs": policy_kwargs or None}
    return kind(peer.policy, envs, seed=seed, device="cpu", **arguments)


def _linear_to_zero(start: float) -> Callable[[float], float]:
    """Schedule of Stable-Baselines3: a function of the share of the run that remains."""
    return lambda remaining: remaining * start

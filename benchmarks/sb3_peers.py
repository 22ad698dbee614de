"""Train the peers, Stable-Baselines3's A2C and PPO, with the settings that rl-baselines3-zoo publishes for them.

    python -m benchmarks.sb3_peers                      # the whole queue; finished runs are skipped
    python -m benchmarks.sb3_peers --envs CartPole-v1 --algos ppo --seeds 0 1 2

Every run leaves `results/peers/<env>-<algo>-s<seed>.csv` with the columns step, episodes, return_mean: the mean raw
return of the last 100 finished training episodes, about every 2,000 steps. A run in progress writes to a `.part` file
that becomes the result at its end, so a queue that was stopped starts its last run over and repeats no other.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import stable_baselines3
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.tasks import PEER_RESULTS, TASKS, WINDOW, Task, file_stem, write_json
from relax_rl.comparison.peers import Peer, published

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

__all__ = ["PEERS", "result_path", "train_peer"]

ROW_INTERVAL = 2_000
ALGORITHMS: dict[str, type[OnPolicyAlgorithm]] = {"a2c": A2C, "ppo": PPO}


def _peer(env: str, algo: str, **changes: Any) -> Peer:
    """The published setting, with what is changed here."""
    return replace(published(env, f"sb3-{algo}"), algo=algo, **changes)


PEERS: tuple[Peer, ...] = (
    _peer("CartPole-v1", "a2c"),
    _peer("CartPole-v1", "ppo"),  # after its 100,000 steps the learning rate and the clipping are zero
    _peer(
        "InvertedPendulum-v5",
        "a2c",
        num_envs=8,
        total_steps=300_000,
        departure="no published entry for this environment; that of the MuJoCo tasks is taken, with 8 environments "
        "instead of their 1, as for the agents it is compared with, and 300,000 steps instead of 1,000,000 (no schedule "
        "depends on them)",
    ),
    _peer(
        "InvertedPendulum-v5",
        "ppo",
        total_steps=300_000,
        departure="published for version 2 of the environment; 300,000 steps instead of 1,000,000 (no schedule "
        "depends on them); a batch of 64 from rollouts of 32 is one batch of 32",
    ),
    _peer("LunarLander-v3", "ppo"),
    _peer(
        "LunarLander-v3",
        "a2c",
        total_steps=1_000_000,
        departure="published for version 2 of the environment and 200,000 steps; here the learning rate falls over "
        "1,000,000 steps",
    ),
)


class CurveRecorder(BaseCallback):
    """Write the curve while the peer trains, and stop it once the task is solved.

    Episodes are those of the Monitor inside every environment, so returns are raw even under VecNormalize.
    """

    def __init__(self, out: TextIO, task: Task) -> None:
        super().__init__()
        self.out = out
        self.task = task
        self.returns: deque[float] = deque(maxlen=WINDOW)
        self.episodes = 0
        self.next_row = ROW_INTERVAL
        self.last_row = 0

    def _on_training_start(self) -> None:
        self.out.write("step,episodes,return_mean\n")

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.returns.append(float(info["episode"]["r"]))
                self.episodes += 1
        solved = self.task.stop_when_reached and self.reached()
        if solved or self.num_timesteps >= self.next_row:
            self.write_row()
        return not solved

    def _on_training_end(self) -> None:
        if self.last_row < self.num_timesteps:
            self.write_row()

    def reached(self) -> bool:
        """Whether the mean over a full window is at the threshold."""
        return len(self.returns) == WINDOW and sum(self.returns) / WINDOW >= self.task.threshold

    def write_row(self) -> None:
        """One row of the curve; the mean stays empty before the first episode has ended."""
        mean = f"{sum(self.returns) / len(self.returns):.4f}" if self.returns else ""
        self.out.write(f"{self.num_timesteps},{self.episodes},{mean}\n")
        self.out.flush()
        self.last_row = self.num_timesteps
        self.next_row = (self.num_timesteps // ROW_INTERVAL + 1) * ROW_INTERVAL


def linear_to_zero(start: float) -> Callable[[float], float]:
    """Schedule of Stable-Baselines3: a function of the share of the run that remains."""
    return lambda remaining: remaining * start


def make_peer_envs(peer: Peer, seed: int) -> VecEnv:
    """The peer's environments, seeded, each with a Monitor, normalised if its setting says so."""
    envs: VecEnv = make_vec_env(peer.env, n_envs=peer.num_envs, seed=seed)
    if peer.normalize:
        envs = VecNormalize(envs, gamma=peer.settings.get("gamma", 0.99))
    return envs


def train_peer(peer: Peer, seed: int, path: Path) -> None:
    """Train one peer from one seed and leave its curve at `path`."""
    envs = make_peer_envs(peer, seed)
    schedules = {name: linear_to_zero(start) for name, start in peer.linear.items()}
    arguments: dict[str, Any] = {**peer.settings, **schedules}
    model = ALGORITHMS[peer.algo]("MlpPolicy", envs, seed=seed, device="cpu", **arguments)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as out:
            model.learn(peer.total_steps, callback=CurveRecorder(out, TASKS[peer.env]))
    finally:
        envs.close()
    os.replace(part, path)


def result_path(peer: Peer, seed: int) -> Path:
    """Where the curve of this peer and seed lies."""
    return PEER_RESULTS / f"{file_stem(peer.env, peer.algo, seed)}.csv"


def write_settings() -> None:
    """Write every peer's settings, with their sources and departures, to `results/peers/peers.json`."""
    about = {"stable_baselines3": stable_baselines3.__version__, "peers": [asdict(peer) for peer in PEERS]}
    write_json(PEER_RESULTS / "peers.json", about)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train Stable-Baselines3 with rl-baselines3-zoo's settings.")
    envs = list(dict.fromkeys(peer.env for peer in PEERS))
    parser.add_argument("--envs", nargs="+", choices=envs, default=envs, help="environments, in order")
    parser.add_argument("--algos", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS), help="algorithms")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)), help="seeds (default 0 to 9)")
    return parser.parse_args()


def main() -> None:
    """Work through the queue: environment by environment, seed by seed, each seed with every algorithm."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    write_settings()
    for env in arguments.envs:
        peers = [peer for peer in PEERS if peer.env == env and peer.algo in arguments.algos]
        for seed in arguments.seeds:
            for peer in peers:
                path = result_path(peer, seed)
                if path.exists():
                    continue
                start = time.perf_counter()
                train_peer(peer, seed, path)
                print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""The surrogate on and off, with the same code and the same settings, and Stable-Baselines3's PPO beside both.

    python -m benchmarks.against_ppo                               # every task; what is done already is kept
    python -m benchmarks.against_ppo --tasks CartPole-v1 --seeds 5

Every task is one `train_agent.py compare` command, in the trust region that PPO takes its steps in: ours without a
surrogate is PPO's gradient with our V, and with one it differs in nothing else. The comparisons work in
`runs/benchmarks/against_ppo/`, can be stopped and gone on with, and leave their report, numbers and figures in
`results/against_ppo/<task>/`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tasks import RESULTS

__all__ = ["MATCHES", "Match", "main"]

RUNS = Path("runs/benchmarks/against_ppo")
REPORTS = RESULTS / "against_ppo"
DISCRETE = ("off=a2c", "last=relax", "on=relax:surrogate_replay=4", "marginal=marginal:surrogate_replay=4")
CONTINUOUS = ("off=a2c", "last=lax", "on=lax:surrogate_replay=4")
"""Without surrogate; with one that learns from the last rollout, and from the last four; and summed over the actions."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """One comparison."""

    env: str
    steps: int
    contestants: tuple[str, ...]
    settings: dict[str, str]
    """Of all of ours, over the preset of the environment."""

    def command(self, seeds: int, folder: Path) -> list[str]:
        """What is started; a comparison that is there already is gone on with."""
        start = [sys.executable, "train_agent.py", "compare"]
        if (folder / "settings.json").exists():
            return [*start, "--resume", str(folder), "--seeds", str(seeds)]
        options = ["--env", self.env, "--estimators", *self.contestants, "--peers", "sb3-ppo"]
        options += ["--set", *(f"{name}={value}" for name, value in self.settings.items())]
        return [
            *start,
            *options,
            *("--total-steps", str(self.steps), "--seeds", str(seeds), "--run-dir", str(folder)),
            *("--variance", "--variance-of", "off"),
        ]


MATCHES: dict[str, Match] = {
    # rl-baselines3-zoo's settings of PPO, and the normalisation that our presets take everywhere
    "CartPole-v1": Match(
        env="CartPole-v1",
        steps=100_000,
        contestants=DISCRETE,
        settings={
            "num_envs": "8",
            "num_steps": "32",
            "minibatch_size": "256",
            "epochs": "20",
            "clip_range": "0.2",
            "gamma": "0.98",
            "gae_lambda": "0.8",
            "policy_lr": "1e-3",
            "value_lr": "1e-3",
            "surrogate_lr": "3e-3",
            "lr_schedule": "linear",
        },
    ),
    "InvertedPendulum-v5": Match(
        env="InvertedPendulum-v5",
        steps=150_000,
        contestants=CONTINUOUS,
        settings={
            "num_envs": "8",
            "num_steps": "16",
            "minibatch_size": "64",
            "epochs": "5",
            "clip_range": "0.2",
            "gamma": "0.99",
            "gae_lambda": "0.9",
            "policy_lr": "1e-3",
            "value_lr": "1e-3",
            "surrogate_lr": "3e-3",
            "lr_schedule": "linear",
        },
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and keep what it found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(MATCHES), default=list(MATCHES))
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args(argv)
    for name in args.tasks:
        folder = RUNS / name
        subprocess.run(MATCHES[name].command(args.seeds, folder), check=True)
        kept = REPORTS / name
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for file in ("report.md", "comparison.json", "settings.json"):
            shutil.copy(folder / file, kept / file)
        shutil.copytree(folder / "figures", kept / "figures")
        print(f"{name}: {kept / 'report.md'}", flush=True)


if __name__ == "__main__":
    main()

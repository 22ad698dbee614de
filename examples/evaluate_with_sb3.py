"""An agent of this package through Stable-Baselines3's `evaluate_policy`: `python examples/evaluate_with_sb3.py`.

`agent.predict` has that library's signature and return, so that its evaluation takes the agent as one of its own.
"""

from __future__ import annotations

import argparse
from typing import Any, cast

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from relax_rl import RELAX, make_envs, settings_for


def main() -> None:
    """Train for a while, then let the other library evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args()

    envs = make_envs("CartPole-v1", num_envs=8, seed=0)
    agent = RELAX(envs.single_observation_space, envs.single_action_space, seed=0, **settings_for("CartPole-v1"))
    agent.learn(envs, options.steps)

    theirs = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    mean, std = evaluate_policy(cast(Any, agent), theirs, n_eval_episodes=options.episodes, deterministic=True)
    print(f"return {mean:.1f} ± {std:.1f} over {options.episodes} episodes")


if __name__ == "__main__":
    main()

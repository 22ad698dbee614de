"""Train a RELAX agent as a library, watch it learn, save it and use it: `python examples/train_and_save.py`."""

from __future__ import annotations

import argparse
from collections import deque
from statistics import fmean

from relax_rl import RELAX, make_envs, settings_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--path", default="cartpole.safetensors")
    arguments = parser.parse_args()

    envs = make_envs("CartPole-v1", num_envs=8, seed=0)
    agent = RELAX(envs.single_observation_space, envs.single_action_space, seed=0, **settings_for("CartPole-v1"))
    returns: deque[float] = deque(maxlen=100)

    def watch(agent, info):
        returns.extend(episode.return_ for episode in info.episodes)
        if info.updates % 250 == 0:
            print(f"step {info.steps:>7,}  mean return of the last {len(returns)} episodes {fmean(returns):6.1f}")

    agent.learn(envs, arguments.steps, callbacks=[watch])
    agent.save(arguments.path)

    agent = RELAX.load(arguments.path)
    action, _ = agent.predict(envs.obs, deterministic=True)
    print(f"saved to {arguments.path}; its actions now: {action}")
    envs.close()


if __name__ == "__main__":
    main()

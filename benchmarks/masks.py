"""Agents with action masks beside agents without, and beside sb3-contrib's MaskablePPO where it is installed.

    python -m benchmarks.masks                                     # every task; runs that are there are kept
    python -m benchmarks.masks --tasks Dispatch --seeds 0 1 --only relax
    python -m benchmarks.masks --speed                             # steps per second, on a machine that does nothing else

Taxi says which actions move something; in Dispatch (`benchmarks.masks_task`) nine of ten choices are impossible. Ours take
rollouts of 5 steps of eight environments, everything normalised, with their masks and with `action_masks="off"`; `passes` takes the
passes of PPO over a rollout. No settings of MaskablePPO are published: it has the library's defaults on eight environments, once
with 2,048 steps of each between its updates, and once with 2,048 of all together, as its users have them in one environment. All that is there is in
`results/masks.json`, `.md` and `.png`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.masks_task import BEST
from benchmarks.side_by_side import NUM_ENVS, Curve, Learn, SideBySide, Task, learn_of_agent, learn_of_peer

__all__ = ["BENCHMARK", "CONTESTANTS", "TASKS", "main"]

PEERS = {"MaskablePPO": 2048, "MaskablePPO, shorter rollouts": 256}
"""Steps of each environment in a rollout."""
_SETTINGS = {"normalize_obs": True, "normalize_reward": True, "value_lr": 3e-3, "surrogate_lr": 3e-3}
_PASSES = {"num_steps": 128, "minibatch_size": 256, "epochs": 4, "clip_range": 0.2, "surrogate_scale": "fitted"}


@dataclass(frozen=True)
class Contestant:
    """One of ours: an estimator, whether it has masks, and settings of its own."""

    estimator: str
    masks: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


TASKS = {
    "Taxi": Task("Taxi-v4", 300_000, 7.0),
    "Dispatch": Task("benchmarks.masks_task:Dispatch-v0", 300_000, round(0.95 * BEST, 1)),
}
CONTESTANTS: dict[str, Contestant | None] = {
    "relax": Contestant("relax"),
    "relax, no masks": Contestant("relax", masks=False),
    "relax, passes": Contestant("relax", settings=_PASSES),
    "a2c": Contestant("a2c"),
    **dict.fromkeys(PEERS),
}


def _ours(task: Task, contestant: Contestant, seed: int, curve: Curve) -> Learn:
    from relax_rl import make_envs
    from relax_rl.agents import AGENTS

    how: Any = "auto" if contestant.masks else "off"
    envs = make_envs(task.env, num_envs=NUM_ENVS, seed=seed, vectorization="sync", action_masks=how)
    assert (envs.action_mask is not None) == contestant.masks
    settings = {**_SETTINGS, **contestant.settings}
    kind = AGENTS[contestant.estimator]
    agent = kind(envs.single_observation_space, envs.single_action_space, seed=seed, **settings)
    return learn_of_agent(agent, envs, curve)


def _maskable_ppo(task: Task, num_steps: int, seed: int, curve: Curve) -> Learn:
    import gymnasium as gym
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.wrappers import ActionMasker
    from stable_baselines3.common.env_util import make_vec_env

    from relax_rl.backends.registry import find_spec as registered

    def make() -> Any:
        env = gym.make(registered(task.env))
        return env if env.has_wrapper_attr("action_masks") else ActionMasker(env, _mask_of_taxi)

    envs = make_vec_env(make, NUM_ENVS, seed=seed)
    model = MaskablePPO("MlpPolicy", envs, n_steps=num_steps, seed=seed, device="cpu")
    return learn_of_peer(model, curve)


def _mask_of_taxi(env: Any) -> Any:
    return env.unwrapped.action_mask(env.unwrapped.s)


def _prepared(task: Task, label: str, seed: int, curve: Curve) -> Learn:
    contestant = CONTESTANTS[label]
    if contestant is None:
        return _maskable_ppo(task, PEERS[label], seed, curve)
    return _ours(task, contestant, seed, curve)


BENCHMARK = SideBySide(
    name="masks",
    title="Action masks",
    tasks=TASKS,
    contestants=tuple(CONTESTANTS),
    peers=tuple(PEERS),
    prepare=_prepared,
    symlog=("Taxi",),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Play what is missing, and write down all that is there after each run."""
    BENCHMARK.main(__doc__, argv)


if __name__ == "__main__":
    main()

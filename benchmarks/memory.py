"""Agents with a memory beside agents without, and beside sb3-contrib's RecurrentPPO where it is installed.

    python -m benchmarks.memory                                    # every task; runs that are there are kept
    python -m benchmarks.memory --tasks Cue --seeds 0 1 --only "relax, gru"
    python -m benchmarks.memory --speed                            # steps per second, on a machine that does nothing else

Cue shows a sign and asks for it 20 steps later; Positions is CartPole without velocities (`benchmarks.memory_tasks`). Ours take
rollouts of 128 steps of eight environments, the passes of PPO, a learning rate that falls linearly from 0.003, and rewards divided by
the running spread of returns, chosen on seed 1,000; RecurrentPPO the same rollouts, passes and width, once with these
settings too and once with its library's learning rate, and rewards as they are; and once more with its library's defaults in
everything, on one environment, for half of the steps, as it is slow. All that is there is in `results/memory.json`, `.md` and
`.png`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.side_by_side import NUM_ENVS, Curve, Learn, SideBySide, Task, learn_of_agent, learn_of_peer

__all__ = ["BENCHMARK", "CONTESTANTS", "TASKS", "main"]

_SAME_SHAPE = {"n_steps": 128, "batch_size": 256, "n_epochs": 4, "policy_kwargs": {"lstm_hidden_size": 64}}
_PASSES = {"num_steps": 128, "minibatch_size": 256, "epochs": 4, "clip_range": 0.2, "compile": "off"}
_RATE = 3e-3
_RATES = {"policy_lr": _RATE, "value_lr": _RATE, "lr_schedule": "linear", "normalize_reward": True}


@dataclass(frozen=True)
class Contestant:
    """One of ours: an estimator, and its memory."""

    estimator: str
    memory: str = "none"


@dataclass(frozen=True)
class Peer:
    """RecurrentPPO with `settings`, on `num_envs` environments; `rates`: the learning rate and the scale of rewards are ours."""

    rates: bool = False
    num_envs: int = NUM_ENVS
    settings: Mapping[str, Any] = field(default_factory=lambda: _SAME_SHAPE)


_DEFAULTS = "RecurrentPPO, its defaults, one environment"
PEERS = {
    "RecurrentPPO": Peer(),
    "RecurrentPPO, same settings": Peer(rates=True),
    _DEFAULTS: Peer(num_envs=1, settings={}),
}
TASKS = {
    "Cue": Task("benchmarks.memory_tasks:Cue-v0", 200_000, 0.9),
    "Positions": Task("benchmarks.memory_tasks:CartPolePositions-v0", 300_000, 400.0),
}
CONTESTANTS: dict[str, Contestant | None] = {
    **{f"{name}, gru": Contestant(name, "gru") for name in ("relax", "marginal", "a2c", "reinforce")},
    "relax, lstm": Contestant("relax", "lstm"),
    **{name: Contestant(name) for name in ("relax", "a2c")},
    **dict.fromkeys(PEERS),
}


def _ours(task: Task, contestant: Contestant, seed: int, curve: Curve) -> Learn:
    from relax_rl import make_envs
    from relax_rl.agents import AGENTS

    envs = make_envs(task.env, num_envs=NUM_ENVS, seed=seed, vectorization="sync")
    settings: dict[str, Any] = {**_PASSES, **_RATES, "memory": contestant.memory}
    if AGENTS[contestant.estimator].estimator.uses_surrogate:
        settings["surrogate_scale"] = "fitted"
    kind = AGENTS[contestant.estimator]
    agent = kind(envs.single_observation_space, envs.single_action_space, seed=seed, **settings)
    return learn_of_agent(agent, envs, curve)


def _recurrent_ppo(task: Task, peer: Peer, seed: int, curve: Curve) -> Learn:
    import gymnasium as gym
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    from relax_rl.backends.registry import find_spec as registered

    env: Any = make_vec_env(lambda: gym.make(registered(task.env)), peer.num_envs, seed=seed)
    how: dict[str, Any] = dict(peer.settings)
    if peer.rates:
        env = VecNormalize(env, norm_obs=False)
        how["learning_rate"] = lambda left: _RATE * left
    model = RecurrentPPO("MlpLstmPolicy", env, seed=seed, device="cpu", **how)
    return learn_of_peer(model, curve)


def _prepared(task: Task, label: str, seed: int, curve: Curve) -> Learn:
    contestant = CONTESTANTS[label]
    if contestant is None:
        return _recurrent_ppo(task, PEERS[label], seed, curve)
    return _ours(task, contestant, seed, curve)


BENCHMARK = SideBySide(
    name="memory",
    title="Memory",
    tasks=TASKS,
    contestants=tuple(CONTESTANTS),
    peers=tuple(PEERS),
    prepare=_prepared,
    shares={_DEFAULTS: 0.5},
)


def main(argv: Sequence[str] | None = None) -> None:
    """Play what is missing, and write down all that is there after each run."""
    BENCHMARK.main(__doc__, argv)


if __name__ == "__main__":
    main()

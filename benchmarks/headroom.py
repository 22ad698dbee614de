"""What else could lower the gradient's variance: control variates beyond the surrogate, at frozen agents.

    python -m benchmarks.headroom                                  # every task; what is measured already is kept
    python -m benchmarks.headroom --tasks HalfCheetah-v5 --anew

A2C learns in PPO's form up to a point of the learning phase and is frozen there. Rollouts of the frozen policy fit each
control variate; on further rollouts its gradient's variance is compared with A2C's, all on the same ones. Writes
`results/headroom/<task>.json` and `results/headroom.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from benchmarks.headroom_controls import Clock, Dynamics, Fitted, HorizonAwareValue, RefittedValue, Seen
from benchmarks.headroom_surrogates import (
    Regressed,
    SampledMarginal,
    Surrogate,
    ThroughPolicy,
    ThroughRollouts,
    TwoHeads,
    layer_normed,
)
from benchmarks.tasks import RESULTS, write_json, write_text
from relax_rl import make_envs
from relax_rl.agents import A2C, ActorCritic
from relax_rl.env_snapshots import ForkableEnv
from relax_rl.envs import VectorEnvs
from relax_rl.estimators.diagnostics import effective_sample_size_ratio, squared_norm
from relax_rl.variance.decomposition import EXACT_VALUE, decompose
from relax_rl.variance.gradient import Contender, policy_gradient

__all__ = ["TASKS", "Frozen", "main", "measure"]

GROUP = "headroom"
ROWS, ROLLOUTS, STATES = 100_000, 60, 200


@dataclass(frozen=True)
class Frozen:
    """Where an agent is frozen.

    Attributes:
        env: Gymnasium id.
        steps: learned until then.
        settings: of A2C.
    """

    env: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)


_PASSES = {
    "epochs": 10,
    "minibatch_size": 128,
    "clip_range": 0.2,
    "policy_lr": 3e-4,
    "value_lr": 3e-4,
    "normalize_obs": True,
    "normalize_reward": True,
}
_MUJOCO = {"num_steps": 64, "gamma": 0.98, "gae_lambda": 0.92, **_PASSES}
_EXPLAINED = """\
`surrogate` is RELAX's or LAX's; `later steps too` also takes from the advantage what later actions added to it by chance
(Cheng et al. 2019). `marginal over samples` takes the gradient of the surrogate's mean over actions from 16 actions drawn
apart, in place of the one taken. `by the policy's gradient` fits it by the variance of each row's gradient at the policy's weights,
instead of that at the distribution's parameters; `by rollouts' gradients` by that of the gradient summed over an
environment's rollout, as an update applies it. `regression on the advantage`, `expected SARSA` and `Retrace` (Munos et al.
2016) fit it by regression: on the advantage itself, or on what Q = V + surrogate says an action was worth, after one step
or with the agent's lambda; `Retrace and variance` by both objectives. `two surrogates` is the mean of two that start and
learn apart. `dynamics` asks a learned model of the next step, and V there, what an action is worth; its `state part` is
the mean of that over actions. `V refitted` trains V on at the frozen policy, as many steps as the surrogate takes; since
V bootstraps, the mean of the gradient moves too (`none seen`: A2C's own could not be told from zero). `horizon-aware`
tells V how many steps the time limit leaves (Tucker et al. 2018).""".splitlines()
TASKS: dict[str, Frozen] = {
    task.env: task
    for task in (
        Frozen("CartPole-v1", 20_000, {**_PASSES, "num_steps": 32, "gamma": 0.98, "gae_lambda": 0.8}),
        Frozen("Acrobot-v1", 20_000, {**_PASSES, "num_steps": 32, "gamma": 0.99, "gae_lambda": 0.94}),
        Frozen("LunarLander-v3", 100_000, {**_PASSES, "num_steps": 64, "gamma": 0.995, "gae_lambda": 0.97}),
        Frozen("InvertedPendulum-v5", 20_000, {**_PASSES, "num_steps": 32, "gamma": 0.98, "gae_lambda": 0.9}),
        Frozen("HalfCheetah-v5", 150_000, _MUJOCO),
        Frozen("Hopper-v5", 150_000, _MUJOCO),
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is asked for, and write the table of all that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--anew", action="store_true", help="measure again what is there")
    parser.add_argument("--report", action="store_true", help="write the table and measure nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for name in () if args.report else args.tasks:
        file = _file(name)
        if args.anew or not file.exists():
            write_json(file, measure(TASKS[name]))
            print(file, flush=True)
    _write_table()


def measure(task: Frozen, *, num_envs: int = 8, seed: int = 0) -> dict[str, Any]:
    """Train, freeze, fit and measure one task."""
    with make_envs(task.env, num_envs=num_envs, seed=seed) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, seed=seed, **task.settings)
        agent.learn(envs, task.steps)
        agent.compiled = None  # its batches come without the graph that gradients are pulled back through
        rollouts = ROWS // (agent.config.num_steps * num_envs)
        controls = _controls(agent, task.env, seed, rollouts)
        look = _Look(agent, envs, seed)
        for _ in range(rollouts):
            seen, _ = look()
            for control in controls:
                control.see(seen)
        for control in controls:
            control.fit()
        draws, explained = _draws(agent, look, controls)
    generator = torch.Generator().manual_seed(seed)
    reference = draws["a2c"]
    ratios = {
        name: asdict(effective_sample_size_ratio(reference, found, paired=True, generator=generator))
        for name, found in draws.items()
    }
    return {
        **asdict(task),
        "seed": seed,
        "ratio": ratios,
        "squared_gradient_norm": {name: squared_norm(draws[name]) for name in ("a2c", RefittedValue.name)},
        "explained_by_dynamics": explained,
        "parts": _parts(agent, task),
    }


def _controls(agent: ActorCritic, env: str, seed: int, rollouts: int) -> list[Fitted]:
    """Everything that is tried."""
    horizon = gym.spec(env).max_episode_steps
    assert horizon is not None
    own_lambda = agent.config.gae_lambda
    only_continuous = [SampledMarginal(agent, seed, rollouts)] if agent.actions.kind == "gaussian" else []
    return [
        Surrogate(agent, seed, rollouts),
        *only_continuous,
        ThroughPolicy(agent, seed, rollouts),
        ThroughRollouts(agent, seed, rollouts),
        Regressed(agent, seed, rollouts, name="regression on the advantage", gae_lambda=None),
        Regressed(agent, seed, rollouts, name="expected SARSA", gae_lambda=0.0),
        Regressed(agent, seed, rollouts, name="Retrace", gae_lambda=own_lambda),
        Regressed(agent, seed, rollouts, name="Retrace and variance", gae_lambda=own_lambda, variance=True),
        TwoHeads(agent, seed, rollouts),
        layer_normed(agent, seed, rollouts),
        RefittedValue(agent, seed, rollouts),
        HorizonAwareValue(agent, seed, rollouts, horizon=horizon),
        Dynamics(agent, seed),
    ]


class _Look:
    """Rollouts of the frozen agent, from the start of an episode in every environment on."""

    def __init__(self, agent: ActorCritic, envs: VectorEnvs, seed: int) -> None:
        envs.reset(seed)
        self.agent, self.collector, self.clock = agent, agent.collector(envs), Clock(envs)

    def __call__(self) -> tuple[Seen, Tensor]:
        """The next one, and the distribution's parameters with their graph."""
        rollout = self.agent.collect(self.collector)
        batch, params, _ = self.agent.batch(rollout)
        return Seen(rollout, batch, self.clock(rollout)), params


def _draws(agent: ActorCritic, look: _Look, controls: Sequence[Fitted]) -> tuple[dict[str, Tensor], float]:
    """Gradients `[ROLLOUTS, |theta|]` by name, and what share of V's one-step differences the dynamics explain."""
    theta = list(agent.policy.parameters())
    draws: dict[str, list[Tensor]] = {}
    differences: list[tuple[Tensor, Tensor]] = []
    for _ in range(ROLLOUTS):
        seen, params = look()
        batch = seen.batch
        found = {"a2c": batch.a2c_gradient}
        for control in controls:
            found |= control.estimates(seen)
            if isinstance(control, Dynamics):
                differences.append(control.explained(seen))
        for name, estimate in found.items():
            draws.setdefault(name, []).append(policy_gradient(estimate, batch.weight, params, theta))
    true, predicted = (torch.cat(column) for column in zip(*differences, strict=True))
    return {name: torch.stack(x) for name, x in draws.items()}, 1.0 - float((true - predicted).var() / true.var())


def _parts(agent: ActorCritic, task: Frozen) -> dict[str, Any]:
    """Trajectory, action and state of A2C's variance, as it is and with the true V."""
    env = ForkableEnv(task.env)
    try:
        entrants = [Contender("a2c", lambda batch: batch.a2c_gradient)]
        parts = decompose(agent, env, entrants, num_states=STATES)
    finally:
        env.close()
    return {name: asdict(parts[name]) for name in ("a2c", EXACT_VALUE)}


def _file(name: str) -> Path:
    return RESULTS / GROUP / f"{name}.json"


def _write_table() -> None:
    """`results/headroom.md` from what is measured."""
    found = {name: json.loads(_file(name).read_text(encoding="utf-8")) for name in TASKS if _file(name).exists()}
    names = list(dict.fromkeys(name for result in found.values() for name in result["ratio"]))
    head = ["| | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    rows = [
        f"| {name} | " + " | ".join(_interval(result["ratio"].get(name)) for result in found.values()) + " |"
        for name in names
    ]
    parts = []
    for which, title in (("a2c", "a2c"), (EXACT_VALUE, "with the true V")):
        for part in ("trajectory", "action", "state"):
            cells = (_share(result["parts"], which, part) for result in found.values())
            parts.append(f"| {part}, {title} | " + " | ".join(cells) + " |")
    steps = "| frozen after | " + " | ".join(f"{result['steps']:,} steps" for result in found.values()) + " |"
    signal = " | ".join(
        f"{x[RefittedValue.name] / x['a2c']:.2f}"
        for x in (result["squared_gradient_norm"] for result in found.values())
    )
    known = " | ".join(f"{result['explained_by_dynamics']:.2f}" for result in found.values())
    text = [
        "# What else could lower the variance",
        "",
        (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].partition(" Writes")[0].strip(),
        "",
        "Variance of an update's gradient, times A2C's, with intervals of 95% over rollouts:",
        "",
        *head,
        steps,
        *rows,
        f"| squared mean gradient, V refitted to A2C | {signal} |",
        f"| share of V's one-step differences that the dynamics explain | {known} |",
        "",
        *_EXPLAINED,
        "",
        "Parts of the variance of one row's gradient, in shares of A2C's (Tucker et al. 2018; `train_agent.py variance`):",
        "",
        *head,
        *parts,
    ]
    write_text(RESULTS / f"{GROUP}.md", "\n".join(text) + "\n")


def _interval(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _signal(squared_norm: dict[str, float]) -> str:
    """Unbiased estimates of squares may be negative, where there is little to see."""
    of_a2c = squared_norm["a2c"]
    return f"{squared_norm[RefittedValue.name] / of_a2c:.2f}" if of_a2c > 0.0 else "none seen"


def _share(parts: dict[str, Any], which: str, part: str) -> str:
    total = sum(parts["a2c"][name]["value"] for name in ("trajectory", "action", "state"))
    return f"{parts[which][part]['value'] / total:.2f}"


if __name__ == "__main__":
    main()

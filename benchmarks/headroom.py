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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.headroom_controls import Control, Dynamics, RefittedValue, RolloutData
from benchmarks.headroom_surrogates import surrogates
from benchmarks.tasks import RESULTS, write_json, write_text
from relax_rl import make_envs
from relax_rl.agents import A2C, ActorCritic
from relax_rl.agents.estimates import a2c
from relax_rl.backends.snapshots import ForkableEnv
from relax_rl.envs import VectorEnvs
from relax_rl.estimators.diagnostics import effective_sample_size_ratio, squared_norm
from relax_rl.variance.contenders import Contender, experience_of
from relax_rl.variance.decomposition import EXACT_VALUE, decompose
from relax_rl.variance.gradient import policy_gradient

__all__ = ["TASKS", "Frozen", "main", "measure"]

GROUP = RESULTS / "headroom"
REFITTED = "V refitted"


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
environment's rollout, as an update applies it. `regression on the advantage` fits it by least squares. `two surrogates` is the
mean of two that start and learn apart. `dynamics` asks a learned model of the next step, and V there, what an action is
worth; its `state part` is the mean of that over actions. `V refitted` trains V on at the frozen policy, as many steps as the
surrogate takes; since V bootstraps, the mean of the gradient moves too (`none seen`: A2C's own could not be told from zero).

Up to commit 807239f, which the numbers here are from, a surrogate also learned a temperature, and
`python -m benchmarks.headroom` also tried `expected SARSA`, `Retrace` (Munos et al. 2016: the surrogate by regression on what
Q = V + surrogate says an action was worth, after one step or with the agent's lambda), `Retrace and variance` (by both
objectives) and `horizon-aware` (V is told how many steps the time limit leaves; Tucker et al. 2018).""".splitlines()
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
        file = GROUP / f"{name}.json"
        if args.anew or not file.exists():
            write_json(file, measure(TASKS[name]))
            print(file, flush=True)
    _write_table()


def measure(
    task: Frozen, *, rows: int = 100_000, rollouts: int = 60, states: int = 200, num_envs: int = 8, seed: int = 0
) -> dict[str, Any]:
    """Train, freeze, fit and measure one task.

    Args:
        task: which.
        rows: of the frozen policy, on which control variates are fitted.
        rollouts: that they are measured on.
        states: in which A2C's variance is split into its parts.
        num_envs: side by side.
        seed: of everything.
    """
    with make_envs(task.env, num_envs=num_envs, seed=seed) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, seed=seed, **task.settings)
        agent.learn(envs, task.steps)
        agent.learner.compiled = None  # its batches come without the graph that gradients are pulled back through
        fitted_on = rows // (agent.config.num_steps * num_envs)
        dynamics, refitted = Dynamics(agent, seed), RefittedValue(REFITTED, agent, seed, fitted_on)
        controls = [*surrogates(agent, seed, fitted_on), refitted, dynamics]
        look = _rollouts(agent, envs, seed)
        for each in islice(look, fitted_on):
            for control in controls:
                control.learn(each)
        draws, explained = _draws(agent, islice(look, rollouts), controls, dynamics)
    generator = torch.Generator().manual_seed(seed)
    ratios = {
        name: asdict(effective_sample_size_ratio(draws["a2c"], found, paired=True, generator=generator))
        for name, found in draws.items()
    }
    env = ForkableEnv(task.env)
    parts = decompose(agent, env, [Contender("a2c", a2c)], num_states=states)
    env.close()
    return {
        **asdict(task),
        "seed": seed,
        "ratio": ratios,
        "squared_gradient_norm": {name: squared_norm(draws[name]) for name in ("a2c", REFITTED)},
        "explained_by_dynamics": explained,
        "parts": {name: asdict(found) for name, found in parts.items()},
    }


def _rollouts(agent: ActorCritic, envs: VectorEnvs, seed: int) -> Iterator[RolloutData]:
    """Rollouts of the frozen agent, from the start of an episode in every environment on."""
    envs.reset(seed)
    collector = agent.collector(envs)
    while True:
        rollout = agent.collect(collector)
        batch, outputs = agent.batch(rollout)
        obs = agent.normalized(torch.cat([rollout.obs.flatten(0, 1), rollout.final_obs]))
        yield RolloutData(rollout, batch, *experience_of(agent, batch, outputs), outputs.params, obs)


def _draws(
    agent: ActorCritic, look: Iterator[RolloutData], controls: Sequence[Control], dynamics: Dynamics
) -> tuple[dict[str, Tensor], float]:
    """Gradients `[rollouts, |theta|]` by name, and what share of V's one-step differences the dynamics explain."""
    theta = list(agent.policy.parameters())
    draws: dict[str, list[Tensor]] = {}
    differences: list[tuple[Tensor, Tensor]] = []
    for each in look:
        found = {"a2c": a2c(each.x, each.dist)}
        for control in controls:
            found |= control.estimates(each)
        differences.append(dynamics.explained(each))
        for name, estimate in found.items():
            draws.setdefault(name, []).append(policy_gradient(estimate, each.x.weight, each.params, theta))
    true, predicted = (torch.cat(column) for column in zip(*differences, strict=True))
    return {name: torch.stack(x) for name, x in draws.items()}, 1.0 - float((true - predicted).var() / true.var())


def _write_table() -> None:
    """`results/headroom.md` from what is measured."""
    files = {name: GROUP / f"{name}.json" for name in TASKS}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}
    everything = list(found.values())
    head = ["| | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]

    def row(title: str, cells: Iterator[str]) -> str:
        return f"| {title} | " + " | ".join(cells) + " |"

    names = list(dict.fromkeys(name for result in everything for name in result["ratio"]))
    text = [
        "# What else could lower the variance",
        "",
        (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].partition(" Writes")[0].strip(),
        "",
        "Variance of an update's gradient, times A2C's, with intervals of 95% over rollouts:",
        "",
        *head,
        row("frozen after", (f"{result['steps']:,} steps" for result in everything)),
        *(row(name, (_interval(result["ratio"].get(name)) for result in everything)) for name in names),
        row("squared mean gradient, V refitted to A2C", (_signal(x["squared_gradient_norm"]) for x in everything)),
        row(
            "share of V's one-step differences that the dynamics explain",
            (f"{result['explained_by_dynamics']:.2f}" for result in everything),
        ),
        "",
        *_EXPLAINED,
        "",
        "Parts of the variance of one row's gradient, in shares of A2C's (Tucker et al. 2018; `train_agent.py variance`):",
        "",
        *head,
    ]
    for which, title in (("a2c", "a2c"), (EXACT_VALUE, "with the true V")):
        for part in ("trajectory", "action", "state"):
            text.append(row(f"{part}, {title}", (_share(result["parts"], which, part) for result in everything)))
    write_text(RESULTS / "headroom.md", "\n".join(text) + "\n")


def _interval(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _signal(squared_norm: dict[str, float]) -> str:
    """Unbiased estimates of squares may be negative, where there is little to see."""
    of_a2c = squared_norm["a2c"]
    return f"{squared_norm[REFITTED] / of_a2c:.2f}" if of_a2c > 0.0 else "none seen"


def _share(parts: dict[str, Any], which: str, part: str) -> str:
    total = sum(parts["a2c"][name]["value"] for name in ("trajectory", "action", "state"))
    return f"{parts[which][part]['value'] / total:.2f}"


if __name__ == "__main__":
    main()

"""What a gradient of lower variance could buy: A2C on twice the batch at equal updates, and which half of that pays.

    python -m benchmarks.larger_batches                        # every task; runs that are there are kept
    python -m benchmarks.larger_batches --tasks CartPole-v1 --seeds 5
    python -m benchmarks.larger_batches --report               # the table and the figure alone

With twice the environments the policy's gradient has half the variance, and the value function learns from twice the
data. To tell the two apart, the additional environments are also used for one of them alone, and for neither: then they
only feed the running statistics of observations and rewards, and the measured returns. Beside these stand RELAX or LAX on
the plain batch, and both with a value function that learns from earlier rollouts too. Writes `results/larger_batches/<task>.json`, `results/larger_batches.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.matches import spread
from benchmarks.tasks import RESULTS, write_json, write_text
from relax_rl import make_envs
from relax_rl.agents import A2C, LAX, RELAX, ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.agents.gradients import Objective
from relax_rl.agents.learner import Learner, Metrics
from relax_rl.agents.networks import Outputs
from relax_rl.comparison.statistics import bootstrap, improvement, iqm, median
from relax_rl.rollouts import Rollout
from relax_rl.runs.plotting import png
from relax_rl.serialization import write_bytes_atomic
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.fields import from_json
from relax_rl.settings.presets import preset_config

__all__ = ["CONTESTANTS", "TASKS", "Task", "main"]

GROUP = "larger_batches"
POINTS = 50
OWN_REPLAY = "with surrogate, its own replay"
"""Up to commit 807239f a surrogate could learn from stored rollouts and by regression; those runs are reported as they are."""
WINDOW = 0.1
"""Share of all updates whose episodes each point of a curve is the mean of."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One environment.

    Attributes:
        steps: at the preset's batch, and twice as many with twice the batch.
        threshold: mean return that is waited for.
        surrogate: the estimator beside A2C.
        seeds: runs of each contestant.
    """

    steps: int
    threshold: float
    surrogate: str = "relax"
    seeds: int = 10


TASKS: dict[str, Task] = {
    "CartPole-v1": Task(steps=100_000, threshold=475.0, seeds=20),
    "Acrobot-v1": Task(steps=100_000, threshold=-100.0),
    "InvertedPendulum-v5": Task(steps=150_000, threshold=950.0, surrogate="lax"),
}


@dataclass(frozen=True)
class Contestant:
    """Who learns.

    Attributes:
        surrogate: whether the task's surrogate is on.
        factor: of the preset's environments.
        policy, value: whether the policy's gradient and the value function use the additional ones.
        value_replay: earlier rollouts that the value function learns from.
    """

    surrogate: bool = False
    factor: int = 2
    policy: bool = True
    value: bool = True
    value_replay: int = 0


CONTESTANTS = {
    "A2C": Contestant(factor=1),
    "with surrogate": Contestant(surrogate=True, factor=1),
    "A2C, twice the batch": Contestant(),
    "for V alone": Contestant(policy=False),
    "for the policy alone": Contestant(value=False),
    "for neither": Contestant(policy=False, value=False),
    "A2C, value replay": Contestant(factor=1, value_replay=2),
    "with surrogate, value replay": Contestant(surrogate=True, factor=1, value_replay=2),
}
REPORTED = (
    "A2C",
    "with surrogate",
    OWN_REPLAY,
    *(name for name in CONTESTANTS if name not in ("A2C", "with surrogate")),
)

PAIRS = (
    ("with surrogate", "A2C"),
    (OWN_REPLAY, "A2C"),
    ("for the policy alone", "A2C"),
    ("A2C, value replay", "A2C"),
    ("with surrogate, value replay", "A2C, value replay"),
    ("with surrogate, value replay", "A2C"),
    ("A2C, twice the batch", "with surrogate, value replay"),
)
"""Of which the first may be better than the second."""
UNSEEN = {"CartPole-v1": 20, "InvertedPendulum-v5": 10}
"""Seeds from which on nothing was known when value replay was chosen."""


class PartlyBlind(A2C):
    """A2C whose policy or value function, or both, learn nothing from the last half of the environments."""

    policy_sees_all = True
    value_sees_all = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.learner = _PartlyBlindLearner(self.networks, self.estimator, self.config, self.generator)

    def batch(self, rollout: Rollout) -> tuple[Batch, Outputs]:
        batch, acted = super().batch(rollout)
        seen = torch.arange(len(batch.weight)) % rollout.num_envs < rollout.num_envs // 2
        if not self.policy_sees_all:
            # Without advantage a row adds nothing to the gradient, whose mean is over the other half then.
            batch = replace(batch, advantage=torch.where(seen, 2.0 * batch.advantage, 0.0))
        if not self.value_sees_all:
            batch = replace(batch, return_=torch.where(seen, batch.return_, math.nan))
        return batch, acted


class _PartlyBlindLearner(Learner):
    """Takes V for the return of rows without one: V makes no error there. Adam does not mind that the mean is over all rows."""

    def step(
        self, batch: Batch, objective: Objective, factor: float, known: Outputs | None = None
    ) -> tuple[Metrics, dict[str, Tensor]]:
        known = self.networks(batch.obs) if known is None else known
        value = known.value[: len(batch.weight)].detach()
        batch = replace(batch, return_=torch.where(batch.return_.isnan(), value, batch.return_))
        return super().step(batch, objective, factor, known)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and write the table and the figure of all that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--seeds", type=int, help="runs of each contestant (default: the task's)")
    parser.add_argument("--report", action="store_true", help="write the table and the figure, and train nothing")
    args = parser.parse_args(argv)
    if args.seeds is not None and args.seeds < 1:
        parser.error(f"--seeds is {args.seeds}, expected at least 1")
    torch.set_num_threads(1)
    for name in () if args.report else args.tasks:
        _play(name, TASKS[name], args.contestants, args.seeds or TASKS[name].seeds)
    _report()


def _play(env: str, task: Task, names: Sequence[str], seeds: int) -> None:
    """Train, and keep a curve of every run, seed by seed."""
    path = RESULTS / GROUP / f"{env}.json"
    preset = preset_config(env, "a2c")
    batch = preset.env.num_envs * preset.agent.num_steps
    found: dict[str, Any] = {
        "env": env,
        "threshold": task.threshold,
        "updates": task.steps // batch,
        "batch": batch,
        "preset": asdict(preset.agent),
        "contestants": {name: asdict(contestant) for name, contestant in CONTESTANTS.items()},
        "torch": torch.__version__,
    }
    curves: dict[str, dict[str, Any]] = {name: {} for name in CONTESTANTS}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        # Settings that are younger than the file, and those that there are no longer, at what changes nothing.
        if from_json(AgentConfig, found["preset"]) != from_json(AgentConfig, known["preset"]):
            raise SystemExit(f"{path} was made with another preset; delete it to train all of it anew")
        curves |= known["curves"]
    found["curves"] = curves
    for seed in range(seeds):
        for name in names:
            if str(seed) in curves[name]:
                continue
            started = time.monotonic()
            curve = _train(env, task, CONTESTANTS[name], seed)
            curves[name][str(seed)] = np.round(curve, 2).tolist()
            write_json(path, found)
            print(f"{env}, {name}, seed {seed}: {curve.mean():.1f}, {time.monotonic() - started:.0f} s", flush=True)


def _train(env: str, task: Task, contestant: Contestant, seed: int) -> np.ndarray:
    """The curve of one run."""
    config = preset_config(env, task.surrogate if contestant.surrogate else "a2c")
    settings = replace(
        config.agent,
        compile="off",
        minibatch_size=contestant.factor * config.agent.minibatch_size,
        value_replay=contestant.value_replay,
    )
    envs = make_envs(env, num_envs=contestant.factor * config.env.num_envs, seed=seed)
    kinds: dict[str, type[ActorCritic]] = {"relax": RELAX, "lax": LAX}
    kind = kinds[task.surrogate] if contestant.surrogate else PartlyBlind
    agent = kind(envs.single_observation_space, envs.single_action_space, seed=seed, config=settings)
    if isinstance(agent, PartlyBlind):
        agent.policy_sees_all, agent.value_sees_all = contestant.policy, contestant.value
    steps: list[int] = []
    returns: list[float] = []

    def keep(agent: ActorCritic, info: Any) -> None:
        steps.extend(info.steps for _ in info.episodes)
        returns.extend(float(episode.return_) for episode in info.episodes)

    total = contestant.factor * task.steps
    agent.learn(envs, total, callbacks=[keep])
    envs.close()
    return _curve(np.array(steps), np.array(returns), total)


def _curve(steps: np.ndarray, returns: np.ndarray, total: int) -> np.ndarray:
    """`[POINTS]` mean return of the episodes that ended in the last `WINDOW` of all updates.

    Points without an episode take the last known one, or the first at the beginning.
    """
    ends = np.linspace(0, total, POINTS + 1)[1:]
    found = np.full(POINTS, np.nan)
    for k, end in enumerate(ends):
        inside = (steps > end - WINDOW * total) & (steps <= end)
        if inside.any():
            found[k] = returns[inside].mean()
    known = np.flatnonzero(np.isfinite(found))
    at = np.maximum(0, np.searchsorted(known, np.arange(POINTS), side="right") - 1)
    return found[known[at]]


def _rows(task: Mapping[str, Any], name: str, first_seed: int = 0) -> np.ndarray:
    return np.asarray([curve for seed, curve in task["curves"].get(name, {}).items() if int(seed) >= first_seed])


def _interval(estimate: Any, style: str) -> str:
    return spread({name: getattr(estimate, name) for name in ("value", "low", "high")}, style)


def _report() -> None:
    """`results/larger_batches.md` and its figure."""
    lines = [
        "# What a gradient of lower variance could buy",
        "",
        "A2C on its preset's batch and on that of twice as many environments, with the same number of updates; the additional",
        "environments for the policy's gradient and for V, for one of them alone, or for neither (only for the running",
        "statistics of observations and rewards, and the measured returns); RELAX or LAX on the preset's batch, also with a",
        "surrogate that learns from the last 8 rollouts, in four steps to each of the policy, mostly by regression (up to",
        "commit 807239f: `surrogate_replay`, `surrogate_regression`); and all with a value function that learns from the two",
        "rollouts before the present one as well. Updates",
        f"until the mean return of the episodes that ended in the last {WINDOW:.0%} of all updates reaches the threshold: medians,",
        "those that did not reach it beyond all others. Mean return over the whole training: interquartile means. Intervals",
        "of 95% over runs. `python -m benchmarks.larger_batches` trains and writes this file.",
        "",
        "| task | contestant | runs | reached | updates to the threshold | mean return over training |",
        "|---|---|---:|---:|---:|---:|",
    ]
    files = [RESULTS / GROUP / f"{env}.json" for env in TASKS]
    tasks = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    for task in tasks:
        title = f"{task['env']}, {task['threshold']:g}; {task['updates']:,} updates of {task['batch']}"
        at = (np.arange(POINTS) + 1) / POINTS * task["updates"]
        for name in REPORTED:
            rows = _rows(task, name)
            if not len(rows):
                continue
            reached = rows >= task["threshold"]
            times = np.where(reached.any(1), at[reached.argmax(1)], np.inf)
            cells = [title, name, str(len(rows)), f"{np.isfinite(times).sum()} of {len(rows)}"]
            cells.append(_interval(bootstrap(median, times), ",.0f"))
            cells.append(_interval(bootstrap(iqm, rows.mean(1)), ".1f"))
            lines.append("| " + " | ".join(cells) + " |")
            title = ""
    write_text(RESULTS / f"{GROUP}.md", "\n".join([*lines, "", *_pairs(tasks)]) + "\n")
    if tasks:
        _draw(tasks)


def _pairs(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """How probably one contestant is better than another, on all seeds and on those that had no part in the choice."""
    single = [task for task in tasks if preset_config(task["env"], "a2c").agent.epochs == 1]
    columns = [(task["env"], [(task, 0)]) for task in tasks]
    columns.append((" and ".join(task["env"] for task in single) + " together", [(task, 0) for task in single]))
    unseen = [(task, UNSEEN[task["env"]]) for task in tasks if task["env"] in UNSEEN]
    return [
        "Probability that a run of the first has a higher mean return over training than one of the second:",
        "",
        *_pair_table(columns),
        "",
        "The same on seeds that had no part in the choice of value replay:",
        "",
        *_pair_table([(f"{task['env']}, seeds from {first}", [(task, first)]) for task, first in unseen]),
    ]


def _pair_table(columns: Sequence[tuple[str, Sequence[tuple[Mapping[str, Any], int]]]]) -> list[str]:
    """A row for each of `PAIRS`, a column for some tasks, each from a seed on; empty where runs are missing."""
    lines = ["| first | second | " + " | ".join(title for title, _ in columns) + " |"]
    lines.append("|---|---|" + "---:|" * len(columns))
    for pair in PAIRS:
        cells = []
        for _, tasks in columns:
            rows = [[_rows(task, name, first) for name in pair] for task, first in tasks]
            known = rows and all(len(each) for both in rows for each in both)
            cells.append(_interval(improvement([(x.mean(1), y.mean(1)) for x, y in rows]), ".2f") if known else "")
        if any(cells):
            lines.append("| " + " | ".join([*pair, *cells]) + " |")
    return lines


def _draw(tasks: Sequence[Mapping[str, Any]]) -> None:
    """A panel for each task: mean return over training of each contestant, with its interval and its runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 + 2.6 * len(tasks), 3.2), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    names = list(REPORTED)
    for axes, task in zip(panels, tasks, strict=True):
        for place, name in enumerate(names):
            rows = _rows(task, name)
            if not len(rows):
                continue
            scores = rows.mean(1)
            mean = bootstrap(iqm, scores)
            colour = "#d9793d" if name.startswith("with surrogate") else "#3b75af"
            axes.plot(scores, np.full(len(scores), place), "o", color=colour, alpha=0.25, markersize=4)
            axes.plot([mean.low, mean.high], [place, place], color=colour, linewidth=2)
            axes.plot(mean.value, place, "D", color=colour, markersize=6)
        axes.set_title(task["env"], fontsize="medium")
        axes.set_xlabel("mean return over training")
        axes.grid(alpha=0.25)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    write_bytes_atomic(RESULTS / f"{GROUP}.png", png(figure))


if __name__ == "__main__":
    main()

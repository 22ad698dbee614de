"""What RELAX and LAX lose without the surrogate's learned gain and temperature, and gain by scaled advantages.

    python -m benchmarks.ablation                              # every task; runs that are there are kept
    python -m benchmarks.ablation --report                     # the table and the figure alone

The agents as they are (`learned`); with the surrogate's gain, its temperature or both held at 1 (`fixed-gain`,
`fixed-temperature`, `fixed`); with both held and `surrogate_scale="fitted"`, where the preset has not got it anyway
(`fixed-fitted`); and as they are with `advantage_scale="running"` (`advantage-scale`), whose gains are what dropping that
setting loses. Each arm has the preset of its task and the same seeds. Writes all of `results/ablation/`.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.matches import spread
from benchmarks.run_agents import commit
from benchmarks.tasks import RESULTS, WINDOW, file_stem, write_json, write_text
from relax_rl import make_envs
from relax_rl.agents import LAX, RELAX, ActorCritic, UpdateInfo
from relax_rl.agents.optimizers import Adam, FlatParameters
from relax_rl.agents.surrogate import SurrogateActorCritic
from relax_rl.comparison.statistics import Estimate, bootstrap, improvement
from relax_rl.config import AgentConfig
from relax_rl.plotting import png
from relax_rl.presets import preset_config
from relax_rl.runs import versions
from relax_rl.serialization import write_bytes_atomic

__all__ = ["HELD", "SETTINGS", "TASKS", "Task", "hold", "main"]

FOLDER = RESULTS / "ablation"
INTERVAL = 2_500
"""Environment steps between the rows of a curve; more than a rollout has, so that all runs of a task have as many rows."""
COLUMNS = ("step", "return_mean", "variance_ratio", "gain", "temperature")
MEASURES = {"mean return over training": 1.0, "mean return at the end": 1.0, "mean log variance ratio": -1.0}
"""What is measured of a run, and the sign of what is better."""
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco")
HELD: dict[str, tuple[str, ...]] = {
    "learned": (),
    "fixed": ("gain", "log_temperature"),
    "fixed-gain": ("gain",),
    "fixed-temperature": ("log_temperature",),
    "fixed-fitted": ("gain", "log_temperature"),
    "advantage-scale": (),
}
"""The surrogate's parameters that stay where they start, by arm."""
SETTINGS: dict[str, dict[str, Any]] = {
    "fixed-fitted": {"surrogate_scale": "fitted"},
    "advantage-scale": {"advantage_scale": "running"},
}
"""Settings of an arm over the preset's."""


class Task(NamedTuple):
    """One environment: the steps of a run, the arms, and the estimator."""

    steps: int
    arms: tuple[str, ...]
    estimator: str = "relax"


TASKS = {
    "CartPole-v1": Task(100_000, tuple(HELD)),
    "Acrobot-v1": Task(300_000, tuple(arm for arm in HELD if arm != "fixed-fitted")),
    # No temperature enters Gaussian actions.
    "InvertedPendulum-v5": Task(150_000, ("learned", "fixed", "fixed-fitted", "advantage-scale"), "lax"),
    "LunarLander-v3": Task(300_000, ("learned", "fixed")),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, seed by seed, and write the table and the figure of all that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5, help="runs of each arm (default 5)")
    parser.add_argument("--report", action="store_true", help="write the table and the figure, and train nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for env in () if args.report else args.tasks:
        _record_settings(env)
        for seed in range(args.seeds):
            for arm in TASKS[env].arms:
                if not _file(env, arm, seed).exists():
                    rows = _train(env, arm, seed)
                    text = [",".join(COLUMNS), *(",".join(f"{x:.6g}" for x in row) for row in rows)]
                    write_text(_file(env, arm, seed), "\n".join(text) + "\n")
                    print(f"{env}, {arm}, seed {seed}: {rows[-1]}", flush=True)
    _report()


def hold(agent: SurrogateActorCritic, names: Sequence[str]) -> None:
    """Leave parameters of the surrogate, by name, out of what is trained; with none, the agent is as it was."""
    agent._phi = FlatParameters(x for name, x in agent.surrogate.named_parameters() if name not in names)
    agent.surrogate_optimizer = Adam(agent._phi, lr=agent.config.surrogate_lr)


def _settings(env: str, arm: str) -> AgentConfig:
    return replace(preset_config(env, TASKS[env].estimator).agent, compile="off", **SETTINGS.get(arm, {}))


def _train(env: str, arm: str, seed: int) -> list[tuple[float, ...]]:
    """The curve of one run, in `COLUMNS`."""
    task = TASKS[env]
    kind: type[SurrogateActorCritic] = {"relax": RELAX, "lax": LAX}[task.estimator]
    envs = make_envs(env, num_envs=preset_config(env, task.estimator).env.num_envs, seed=seed)
    agent = kind(envs.single_observation_space, envs.single_action_space, seed=seed, config=_settings(env, arm))
    hold(agent, HELD[arm])
    returns: deque[float] = deque(maxlen=WINDOW)
    variances: list[tuple[float, float]] = []
    rows: list[tuple[float, ...]] = []

    def keep(_: ActorCritic, info: UpdateInfo) -> None:
        returns.extend(float(episode.return_) for episode in info.episodes)
        variances.append((float(info.metrics["estimate/variance"]), float(info.metrics["estimate/variance_a2c"])))
        if info.steps >= INTERVAL * (len(rows) + 1):
            # The ratio of the means: a mean of ratios would be that of the batches in which nothing happens.
            own, plain = (sum(column) for column in zip(*variances, strict=True))
            mean = sum(returns) / len(returns) if returns else float("nan")
            phi = agent.surrogate.gain.item(), agent.surrogate.temperature.item()
            rows.append((info.steps, mean, own / max(plain, 1e-30), *phi))
            variances.clear()

    agent.learn(envs, task.steps, callbacks=[keep])
    envs.close()
    return rows


def _file(env: str, arm: str, seed: int) -> Path:
    return FOLDER / f"{file_stem(env, arm, seed)}.csv"


def _record_settings(env: str) -> None:
    """Keep how a task's runs are made; other settings than before are refused."""
    path, task = FOLDER / "settings.json", TASKS[env]
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    arms = {arm: {"held": HELD[arm], **SETTINGS.get(arm, {})} for arm in task.arms}
    num_envs, agent = preset_config(env, task.estimator).env.num_envs, asdict(_settings(env, "learned"))
    settings = {**task._asdict(), "arms": arms, "num_envs": num_envs, "agent": agent}
    if env not in known:
        write_json(path, {**known, env: {"settings": settings, "commit": commit(), "versions": versions(PACKAGES)}})
    elif known[env]["settings"] != json.loads(json.dumps(settings)):
        raise SystemExit(f"{env} was run with other settings; delete its files and its part of {path} to run it anew")


def _read(env: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Curves `[seeds, rows, COLUMNS]` and measures `[seeds, MEASURES]` by arm, of the seeds that all arms have."""
    arms, seeds = TASKS[env].arms, 0
    while all(_file(env, arm, seeds).exists() for arm in arms):
        seeds += 1
    curves, measures = {}, {}
    for arm in arms if seeds else ():
        runs = [np.genfromtxt(_file(env, arm, seed), delimiter=",", skip_header=1) for seed in range(seeds)]
        for run in runs:
            run[np.isnan(run[:, 1]), 1] = run[np.isfinite(run[:, 1]).argmax(), 1]  # before an episode has ended
        curves[arm] = np.stack(runs)
        mean, ratio = curves[arm][:, :, 1], curves[arm][:, :, 2]
        measures[arm] = np.stack([mean.mean(1), mean[:, -1], np.log(ratio.clip(1e-6)).mean(1)], 1)
    return curves, measures


def _report() -> None:
    """`ablation.md` and its figure."""
    found = {env: both for env in TASKS if (both := _read(env))[0]}
    differences: dict[str, dict[str, Estimate]] = {arm: {} for arm in HELD}
    rows = []
    for env, (curves, measures) in found.items():
        for arm, values in measures.items():
            apart = differences[arm][env] = bootstrap(np.mean, values - measures["learned"])
            cells = [f"{x:.2f}" for x in values.mean(0)]
            if arm != "learned":
                cells = [f"{cell}: {_written(apart, k)}" for k, cell in enumerate(cells)]
            cells += [f"{x:.2f}" for x in curves[arm][:, -1, 3:].mean(0)]
            rows.append(f"| {' | '.join([env, arm, str(len(values)), *cells])} |")
    titles = ["task", "arm", "runs", *MEASURES, "gain at the end", "temperature at the end"]
    lines = [
        "# The surrogate without learned gain and temperature, and scaled advantages\n",
        (__doc__ or "").partition("alone\n\n")[2].partition(" Writes")[0] + "\n",
        *(_conclusion(arm, differences[arm], found) for arm in HELD if arm != "learned" and differences[arm]),
        f"\nReturns are means of the last {WINDOW} episodes; over training is the area under the curve, per step. The variance is",
        "that of the estimate as a fraction of A2C's on the same rows. After the colon: the arm minus `learned`, seed by seed,",
        "with intervals of 95% over seeds. Such an interval excludes zero whenever all of n differences have one sign, as they",
        "have by chance in 1 of 2^(n-1): of many with 5 seeds some will. `python -m benchmarks.ablation` writes this file. "
        f"Without runs: {', '.join(env for env in TASKS if env not in found) or 'no task'}.\n",
        f"| {' | '.join(titles)} |\n|---|---|{'---:|' * (len(titles) - 2)}",
        *rows,
        "\n![Learning curves and variance](ablation.png)",
    ]
    write_text(FOLDER / "ablation.md", "\n".join(lines) + "\n")
    _draw({env: curves for env, (curves, _) in found.items()})


def _written(apart: Estimate, k: int) -> str:
    return spread({name: x[k] for name, x in asdict(apart).items()}, "+.2f")


def _conclusion(arm: str, differences: Mapping[str, Estimate], found: Mapping[str, Any]) -> str:
    """What the intervals of an arm's differences, by task, say."""
    outside: dict[str, list[str]] = {"loss": [], "gain": []}
    room, pairs = [], []
    for env, apart in differences.items():
        for k, (measure, sign) in enumerate(MEASURES.items()):
            if apart.low[k] * apart.high[k] > 0.0:
                kind = "gain" if sign * apart.value[k] > 0.0 else "loss"
                outside[kind].append(f"{measure} on {env} ({_written(apart, k)})")
        own, learned = found[env][1][arm], found[env][1]["learned"]
        lost = (-apart.low / abs(learned.mean(0))).clip(0.0) + 0.0  # no minus in front of zero
        room.append(f"{lost[0]:.1%} ({lost[1]:.1%}) on {env}")
        pairs.append((own[:, 0].tolist(), learned[:, 0].tolist()))
    loss, gain = (f"a {kind} in {', '.join(cases)}" if cases else f"no {kind}" for kind, cases in outside.items())
    return (
        f"- **`{arm}`** shows {loss}, and {gain}, in {len(MEASURES)} measures of {len(differences)} tasks. Its runs have a higher "
        f"mean return over training than those of `learned` with probability {spread(asdict(improvement(pairs)), '.2f')}, "
        f"averaged over the tasks; the intervals leave room for losses of it (and of that at the end) of {', '.join(room)}."
    )


def _draw(curves: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Mean return above and variance ratio below, a column for each task; medians over seeds, and their range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(curves) + 1, 5.6), layout="constrained")
    panels = figure.subplots(2, max(1, len(curves)), squeeze=False, sharex="col")
    for (above, below), (env, by_arm) in zip(panels.T, curves.items(), strict=False):
        for place, arm in enumerate(HELD):
            for axes, column in ((above, 1), (below, 2)):
                runs = by_arm.get(arm, np.full((1, 1, len(COLUMNS)), np.nan))
                low, middle, high = np.quantile(runs[:, :, column], (0.0, 0.5, 1.0), axis=0)
                axes.plot(runs[0, :, 0] / 1_000, middle, color=f"C{place}", label=arm, linewidth=1.3)
                axes.fill_between(runs[0, :, 0] / 1_000, low, high, color=f"C{place}", alpha=0.12, linewidth=0)
        above.set_title(env, fontsize="medium")
        below.set(xlabel="thousand environment steps", yscale="log")
    panels[0, 0].set_ylabel("mean return")
    panels[1, 0].set_ylabel("variance, times A2C's")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    write_bytes_atomic(FOLDER / "ablation.png", png(figure))


if __name__ == "__main__":
    main()

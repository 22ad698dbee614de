"""Trains the zoo: an agent for each task whose preset the tables of results tell of, cheap ones first.

    python -m benchmarks.zoo OUT                          # all of them; what is finished stays, what was begun is gone on with
    python -m benchmarks.zoo OUT --only CartPole-v1 Acrobot-v1
    python -m benchmarks.zoo relax_rl/zoo --work OUT/work --only CartPole-v1 Acrobot-v1 InvertedPendulum-v5
    python -m benchmarks.zoo relax_rl/zoo --contests runs/benchmarks/contests --only Hopper-v5 HalfCheetah-v5

Every agent is a run of its preset in `OUT/work/`, evaluated as it goes; the best one is played again on fresh episodes, and
released into `OUT/NAME/` as a thin run: settings, the agent without optimisers, what the evaluation found, and a card. With
`--contests` nothing is trained where `benchmarks.contests` has: the last and the best agent of each of its runs are played, and the
one that did best is played again on fresh episodes.
`OUT/manifest.json` tells of all, with checksums: `OUT` is then what `load_zoo(name, source=OUT)` reads, there or behind an address.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contests import OURS
from benchmarks.tasks import at_least_one, commit
from relax_rl.commands.evaluate import EvaluateConfig, evaluate_run
from relax_rl.compute.serialization import write_json, write_text_atomic
from relax_rl.errors import CheckpointError
from relax_rl.runs.agent import load_agent
from relax_rl.runs.checkpoints import newest_first, step_of
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.loggers import read_csv
from relax_rl.runs.model_card import model_card
from relax_rl.runs.record import note, read_config, read_record, write_config
from relax_rl.runs.training import resume_config, train
from relax_rl.runs.zoo import MANIFEST, ZooAgent, digest, zoo_agents
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import of_the_call, with_settings
from relax_rl.settings.presets import is_atari, preset_config

__all__ = ["TASKS", "ZooTask", "main", "make"]

LICENCE = "MIT"
"""Of the weights."""
EVALUATIONS = 20
"""During a training."""
SELECTION = 20
"""Episodes that choose among agents of several runs."""


@dataclass(frozen=True, kw_only=True)
class ZooTask:
    """An agent to be made: its environment, and settings over those of the preset."""

    env: str
    total_steps: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What `load_zoo` knows it by: its environment, without the module that registers that."""
        return self.env.rpartition(":")[2].removeprefix("ALE/")


TASKS: tuple[ZooTask, ...] = (
    ZooTask(env="CartPole-v1", total_steps=150_000),
    ZooTask(env="Acrobot-v1", total_steps=200_000),
    ZooTask(env="InvertedPendulum-v5", total_steps=150_000),
    ZooTask(env="Pendulum-v1", total_steps=100_000),
    ZooTask(env="MountainCarContinuous-v0", total_steps=100_000),
    ZooTask(env="InvertedDoublePendulum-v5", total_steps=500_000),
    ZooTask(env="LunarLander-v3", total_steps=500_000),
    ZooTask(env="LunarLanderContinuous-v3", total_steps=500_000),
    ZooTask(env="Swimmer-v5", total_steps=1_000_000),
    ZooTask(env="Hopper-v5", total_steps=1_000_000),
    ZooTask(env="Walker2d-v5", total_steps=1_000_000),
    ZooTask(env="HalfCheetah-v5", total_steps=1_000_000),
    ZooTask(env="Ant-v5", total_steps=1_000_000),
    ZooTask(env="ALE/Pong-v5", total_steps=4_000_000),
)
"""Cheap ones first."""


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is asked for and not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the zoo")
    parser.add_argument("--only", nargs="+", choices=[task.name for task in TASKS], metavar="NAME", help="some agents")
    parser.add_argument("--work", type=Path, help="folder of the trainings (default: OUT/work)")
    parser.add_argument(
        "--contests", type=Path, help="folder of finished comparisons, whose runs are taken where they are long enough"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the trainings and of the evaluations")
    parser.add_argument("--episodes", type=at_least_one, default=100, help="of each evaluation")
    parser.add_argument("--anew", action="store_true", help="release again what is released already")
    given = parser.parse_args(argv)
    work = given.out / "work" if given.work is None else given.work
    for task in TASKS:
        if given.only and task.name not in given.only:
            continue
        if not given.anew and is_made(task, given.out):
            print(f"{task.name}: made before", flush=True)
            continue
        ended = [] if given.contests is None else runs_of_contest(task, given.contests)
        made = make(task, given.out, work, seed=given.seed, episodes=given.episodes, ended=ended)
        if made is None:
            print(f"{task.name}: interrupted; the same command goes on with it", flush=True)
            return
        print(f"{task.name}: {made.return_mean:.1f} ± {made.return_std:.1f}, {made.bytes:,} bytes", flush=True)


def is_made(task: ZooTask, out: Path) -> bool:
    """Whether the manifest tells of the agent, and the files are those that it means."""
    found = made_in(out).get(task.name)
    if found is None:
        return False
    sums = {found.file: found.sha256, found.config: found.config_sha256, found.evaluation: found.evaluation_sha256}
    return all((out / file).is_file() and digest((out / file).read_bytes()) == sum_ for file, sum_ in sums.items())


def made_in(out: Path) -> dict[str, ZooAgent]:
    """The agents of a zoo that is being made; none yet where there is no manifest."""
    return zoo_agents(out) if (out / MANIFEST).exists() else {}


def make(
    task: ZooTask, out: Path, work: Path, *, seed: int, episodes: int, ended: Sequence[RunFolder] = ()
) -> ZooAgent | None:
    """Train, or take the best of the runs that have ended, evaluate and release an agent; None if a signal has ended the training."""
    if ended:
        run, best = best_of(task, ended, seed=seed + 2_000)
    else:
        run = RunFolder(work / f"{task.name}-s{seed}")
        if not trained(task, run.path, seed):
            return None
        best = chosen(run)
    found = played(task, run, best, episodes=episodes, seed=seed + 1_000)
    made = released(task, run, out, best, found)
    agents = {**made_in(out), task.name: made}
    order = [task.name for task in TASKS]
    entries = [asdict(agents[name]) for name in sorted(agents, key=order.index)]
    write_json(out / MANIFEST, {"version": 1, "agents": entries})
    return made


def played(task: ZooTask, run: RunFolder, checkpoint: Path, *, episodes: int, seed: int) -> dict[str, Any]:
    """What an evaluation finds of an agent: the most likely actions, but samples on Atari."""
    own: dict[str, Any] = {"run": str(run.path), "checkpoint": str(checkpoint), "deterministic": not is_atari(task.env)}
    return evaluate_run(EvaluateConfig(episodes=episodes, seed=seed, **own))


def runs_of_contest(task: ZooTask, contests: Path) -> list[RunFolder]:
    """The runs of this package that `benchmarks.contests` has ended on the task, if they are as long as is asked for here."""
    runs = map(RunFolder, sorted((contests / task.env / "runs").glob(f"{task.env}-{OURS}-s*")))
    known = [(run, newest_first(run.checkpoints)) for run in runs]
    return [run for run, files in known if files and (step_of(files[0]) or 0) >= task.total_steps]


def best_of(task: ZooTask, runs: Sequence[RunFolder], *, seed: int) -> tuple[RunFolder, Path]:
    """Of the last and the best agent of each run that which does best on some episodes, and its run."""
    both = [(run, file) for run in runs for file in (newest_first(run.checkpoints)[0], run.best)]
    candidates = [(run, file) for run, file in both if file.exists()]
    means = [played(task, *each, episodes=SELECTION, seed=seed)["return_mean"] for each in candidates]
    return candidates[means.index(max(means))]


def trained(task: ZooTask, run: Path, seed: int) -> bool:
    """Train to the end, from where an earlier call has come to; False if a signal has ended it."""
    folder = RunFolder(run)
    begun = newest_first(folder.checkpoints)
    if begun and (step_of(begun[0]) or 0) >= task.total_steps:
        return True
    if begun:
        config = resume_config(run, total_steps=task.total_steps)
    else:
        interval = max(1, task.total_steps // EVALUATIONS)
        own: dict[str, Any] = {"run_dir": str(run), "seed": seed, "total_steps": task.total_steps, "tensorboard": False}
        own |= {"eval_interval": interval, "eval_episodes": 20, **task.settings}
        config = preset_config(task.env, **own)
    interrupted = train(config, command=f"python -m benchmarks.zoo, {task.name}").interrupted
    note(folder, commit=commit())
    return not interrupted


def chosen(run: RunFolder) -> Path:
    """The checkpoint to release: the last one if no evaluation during training was better than its, else the best one."""
    scores = read_csv(run.evaluations)["return_mean"]
    newest = newest_first(run.checkpoints)[0]
    return newest if scores and scores[-1] >= max(scores) else run.checkpoints / "best.safetensors"


def released(task: ZooTask, run: RunFolder, out: Path, checkpoint: Path, found: dict[str, Any]) -> ZooAgent:
    """Write the thin run of an agent; returns what the manifest says of it."""
    agent, _ = load_agent(run, str(checkpoint), "cpu")
    target = RunFolder(out / task.name)
    shutil.rmtree(target.path, ignore_errors=True)
    target.create()
    file = target.checkpoints / f"step_{agent.steps:09d}.safetensors"
    agent.save(file, optimizer=False)
    config = read_config(run)
    config = with_settings(config, of_the_call(config))
    write_config(target, config, {"command": f"python -m benchmarks.zoo, {task.name}"})
    kept = {name: x for name, x in found.items() if name not in ("checkpoint", "video", "video_return")}
    write_json(target.evaluation, kept)
    write_text_atomic(target.path / "README.md", card(task, config, agent.name, agent.steps, kept))
    content = file.read_bytes()
    return ZooAgent(
        name=task.name,
        env=task.env,
        estimator=agent.name,
        file=file.relative_to(out).as_posix(),
        sha256=digest(content),
        bytes=len(content),
        config=target.config.relative_to(out).as_posix(),
        config_sha256=digest(target.config.read_bytes()),
        evaluation=target.evaluation.relative_to(out).as_posix(),
        evaluation_sha256=digest(target.evaluation.read_bytes()),
        return_mean=float(found["return_mean"]),
        return_std=float(found["return_std"]),
        episodes=int(found["episodes"]),
        deterministic=bool(found["deterministic"]),
        seed=config.run.seed,
        steps=agent.steps,
        commit=str(read_record(run).get("commit", "unknown")),
        licence=LICENCE,
    )


def card(task: ZooTask, config: TrainConfig, estimator: str, step: int, found: dict[str, Any]) -> str:
    """The card of a model repository, for an agent of a zoo."""
    load = ["from relax_rl import load_zoo", "", f"agent = load_zoo({json.dumps(task.name)})"]
    return model_card(
        config, estimator, repo_id=task.name, step=step, evaluation=found, files=(), load=load, licence=LICENCE.lower()
    )


if __name__ == "__main__":
    try:
        main()
    except CheckpointError as error:
        raise SystemExit(f"error: {error}") from None

"""An agent in training: what a run keeps of it, and finds again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.backends.infos import info_means
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.runs.checkpoints import Checkpoint, CheckpointFolder
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.record import check_recorded, named_by_a_file, read_config
from relax_rl.runs.session import Clock
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import flat, whole, with_settings
from relax_rl.settings.naming import is_own

if TYPE_CHECKING:
    from torch import Tensor

    from relax_rl.agents import ActorCritic
    from relax_rl.agents.factory import NetworkFactory
    from relax_rl.envs import Episode

__all__ = ["OVER_EPISODES", "WINDOW", "AgentRun", "check_same_run", "load_agent", "steps_of"]

OVER_EPISODES = ("return_mean", "info/")
"""What the names of an agent's metrics begin with that are means over its last episodes: its run knows earlier ones too."""

WINDOW = 100
"""Episodes that the reported mean return is taken over."""


class AgentRun:
    """An agent, and what its run remembers beside it: the last episodes, the time it has taken, the best so far.

    A checkpoint of it is a file that `ActorCritic.load` reads, with more entries in its JSON.

    Args:
        agent: for counting, anything with `steps` and `episodes` will do.

    Attributes:
        best_evaluation: mean return of the best evaluation, by which the best agent is kept once there is one.
        best_return: the highest mean return of 100 training episodes, by which it is kept else.
        best_step: the step of the agent that is kept as the best.
    """

    def __init__(self, agent: ActorCritic) -> None:
        self.agent = agent
        self.episodes: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.infos: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.best_evaluation: float | None = None
        self.best_return: float | None = None
        self.best_step: int | None = None
        self.clock = Clock()

    @property
    def steps(self) -> int:
        """That the agent has learned from."""
        return self.agent.steps

    @property
    def return_mean(self) -> float:
        """Mean return of the last 100 episodes; NaN before the first one."""
        return math.fsum(r for r, _ in self.episodes) / len(self.episodes) if self.episodes else math.nan

    @property
    def length_mean(self) -> float:
        """Mean length of the last 100 episodes; NaN before the first one."""
        return sum(length for _, length in self.episodes) / len(self.episodes) if self.episodes else math.nan

    def info_means(self) -> dict[str, float]:
        """What infos come to over the last 100 episodes that told anything, by column: see `Episode.info`."""
        return info_means(self.infos)

    @property
    def success_rate(self) -> float:
        """Of the last 100 episodes that told of success; NaN where none has."""
        known = [info["success"] for info in self.infos if "success" in info]
        return math.fsum(known) / len(known) if known else math.nan

    @property
    def status(self) -> float | tuple[float, float]:
        """What a display shows: the mean return, with the rate of success beside it where episodes tell of any."""
        rate = self.success_rate if self.infos else math.nan
        return self.return_mean if math.isnan(rate) else (self.return_mean, rate)

    def reaches(self, target: float | None) -> bool:
        """Whether 100 episodes have finished with at least this mean return; nothing reaches None."""
        return target is not None and len(self.episodes) == WINDOW and self.return_mean >= target

    @property
    def best(self) -> float | None:
        """Mean return of the agent that is kept as the best, in evaluation or in training; None if none is."""
        return self.best_return if self.best_evaluation is None else self.best_evaluation

    def add(self, episodes: Iterable[Episode]) -> None:
        """Take in finished episodes, oldest first."""
        for episode in episodes:
            self.episodes.append((float(episode.return_), int(episode.length)))
            if episode.info:
                self.infos.append(dict(episode.info))

    def recall_best(self, folder: CheckpointFolder) -> None:
        """Go by the best agent on disk: it may have been kept after the checkpoint, or be there no longer."""
        if not folder.best.exists():
            self.best_evaluation = self.best_return = self.best_step = None
        with suppress(CheckpointError, KeyError, TypeError, ValueError, OverflowError):
            run = Checkpoint.read(folder.best).state["run"]
            name = "best_return" if run.get("best_evaluation") is None else "best_evaluation"
            found, step, known = float(run[name]), whole("best_step", run["best_step"], least=0), getattr(self, name)
            if math.isfinite(found) and (known is None or found > known):
                setattr(self, name, found)
                self.best_step = step

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds.

        Raises:
            TrainingDiverged: a weight is not finite.
        """
        tensors, agent = self.agent.state_dict()
        episodes = [list(episode) for episode in self.episodes]
        best = {name: getattr(self, name) for name in ("best_evaluation", "best_return", "best_step")}
        infos = {"infos": [dict(info) for info in self.infos]} if self.infos else {}
        return tensors, {"agent": agent, "run": {"seconds": self.clock.seconds, "episodes": episodes, **infos, **best}}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take back what `state` gave; without tensors, the agent is left to take those of another worker.

        Raises:
            CheckpointError: it does not fit.
        """
        saved = state.get("agent")
        if "run" not in state and isinstance(saved, Mapping) and saved.get("left_out"):
            raise CheckpointError(
                "the checkpoint was saved to act, without optimisers and the state of a run; load the agent and let it learn on "
                "(agent.learn), or begin a new run"
            )
        try:
            run = state["run"]
            seconds = float(run["seconds"])
            best, highest, step = run["best_evaluation"], run.get("best_return"), run.get("best_step")
            episodes = [(float(r), whole("length", length, least=0)) for r, length in run["episodes"]]
            infos = [{str(name): float(x) for name, x in info.items()} for info in run.get("infos", [])]
            best, highest = (
                float(each) if each is not None and math.isfinite(float(each)) else None for each in (best, highest)
            )
            step = None if step is None else whole("best_step", step, least=0)
            if not all(map(math.isfinite, [seconds, *(r for r, _ in episodes)])):
                raise ValueError("a number is not finite")
            agent = state["agent"]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise CheckpointError("the checkpoint is damaged: the state of its run cannot be read") from None
        self.clock = Clock(seconds)
        self.best_evaluation, self.best_return, self.best_step = best, highest, step
        self.episodes.extend(episodes)
        self.infos.extend(infos)
        if tensors:
            self.agent.load_state_dict(tensors, agent)


def steps_of(state: Mapping[str, Any], path: Path) -> int:
    """The steps that a checkpoint's agent has learned from; raises CheckpointError if it holds none."""
    try:
        return int(state["agent"]["steps"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise CheckpointError(f"{path} does not describe an agent") from None


def check_same_run(config: TrainConfig, estimator: str, state: Mapping[str, Any], path: Path) -> TrainConfig:
    """Refuse a checkpoint whose agent is not that of the run that `config.json` tells of.

    Returns the settings; those of a run of version 0.1 may say that it normalises, and are put right.

    Args:
        config: of the run.
        estimator: its name.
        state: the checkpoint's.
        path: of the checkpoint.

    Raises:
        CheckpointError: they differ in more than the device.
    """
    from relax_rl.agents.saving import described

    found = described(state.get("agent", {}), str(path))
    theirs = {**flat(found.config), "seed": found.seed, "estimator": found.name}
    for name in {"device"} | ({"normalize_obs"} if "normalizes" not in state["agent"] else set()):
        del theirs[name]
    check_recorded(theirs, {**flat(config.agent), "seed": config.run.seed, "estimator": estimator}, path)
    return with_settings(config, {"normalize_obs": found.config.normalize_obs})


def load_agent(
    folder: RunFolder, which: str, device: str, *, networks: NetworkFactory | None = None
) -> tuple[ActorCritic, Path]:
    """The agent of a run that a user asks for, and its file.

    Args:
        folder: of the run.
        which: "latest" (the newest that can be read), "best", "auto" (see `CheckpointFolder.find`), or the path of one.
        device: of the networks, by name.
        networks: the factory that the agent was made with, if that is the user's own.

    Raises:
        CheckpointError: there is no such checkpoint, or none that can be read.
        SettingsError: there is no such device, or the estimator is the user's own and has not been named.
    """
    from relax_rl.agents import AGENTS, ActorCritic
    from relax_rl.compute.devices import resolve_device

    found = CheckpointFolder(folder.checkpoints).find(which)
    agent = found.state.get("agent")
    if isinstance(agent, dict) and agent.get("estimator") not in AGENTS:
        named = read_config(folder).run.estimator
        if is_own(named):
            raise SettingsError(named_by_a_file("estimator", named))
    whole_agent = not (isinstance(agent, dict) and agent.get("left_out"))  # to be looked at, weights will do
    where = str(resolve_device(device))
    return ActorCritic.load(found.path, device=where, networks=networks, optimizer=whole_agent), found.path

"""An agent in training: what a run keeps of it, and finds again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.errors import CheckpointError
from relax_rl.runs.checkpoints import CheckpointFolder
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.record import check_recorded
from relax_rl.runs.session import Clock
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import flat, whole, with_settings

if TYPE_CHECKING:
    from torch import Tensor

    from relax_rl.agents import ActorCritic
    from relax_rl.agents.networks import NetworkFactory
    from relax_rl.envs import Episode

__all__ = ["WINDOW", "AgentRun", "check_same_run", "load_agent", "steps_of"]

WINDOW = 100
"""Episodes that the reported mean return is taken over."""


class AgentRun:
    """An agent, and what its run remembers beside it: the last episodes, the time it has taken, the best evaluation.

    A checkpoint of it is a file that `ActorCritic.load` reads, with more entries in its JSON.

    Args:
        agent: for counting, anything with `steps` and `episodes` will do.
    """

    def __init__(self, agent: ActorCritic) -> None:
        self.agent = agent
        self.episodes: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.best_evaluation: float | None = None
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

    def reaches(self, target: float | None) -> bool:
        """Whether 100 episodes have finished with at least this mean return; nothing reaches None."""
        return target is not None and len(self.episodes) == WINDOW and self.return_mean >= target

    def add(self, episodes: Iterable[Episode]) -> None:
        """Take in finished episodes, oldest first."""
        self.episodes.extend((float(episode.return_), int(episode.length)) for episode in episodes)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds.

        Raises:
            TrainingDiverged: a weight is not finite.
        """
        tensors, agent = self.agent.state_dict()
        episodes = [list(episode) for episode in self.episodes]
        run = {"seconds": self.clock.seconds, "best_evaluation": self.best_evaluation, "episodes": episodes}
        return tensors, {"agent": agent, "run": run}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take back what `state` gave; without tensors, the agent is left to take those of another worker.

        Raises:
            CheckpointError: it does not fit.
        """
        try:
            run = state["run"]
            seconds, best = float(run["seconds"]), run["best_evaluation"]
            episodes = [(float(r), whole("length", length, least=0)) for r, length in run["episodes"]]
            best = None if best is None else float(best)
            if not all(map(math.isfinite, [seconds, best or 0.0, *(r for r, _ in episodes)])):
                raise ValueError("a number is not finite")
            agent = state["agent"]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise CheckpointError("the checkpoint is damaged: the state of its run cannot be read") from None
        self.clock, self.best_evaluation = Clock(seconds), best
        self.episodes.extend(episodes)
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
        which: "latest" (the newest that can be read), "best", or the path of a checkpoint.
        device: of the networks, by name.
        networks: the factory that the agent was made with, if that is the user's own.

    Raises:
        CheckpointError: there is no such checkpoint, or none that can be read.
        SettingsError: there is no such device.
    """
    from relax_rl.agents import ActorCritic
    from relax_rl.compute.devices import resolve_device

    found = CheckpointFolder(folder.checkpoints).find(which)
    agent = found.state.get("agent")
    whole_agent = not (isinstance(agent, dict) and agent.get("left_out"))  # to be looked at, weights will do
    where = str(resolve_device(device))
    return ActorCritic.load(found.path, device=where, networks=networks, optimizer=whole_agent), found.path

"""What `train` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic

__all__ = ["TrainingResult"]


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run.

    Attributes:
        run_dir: the run's folder.
        agent: as trained.
        steps, episodes: that the agent has learned from, over all resumptions.
        return_mean: mean return of the last 100 episodes; NaN if none has finished.
        solved: whether that mean is over 100 episodes and reaches `stop_at_return`, or what the environment's
            registration calls solved.
        checkpoint: the last one.
        stopped_by: "total_steps", "return", "step" (`stop_at_step`), "callback", or the signal that asked for it: "SIGINT",
            "SIGTERM", "SIGHUP".
        best: the checkpoint of the agent with the highest mean return: of an evaluation, where there were any, else of 100
            training episodes; None if none has been kept.
        best_return, best_step: that mean, and the step of that agent.
        best_evaluated: whether that mean is of an evaluation.
    """

    run_dir: Path
    agent: ActorCritic
    steps: int
    episodes: int
    return_mean: float
    solved: bool
    checkpoint: Path
    stopped_by: str
    best: Path | None = None
    best_return: float | None = None
    best_step: int | None = None
    best_evaluated: bool = False

    @property
    def interrupted(self) -> bool:
        """Whether a signal has ended the run; a script goes on."""
        return self.stopped_by.startswith("SIG")

"""The process that hands a run's numbers on to Weights & Biases, MLflow or Trackio: `python -m relax_rl.runs.trackers NAME`.

It is told what to do in lines of JSON on standard input, `{"begin": ...}`, `{"log": ...}` and `{"end": ...}`, and answers in
such lines on standard output; what the libraries print goes to standard error. Nothing that one of them does, waiting for
a network and for nobody's password among it, is felt by the training; see `relax_rl.runs.tracking` for its side.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

__all__ = ["PATIENCE", "TRACKERS", "main"]

PATIENCE = 60.0
"""Seconds that a tracker is given to hand everything on once the run has ended; then it is killed."""

_LONGEST = 6000
"""Characters of a parameter in MLflow."""


class Tracked(Protocol):
    """A run as a tracker has it."""

    identity: str
    """By which it is found again."""
    place: str
    """Where it can be looked at, for people."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take numbers by name."""

    def end(self, step: int, outcome: Mapping[str, float], figure: str | None, code: int) -> None:
        """Take the outcome, and the learning curve as PNG; `code` is the exit code of the run."""


class WandbRun:
    """In Weights & Biases. Resumed offline it is a further folder under the same id, which `wandb sync` puts together."""

    def __init__(self, begin: Mapping[str, Any]) -> None:
        import wandb

        self._wandb, old = wandb, begin["identity"]
        self._run = wandb.init(
            project=begin["project"],
            name=begin["name"],
            id=old,
            resume=None if old is None else "allow",
            config=begin["settings"],
            dir=None if "WANDB_DIR" in os.environ else begin["folder"],
            settings=wandb.Settings(console="off"),
        )
        self.identity = str(self._run.id)
        parts = f"{shlex.quote(str(Path(self._run.dir).parents[1]))}/offline-run-*-{self.identity}"
        self.place = str(self._run.url or f"wandb sync {parts}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def end(self, step: int, outcome: Mapping[str, float], figure: str | None, code: int) -> None:
        self._run.summary.update(dict(outcome))
        if figure is not None:
            self._run.log({"learning_curve": self._wandb.Image(figure)}, step=step)
        self._run.finish(exit_code=code)


class MlflowRun:
    """In MLflow: the experiment is the project."""

    def __init__(self, begin: Mapping[str, Any]) -> None:
        os.environ.setdefault(
            "MLFLOW_ALLOW_FILE_STORE", "true"
        )  # a folder is used only where MLFLOW_TRACKING_URI names one
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import mlflow

        self._mlflow, old = mlflow, begin["identity"]
        experiment = mlflow.set_experiment(begin["project"])
        run = mlflow.start_run(run_id=old) if old is not None else mlflow.start_run(run_name=begin["name"])
        self.identity = str(run.info.run_id)
        uri = mlflow.get_tracking_uri()
        web = uri.startswith(("http:", "https:"))
        of_run = f"{uri.rstrip('/')}/#/experiments/{experiment.experiment_id}/runs/{self.identity}"
        self.place = of_run if web else f"mlflow ui --backend-store-uri {uri}"
        settings, before = {name: str(x)[:_LONGEST] for name, x in begin["settings"].items()}, run.data.params
        mlflow.log_params({name: x for name, x in settings.items() if name not in before})
        # A parameter is never changed there: what a resumption has changed stands among the tags.
        mlflow.set_tags({name: x for name, x in settings.items() if before.get(name, x) != x})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def end(self, step: int, outcome: Mapping[str, float], figure: str | None, code: int) -> None:
        if outcome:
            self._mlflow.log_metrics(dict(outcome), step=step)
        if figure is not None:
            self._mlflow.log_artifact(figure)
        self._mlflow.end_run("FINISHED" if code == 0 else "KILLED" if code > 128 else "FAILED")


class TrackioRun:
    """In Trackio, where a run is found again by its name."""

    def __init__(self, begin: Mapping[str, Any]) -> None:
        import trackio

        self._trackio, self.identity = trackio, begin["identity"] or begin["name"]
        resume = "never" if begin["identity"] is None else "allow"
        trackio.init(project=begin["project"], name=self.identity, config=begin["settings"], resume=resume)
        self.place = f"trackio show --project {begin['project']}"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._trackio.log(dict(metrics), step=step)

    def end(self, step: int, outcome: Mapping[str, float], figure: str | None, code: int) -> None:
        last = dict(outcome) if figure is None else {**outcome, "learning_curve": self._trackio.Image(figure)}
        if last:
            self._trackio.log(last, step=step)
        self._trackio.finish()


TRACKERS: dict[str, Callable[[Mapping[str, Any]], Tracked]] = {
    "wandb": WandbRun,
    "mlflow": MlflowRun,
    "trackio": TrackioRun,
}
"""By the names that settings have for them; packages are called the same."""


def main(name: str) -> int:
    """Do what standard input says, until it says that the run has ended, or ends itself; returns the exit code."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**words: str) -> None:
        print(json.dumps(words), file=answers, flush=True)

    threading.Thread(target=_leave_after, args=(os.getppid(),), daemon=True).start()
    run: Tracked | None = None
    step = 0
    for line in sys.stdin:
        if not line.endswith("\n"):
            break  # the training was killed at this word
        message = json.loads(line)
        try:
            if "begin" in message:
                run = TRACKERS[name](message["begin"])
                answer(identity=run.identity, place=run.place)
            assert run is not None
            if "log" in message:
                step = message["step"]
                run.log(step, message["log"])
            if "end" in message:
                run.end(message["step"], **message["end"])
                answer(ended="")
                return 0
        except (Exception, SystemExit) as error:
            said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            answer(error=f"{type(error).__name__}: {said}" if said else type(error).__name__)
            if run is None or "end" in message:
                return 1
    if run is not None:  # the training is gone without a word
        run.end(step, {}, None, 1)
    return 0


def _leave_after(parent: int) -> None:
    """Once the training is gone, leave within the time that there is, with whatever was started from here."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(PATIENCE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))

"""Trackers and loggers of the user's own hear of a VAE's run."""

from __future__ import annotations

from typing import Any

import pytest

from relax_rl.errors import LoggerFault, SettingsError
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.training import train_vae
from relax_rl.runs.loggers import GroupLogger, read_csv

SMALL: dict[str, Any] = {
    "data": "digits",
    "width": 4,
    "surrogate_width": 4,
    "steps": 40,
    "log_interval": 20,
    "batch_size": 8,
}
SMALL |= {"valid_images": 20, "eval_samples": 2, "tensorboard": False, "quiet": True, "compile": "off"}
HEARD: list[Any] = []


class Hears:
    """Keeps what it hears."""

    def __init__(self, config: Any) -> None:
        HEARD.append(config)

    def log(self, step: int, metrics: Any) -> None:
        HEARD.append((step, metrics))

    def close(self) -> None:
        HEARD.append("closed")


class Fails(Hears):
    """Takes nothing."""

    def log(self, step: int, metrics: Any) -> None:
        raise ValueError("full")


class FakeTracker(GroupLogger):
    """Stands for a tracker."""

    def __init__(self, name: str, folder: Any, *, project: str, settings: Any, resumed: bool) -> None:
        self.name = name
        HEARD.append((name, project, settings["width"], resumed))

    def log(self, row: Any, *, group: str | None = None) -> None:
        HEARD.append(("row", int(row["step"])))

    def finish(self, step: int, outcome: Any, *, figure: Any = None, code: int = 0) -> None:
        HEARD.append(("outcome", step, sorted(outcome), figure.name, code))


@pytest.fixture(autouse=True)
def nothing_heard() -> None:
    HEARD.clear()


def test_a_logger_hears_the_rows_and_the_outcome(tmp_path) -> None:
    config = VaeConfig(**SMALL, run_dir=str(tmp_path / "run"), logger=("tests.test_vae_logging:Hears",))
    result = train_vae(config)
    bounds = read_csv(tmp_path / "run" / "progress.csv")["valid_bound"]
    first, *rows, outcome, end = HEARD
    assert isinstance(first, VaeConfig) and end == "closed"
    assert [step for step, _ in rows] == [20, 40]
    assert [row["valid_bound"] for _, row in rows] == pytest.approx(bounds, rel=1e-5)
    assert outcome[0] == 40 and outcome[1]["best/valid_bound"] == max(bounds)
    assert result.evaluation is not None
    assert outcome[1]["evaluation/test_bound_2"] == result.evaluation["bounds"]["test_bound_2"]


def test_trackers_get_the_run_and_are_gone_on_with(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relax_rl.runs.reporting.Tracker", FakeTracker)
    monkeypatch.setattr("relax_rl.runs.reporting.require_trackers", lambda names: HEARD.append(tuple(names)))
    config = VaeConfig(**{**SMALL, "eval_samples": 0}, run_dir=str(tmp_path / "run"), track=("mlflow",))
    train_vae(config)
    names = ["best/valid_bound", "final/valid_bound"]
    begin = [("mlflow",), ("mlflow", "vae-digits", 4, False)]
    assert [*begin, ("row", 20), ("row", 40), ("outcome", 40, names, "learning_curve.png", 0)] == HEARD
    HEARD.clear()
    more = VaeConfig(
        **{**SMALL, "eval_samples": 0, "steps": 60},
        resume=str(tmp_path / "run"),
        track=("mlflow",),
        track_project="mine",
    )
    train_vae(more)
    assert HEARD[1] == ("mlflow", "mine", 4, True) and HEARD[-1][1] == 60


def test_what_cannot_be_is_told_before_and_what_fails_by_its_name(tmp_path) -> None:
    with pytest.raises(SettingsError, match="logger"):
        train_vae(VaeConfig(**SMALL, run_dir=str(tmp_path / "run"), logger=("tests.test_vae_logging:Nothing",)))
    assert not (tmp_path / "run").exists()
    config = VaeConfig(**SMALL, run_dir=str(tmp_path / "run"), logger=("tests.test_vae_logging:Fails",))
    with pytest.raises(LoggerFault, match=r"test_vae_logging:Fails raised ValueError: full of step 20; .* saved as"):
        train_vae(config)
    assert list((tmp_path / "run" / "checkpoints").iterdir())

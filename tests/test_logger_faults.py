"""Loggers that raise: one line that names them, and a run that can be gone on with."""

from __future__ import annotations

from typing import Any

import pytest

from relax_rl.errors import LoggerFault, SettingsError
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.loggers import read_csv
from relax_rl.runs.training import resume_config, train
from tests.steps import small_run


class Broken:
    """Takes a few rows, and then no more."""

    def __init__(self, config: Any = None, rows: int = 2) -> None:
        self.rows = rows

    def log(self, step: int, metrics: Any) -> None:
        self.rows -= 1
        if self.rows < 0:
            raise KeyError("no such board")

    def close(self) -> None:
        pass


class OfRows(Broken):
    """The same with a single argument."""

    def log(self, row: Any) -> None:  # type: ignore[override]
        super().log(0, row)


def unmakeable(config: Any) -> Any:
    """No logger."""
    raise ValueError("no key")


@pytest.mark.parametrize("kind", [Broken, OfRows])
def test_what_a_logger_raises_names_it_and_leaves_a_run(kind: type[Broken], tmp_path) -> None:
    told = rf"logger tests.test_logger_faults:{kind.__name__} raised KeyError: 'no such board' of step \d+; mend it"
    with pytest.raises(
        LoggerFault, match=rf"{told}, or leave it out; saved as .*step_\d+.*; go on with --resume"
    ) as error:
        train(small_run(tmp_path / "run", log_interval=40), loggers=[kind()])
    assert isinstance(error.value.__cause__, (LoggerFault, KeyError))
    assert train(resume_config(tmp_path / "run", total_steps=420)).steps >= 420


def test_the_command_tells_it_in_one_line(tmp_path, refused) -> None:
    args = ["--env", "CartPole-v1", "--hidden", "4", "--num-envs", "4", "--num-steps", "5", "--total-steps", "400"]
    args += ["--log-interval", "40", "--quiet", "--no-tensorboard", "--run-dir", str(tmp_path / "run")]
    line = refused("train", *args, "--logger", "tests.test_logger_faults:Broken")
    assert "logger tests.test_logger_faults:Broken raised KeyError: 'no such board' of step" in line
    assert "saved as" in line and "--resume" in line
    args[-1] = str(tmp_path / "other")
    line = refused("train", *args, "--logger", "tests.test_logger_faults:unmakeable")
    assert "logger tests.test_logger_faults:unmakeable cannot be made: ValueError: no key; mend it" in line


def test_one_that_cannot_be_closed_is_named_too(tmp_path) -> None:
    class Gone(Broken):
        def close(self) -> None:
            raise OSError("the pipe is gone")

    with pytest.raises(LoggerFault, match="Gone raised OSError: the pipe is gone when it was closed"):
        train(small_run(tmp_path / "run", total_steps=20), loggers=[Gone(rows=9)])
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_one_that_cannot_be_closed_hides_no_other_error(tmp_path) -> None:
    class Gone(Broken):
        def close(self) -> None:
            raise OSError("the pipe is gone")

    with (
        pytest.warns(UserWarning, match="Gone raised OSError: the pipe is gone when it was closed"),
        pytest.raises(LoggerFault, match=r"no such board' of step \d+; mend it, or leave it out; saved as"),
    ):
        train(small_run(tmp_path / "run", log_interval=40), loggers=[Gone()])


@pytest.mark.parametrize("hook", ["on_episode", "log"])
def test_no_episode_is_lost_to_what_a_listener_raises(hook: str, tmp_path) -> None:
    class Raises(Broken):
        def on_episode(self, agent: Any, info: Any) -> None:
            self.log(0, info)

    mine = Raises(rows=3)
    how: Any = {"callbacks": [mine]} if hook == "on_episode" else {"loggers": [mine]}
    with pytest.raises((LoggerFault, KeyError)):
        train(small_run(tmp_path / "run", log_interval=40), **how)
    last = train(resume_config(tmp_path / "run", total_steps=600)).agent
    assert len(read_csv(RunFolder(tmp_path / "run").episodes)["return"]) == last.episodes > 3


def test_what_a_logger_refuses_in_a_line_of_its_own_stays(tmp_path) -> None:
    class Refuses(Broken):
        def log(self, step: int, metrics: Any) -> None:
            raise SettingsError("no board by that name")

    with pytest.raises(SettingsError, match=r"^no board by that name$"):
        train(small_run(tmp_path / "run"), loggers=[Refuses()])

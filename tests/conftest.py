"""Shared set-up of the suite."""

from __future__ import annotations

import os
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads of child processes sleep in place of spinning

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
os.environ["RELAX_RL_CACHE"] = ""  # what earlier runs have compiled decides nothing here


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names a case of raw bytes by its argument, since bytes may differ (a time stamp, say) where two workers collect."""
    return argname if isinstance(val, bytes) else None


def seed_by(name: str) -> None:
    """Seeds the global generators, so that a test draws the same numbers in every run and in any order."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pytest_collectstart(collector: pytest.Collector) -> None:
    if isinstance(collector, pytest.Module):
        seed_by(collector.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> None:
    seed_by(f"{fixturedef.argname}{getattr(request, 'param', '')}")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    seed_by(pyfuncitem.nodeid)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small CartPole run of 200 steps with evaluations. Tests must not write to it."""
    from relax_rl.runs.training import train
    from tests.steps import small_run

    path = tmp_path_factory.mktemp("finished") / "run"
    train(small_run(path, total_steps=200, eval_interval=80, eval_episodes=2))
    return path


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of it to write to."""
    return Path(shutil.copytree(finished_run, tmp_path / "finished"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls the command line with arguments that it must refuse, and returns the one line in which it says why."""
    from relax_rl.commands.main import main

    def refuse(*args: str) -> str:
        capsys.readouterr()
        assert main(list(args)) == 2
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert out == "" and len(lines) == 1 and lines[0].startswith("error: "), err
        return lines[0]

    return refuse

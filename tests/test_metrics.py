"""The table of metrics: it explains what runs write, all of it, and nothing else."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from relax_rl.agents import UpdateInfo
from relax_rl.experiments.data import Dataset
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.toy.report import curves_csv
from relax_rl.experiments.vae import session, training
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.training import train_vae
from relax_rl.runs.training import train
from tests.fakes import ImageEnv
from tests.steps import PASSES, small_run, trained

DOCUMENT = Path(__file__).parent.parent / "docs" / "metrics.md"
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "relax": (
        "CartPole-v1",
        "relax",
        {"tensorboard": True, "surrogate_scale": "fitted", "value_replay": 1, "eval_interval": 40, "eval_episodes": 1},
    ),
    "relax, passes": ("CartPole-v1", "relax", {**PASSES, "target_kl": 0.1, "surrogate_steps": 2}),
    "relax, bounds": ("CartPole-v1", "relax", {**PASSES, "kl_bound": 0.01, "entropy_target": 0.9}),
    "lax": ("Pendulum-v1", "lax", {"normalize_obs": True, "normalize_reward": True}),
    "marginal": ("CartPole-v1", "marginal", {"entropy_coef": 0.01}),
    "a2c": ("CartPole-v1", "a2c", {}),
    "a2c, hl_gauss": ("CartPole-v1", "a2c", {"critic_loss": "hl_gauss"}),
    "relax, critic": ("CartPole-v1", "relax", {"surrogate_loss": "critic"}),
    "relax, critic over bins": (
        "CartPole-v1",
        "relax",
        {"surrogate_loss": "critic", "critic_loss": "hl_gauss", "residual_weight": "adaptive"},
    ),
    "reinforce, passes": ("CartPole-v1", "reinforce", PASSES),
}


def explained() -> dict[str, set[str]]:
    """Names in the table, by what writes them."""
    found: dict[str, set[str]] = defaultdict(set)
    writer = ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and "`" in cells[1]:
            writer = cells[0].replace("`", "") or writer
            names = set(re.findall(r"`([^`]+)`", cells[1]))
            assert not names & found[writer], f"{names} of {writer} stand there twice"
            assert cells[2], names
            found[writer] |= names
    return dict(found)


def columns(path: Path) -> set[str]:
    return set(path.read_text().splitlines()[0].split(","))


def tags(folder: Path) -> set[str]:
    """Names of numbers and pictures in TensorBoard."""
    events = EventAccumulator(str(folder))
    events.Reload()
    found = events.Tags()
    return {*found["scalars"], *found["images"]}


def of_any(names: set[str]) -> set[str]:
    """Names of vae with any estimator, and any layer."""
    found = (re.sub(r"^log_variance/.+", "log_variance/ESTIMATOR", name) for name in names)
    return {re.sub(r"/\d+$", "/LAYER", name) for name in found}


class Hears:
    """The names of what is heard before an update, and of episodes."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_rollout(self, agent: object, info: UpdateInfo) -> None:
        self.names |= set(info.metrics)

    on_episode = on_rollout


def test_everything_that_train_writes_is_explained_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relax_rl.runs.plotting.plot_curves", lambda *_, **__: None)
    table, written, hears = explained(), set(), Hears()
    for name, (env, estimator, settings) in CASES.items():
        run = tmp_path / name
        heard: list[set[str]] = []
        config = small_run(run, env, estimator, preset="none", total_steps=80, log_interval=40, **settings)
        train(config, callbacks=[lambda agent, info, heard=heard: heard.append(set(info.metrics)), hears])
        written |= columns(run / "progress.csv")
        groups = {name for name in columns(run / "progress.csv") if "/" in name} - {"estimate/variance_ratio"}
        assert heard[0] == groups | {"return_mean"}, name
    assert written == table["train: progress.csv"] and hears.names == table["train: callbacks alone"]
    told: list[dict[str, float]] = []
    trained("relax", env=ImageEnv, updates=1, told=told)
    assert set(told[0]) <= written
    run = tmp_path / "relax"
    assert columns(run / "episodes.csv") == table["train: episodes.csv"]
    assert columns(run / "evaluation.csv") == table["train: evaluation.csv"]
    alone = tags(run) - columns(run / "progress.csv")
    assert alone == table["train: TensorBoard alone"]
    assert columns(run / "progress.csv") - tags(run) == {"step"}
    assert {name.removeprefix("evaluation/") for name in alone if name.startswith("evaluation/")} == (
        columns(run / "evaluation.csv") - {"step"}
    )


def test_everything_that_vae_writes_is_explained_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 2, (30, 12), dtype=np.uint8)
    data = Dataset("stripes", images[:14], images[14:22], images[22:], shape=(4, 3), dynamic=False)
    monkeypatch.setattr(session, "load_data", lambda *_, **__: data)
    monkeypatch.setattr(training, "draw_curves", lambda *_: None)
    small: dict[str, Any] = {"layers": 2, "width": 4, "surrogate_width": 4, "batch_size": 4, "valid_images": 4}
    small |= {"steps": 10, "log_interval": 5, "eval_samples": 0, "quiet": True}
    table, written = explained(), set()
    cases: dict[str, dict[str, Any]] = {
        "relax": {"track_variances": ("nvil", "rebar")},
        "rebar": {"rebar_scope": "layer", "tensorboard": False},
        "vimco": {"tensorboard": False},
    }
    for name, settings in cases.items():
        train_vae(VaeConfig(estimator=name, run_dir=str(tmp_path / name), **{**small, **settings}))
        written |= columns(tmp_path / name / "progress.csv")
    assert of_any(written) == table["vae: progress.csv"]
    own = columns(tmp_path / "relax" / "progress.csv")
    assert own - tags(tmp_path / "relax") == {"step"}
    assert tags(tmp_path / "relax") - own == table["vae: TensorBoard alone"]


def test_everything_that_toy_writes_is_explained() -> None:
    assert set(curves_csv({}, ToyConfig()).strip().split(",")) == explained()["toy: curves.csv"]


ALGORITHMS = DOCUMENT.parent / "algorithms"
COMMON = {"step", "episodes", "seconds", "steps_per_second", "estimator", "seed"}
"""When and of whom a row is, for every algorithm."""
CONTROLS = {"temperature/LAYER", "eta/LAYER", "correction/LAYER"}


def listed(page: str) -> set[str]:
    """Names of metrics under that heading of an algorithm's page."""
    section = (ALGORITHMS / page).read_text(encoding="utf-8").split("\n## Metrics\n")[1].split("\n## ")[0]
    known = set().union(*explained().values())
    return set(re.findall(r"`([^`]+)`", section)) & known - {"estimator"}


def test_pages_of_agents_list_every_metric() -> None:
    table = explained()["train: progress.csv"] - COMMON
    assert not listed("a2c.md") & listed("relax.md")
    assert listed("a2c.md") | listed("relax.md") == table
    for page, other in (
        ("reinforce.md", "A2C](a2c.md"),
        ("lax.md", "RELAX](relax.md"),
        ("marginal.md", "RELAX](relax.md"),
    ):
        section = (ALGORITHMS / page).read_text(encoding="utf-8").split("\n## Metrics\n")[1].split("\n## ")[0]
        assert not listed(page) and f"Those of [{other}#metrics), under the same names." in section


@pytest.mark.parametrize("page", ["score_function", "control_variates", "pathwise", "antithetic", "multisample"])
def test_pages_of_families_list_every_metric(page: str) -> None:
    known = explained()
    table = (known["toy: curves.csv"] | known["vae: progress.csv"]) - COMMON
    assert listed(f"{page}.md") == (table if page == "control_variates" else table - CONTROLS)


def test_the_table_is_all_there_is() -> None:
    assert explained().keys() == {
        "train: progress.csv",
        "train: TensorBoard alone",
        "train: callbacks alone",
        "train: episodes.csv",
        "train: evaluation.csv",
        "vae: progress.csv",
        "vae: TensorBoard alone",
        "toy: curves.csv",
    }

"""Damaged run folders, and what a user does next: look at them, play them, go on with them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from relax_rl.agents import ActorCritic
from relax_rl.comparison.config import CompareConfig, write_settings
from relax_rl.comparison.plan import Folder
from relax_rl.comparison.task import OUTCOME
from relax_rl.compute.serialization import load_state, save_state
from relax_rl.errors import RelaxRLError
from relax_rl.runs.checkpoints import newest_first
from relax_rl.runs.training import train
from tests.attack import damage
from tests.attack.trials import Attack, called, gentle, lasting_folder, rng_of, untidy
from tests.attack.trials import attempt as within_limits
from tests.old_artefacts import FIXTURES
from tests.steps import small_run

__all__ = ["MUTATIONS", "template"]

OLD = FIXTURES / "0.1.0"
AGENTS = ("present", "present lax", *sorted(f"runs/{path.name}" for path in (OLD / "runs").iterdir()))
OTHERS = ("vae/relax", "vae/nvil", "compare")
ACTIONS = ("load", "load", "evaluate", "resume", "resume", "variance")
MORE = 60


def _attempt(seed: int, number: int, folder: Path) -> str | None:
    random = rng_of(seed, number)
    base = _base(random)
    run = Path(shutil.copytree(template(base), folder / "run", symlinks=True))
    raw, told = _damaged(run, random)
    action = _action(base, told, random)
    with gentle():
        if action != "load":
            # A run of a comparison that cannot be written is told in its report, with exit code 1.
            codes = (0, 1, 2) if base == "compare" else (0, 2)
            return untidy(called([*_command(base, run, action), *_more(base, action)]), codes=codes)
        found: dict[str, dict[str, torch.Tensor]] = {}
        ended = within_limits(lambda: _look(run, found))
    if (fault := untidy(ended)) is not None:
        return fault
    for name, tensors in found.items():
        if raw and not _same(tensors, _numbers(template(base) / "checkpoints" / name)):
            return "loaded, with other numbers than were saved"
    return None


def _about(seed: int, number: int) -> str:
    random = rng_of(seed, number)
    base = _base(random)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(template(base), Path(folder) / "run", symlinks=True))
        _, told = _damaged(run, random)
    return f"{base}: {told}; then {_action(base, told, random)}"


def _action(base: str, told: str, random: np.random.Generator) -> str:
    """What is done with a damaged folder: only a checkpoint is loaded by itself, and only a resumption reads tables."""
    if base in OTHERS or ".csv" in told:
        return "resume"
    return str(random.choice(ACTIONS if ".safetensors" in told else ACTIONS[2:]))


def _base(random: np.random.Generator) -> str:
    names = AGENTS if random.random() < 0.85 else OTHERS
    # Half of them as they are written now.
    return AGENTS[int(random.integers(2))] if names is AGENTS and random.random() < 0.5 else str(random.choice(names))


@cache
def template(base: str) -> Path:
    """The folder of a whole run, to be copied."""
    if base != "compare" and not base.startswith("present"):
        return OLD / base
    path = lasting_folder() / "run"
    if base == "compare":
        return _comparison(path)
    settings = {"eval_interval": 200, "eval_episodes": 1, "checkpoint_interval": 200, "log_interval": 40}
    if base == "present lax":
        settings |= {"normalize_obs": True, "normalize_reward": True, "value_replay": 2, "surrogate_scale": "fitted"}
    env, estimator = ("Pendulum-v1", "lax") if base == "present lax" else ("CartPole-v1", "relax")
    with gentle():
        train(small_run(path, env, estimator, preset="none", **settings))
    _without_clocks(path)
    return path


def _comparison(path: Path) -> Path:
    """The folder of a comparison of a single run, which is done."""
    config = CompareConfig(estimators=("a2c",), seeds=1, total_steps=400, num_workers=1)
    Folder(path).create()
    write_settings(path / "settings.json", config, "compare")
    shutil.copytree(template("runs/a2c"), path / "runs" / "CartPole-v1-a2c-s0")
    outcome = {"status": "finished", "steps": 400, "episodes": 17, "return_mean": 20.5}
    (path / "runs" / "CartPole-v1-a2c-s0" / OUTCOME).write_text(json.dumps(outcome))
    return path


def _without_clocks(run: Path) -> None:
    """Make a run's files the same bytes every time."""
    for path in (run / "checkpoints").iterdir():
        tensors, state = load_state(path)
        state["run"]["seconds"] = 1.5
        save_state(path, tensors, state)
    record = json.loads((run / "config.json").read_text())
    record["run"]["run_dir"], record["started"] = "run", "2026-01-01T00:00:00+0000"
    (run / "config.json").write_text(json.dumps(record, indent=2))
    for table in (run / "progress.csv", run / "evaluation.csv"):
        header, *rows = (line.split(",") for line in table.read_text().splitlines())
        timed = {index for index, name in enumerate(header) if "second" in name}
        kept = [["1.5" if index in timed else cell for index, cell in enumerate(row)] for row in rows]
        table.write_text("".join(f"{','.join(row)}\n" for row in [header, *kept]))


def _damaged(run: Path, random: np.random.Generator) -> tuple[bool, str]:
    """Damage one file of a folder, or two; whether no checksum was put right, and what was done."""
    told, raw = [], True
    for _ in range(1 + int(random.random() < 0.15)):
        how, path = _choice(run, random)
        try:
            told.append(f"{path.relative_to(run)}: {how(path, random)}")
        except (OSError, ValueError, KeyError, RuntimeError, RelaxRLError):  # it is damaged already
            told.append(f"{path.relative_to(run)}: as it was")
        raw &= how in (damage.damage_bytes, damage.damage_kind, damage.damage_table)
    return raw, "; ".join(told)


Damage = Callable[[Path, np.random.Generator], str]


def _choice(run: Path, random: np.random.Generator) -> tuple[Damage, Path]:
    files = sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
    draw = random.random()
    checkpoints = [path for path in files if path.suffix == ".safetensors"]
    if draw < 0.5 and checkpoints:
        ways = (
            damage.damage_bytes,
            damage.damage_repaired,
            damage.damage_tensors,
            damage.damage_state,
            damage.damage_state,
        )
        return ways[int(random.integers(len(ways)))], checkpoints[
            -1 if random.random() < 0.7 else int(random.integers(len(checkpoints)))
        ]
    if draw < 0.8:
        jsons = [path for path in files if path.suffix == ".json"]
        how = damage.damage_json if random.random() < 0.8 else damage.damage_bytes
        return how, jsons[int(random.integers(len(jsons)))]
    tables = [path for path in files if path.suffix == ".csv"]
    if draw < 0.9 and tables:
        how = damage.damage_table if random.random() < 0.8 else damage.damage_bytes
        return how, tables[int(random.integers(len(tables)))]
    things = sorted(path for path in run.rglob("*") if path.parent.is_dir() and not path.is_symlink())
    return damage.damage_kind, things[int(random.integers(len(things)))]


def _command(base: str, run: Path, action: str) -> list[str]:
    if base == "compare":
        return ["compare", "--resume", str(run), "--quiet"]
    if base.startswith("vae"):
        return ["vae", "--resume", str(run), "--steps", "210", "--quiet", "--eval-samples", "1"]
    if action == "resume":
        return ["--resume", str(run), "--quiet", "--total-steps", "600"]
    return [action, str(run)]


def _more(base: str, action: str) -> list[str]:
    if base in OTHERS:
        return []
    if action == "evaluate":
        return ["--episodes", "1", "--num-envs", "1", *_own(base)]
    if action == "variance":
        return ["--batches", "2", "--fit-batches", "0", "--states", "0", *_own(base)]
    return _own(base)


def _own(base: str) -> list[str]:
    """The environment, where it is of a module of the tests."""
    saved = json.loads((template(base) / "config.json").read_text())["env"]["env"]
    return ["--env", saved] if ":" in saved else []


def _look(run: Path, found: dict[str, dict[str, torch.Tensor]]) -> None:
    """Load the newest checkpoint, and keep its tensors under its name."""
    for path in newest_first(run / "checkpoints")[:1]:
        agent = ActorCritic.load(path)
        agent.predict(agent.observation_space.sample(), deterministic=True)
        found[path.name] = agent.state_dict()[0]


def _numbers(path: Path) -> dict[str, torch.Tensor]:
    return ActorCritic.load(path).state_dict()[0]


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


MUTATIONS = Attack(
    name="mutations",
    what="damaged checkpoints and run folders, loaded, played and gone on with",
    trials=1000,
    sample=60,
    attempt=_attempt,
    about=_about,
)

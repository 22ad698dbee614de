"""What the makers and the tests of `tests/fixtures` share: where files lie, and the one look inside an agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from relax_rl import ActorCritic

__all__ = ["FIXTURES", "blank_figures", "distance", "expectations", "newest", "policy_and_value", "settings", "trained"]

FIXTURES = Path(__file__).parent / "fixtures"


def newest(run: Path) -> Path:
    """The last checkpoint of a run."""
    return max((run / "checkpoints").glob("step_*.safetensors"))


def trained(run: Path) -> ActorCritic:
    """The agent in the last checkpoint of a run."""
    return ActorCritic.load(newest(run))


def settings(run: Path) -> dict[str, Any]:
    """Every setting of a run by name, whichever section of `config.json` it stands in."""
    record = json.loads((run / "config.json").read_text())
    return {name: value for section in ("run", "env", "agent") for name, value in record[section].items()}


def expectations(run: Path) -> dict[str, np.ndarray]:
    """Observations, and what the agent made of them when the run was written: `expected/NAME.safetensors`."""
    return load_file(run.parent.parent / "expected" / f"{run.name}.safetensors")


def policy_and_value(agent: ActorCritic, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parameters `[B, P]` of the action distribution, and values `[B]` in the unit of the value network.

    The one place, with `distance`, where these tests touch what users do not.
    """
    with torch.no_grad():
        encoded = agent.normalized(torch.from_numpy(np.ascontiguousarray(agent.observations.encode(obs))))
        return agent.policy(encoded).numpy(), agent.value(encoded).numpy()


def distance(one: ActorCritic, other: ActorCritic) -> float:
    """Between the weights of two policies, like `policy_and_value` a look inside."""
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    with torch.no_grad():
        return float(sum((x - y).square().sum() for x, y in pairs) ** 0.5)


def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write figures as files without a picture: drawing takes longer than the runs of these tests."""

    def blank(figure: object, file: Any, **_: object) -> None:
        write = file.write if hasattr(file, "write") else Path(file).write_bytes
        write(b"\x89PNG")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", blank)

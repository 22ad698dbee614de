"""The command `check`: one page of what an environment is, and what is wrong with it."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from relax_rl import check_env
from relax_rl.cli import main
from tests.fakes import GoldenEnv, TargetEnv
from tests.masked import SPACES, MaskedByMethod, MaskedEnv
from tests.test_structured_masks import Picky

HERE = "tests.test_check_command"


class Told(TargetEnv):
    """Masks by infos and a method, numbers and success in the infos; ends are Gymnasium's."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(spaces.Discrete(3))
        self.observation_space = spaces.Dict({"at": spaces.Box(0, 1, (2,)), "mask": spaces.Box(0, 1, (3,), np.int8)})

    def _dict(self, obs: Any) -> dict[str, Any]:
        return {"at": obs, "mask": np.ones(3, np.int8)}

    def action_masks(self) -> np.ndarray:
        return np.ones(3, bool)

    def reset(self, **kwargs: Any) -> Any:
        return self._dict(super().reset(**kwargs)[0]), {"action_mask": self.action_masks()}

    def step(self, action: Any) -> Any:
        obs, reward, _, over, _ = super().step(action)
        info = {"near": 0.5, "is_success": over, "path": np.zeros(3), "name": "x"}
        return self._dict(obs), -2.0 * reward, False, over, info


class Dying(GoldenEnv):
    def step(self, action: Any) -> Any:
        raise RuntimeError("out of paper")


class Leaving(GoldenEnv):
    def step(self, action: Any) -> Any:
        sys.exit(0)


class Wordy(GoldenEnv):
    observation_space = spaces.Text(3)

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Text(3)

    def see(self) -> str:
        return "abc"


class Broken(TargetEnv):
    def __init__(self) -> None:
        super().__init__(spaces.Discrete(2))

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return 5 * obs, np.nan, *rest


class Rich(TargetEnv):
    def __init__(self) -> None:
        super().__init__(spaces.Discrete(2))

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, 1e40, *rest


class Camera(Told):
    def __init__(self) -> None:
        super().__init__()
        camera = spaces.Box(0, 255, (40, 40, 3), np.uint8)
        self.observation_space = spaces.Dict({"at": spaces.Box(0, 1, (2,)), "camera": camera})

    def _dict(self, obs: Any) -> dict[str, Any]:
        return {"at": obs, "camera": np.zeros((40, 40, 3), np.uint8)}


class Walked(TargetEnv):
    """Keeps the actions of each instance."""

    walks: list[list[int]] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(spaces.Discrete(2), length=1000)
        self.walks.append([])
        self.walk = self.walks[-1]

    def step(self, action: Any) -> Any:
        self.walk.append(int(action))
        return super().step(action)


class Faulty(TargetEnv):
    """Has a fault by name, ends by itself after ten steps."""

    def __init__(self, fault: str) -> None:
        super().__init__(spaces.Discrete(2))
        here = spaces.Box(-np.inf, np.inf, (2,))
        self.fault, self.observation_space = fault, spaces.Dict({"at": here, "there": here})

    def _dict(self, obs: Any) -> dict[str, Any]:
        number = {"inf": np.inf, "nan": np.nan}.get(self.fault, 0.0)
        return {"at": obs, "there": np.full(2, number, np.float32)}

    def reset(self, **kwargs: Any) -> Any:
        obs = self._dict(super().reset(**kwargs)[0])
        return obs["at"] if self.fault == "reset" else (obs, {})

    def step(self, action: Any) -> Any:
        obs, reward, _, over, _ = super().step(action)
        obs, over = self._dict(obs), over and self.fault != "endless"
        if self.fault == "error":
            raise ZeroDivisionError("division by zero")
        return (obs, reward, over, {}) if self.fault == "step" else (obs, reward, over, False, {})


class Seedless(GoldenEnv):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


def page(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["check", *args, "--steps", "200"]) == code
    out, err = capsys.readouterr()
    assert err == "" and all(len(line) <= 80 for line in out.splitlines()) and out.count("\n") < 50
    return " ".join(out.split())


def test_what_an_environment_is(capsys: pytest.CaptureFixture[str]) -> None:
    told = page(capsys, "--env", f"{HERE}:Told", "--num-envs", "4")
    for words in (
        f"{HERE}:Told · usable",
        "observations Dict of at: Box (2,) float32 from 0 to 1, mask: Box (3,) int8 from 0 to 1",
        "seen as 5 numbers by an MLP",
        "actions Discrete(3)",
        "drawn from a categorical, estimator relax",
        "backend sync (no vector code of its own; Told is not known to be the same task in EnvPool), autoreset NEXT_STEP",
        "time limit none",
        "masks action_mask in the infos, action_masks(), the observation 'mask'; heeded",
        "infos success by is_success; numbers near (--info-keys); others path, name",
        "rewards -2.00 to 0.000, mean -",
        "mean length 10",
        "steps/s in 4 environments, without an agent",
        "preset default",
    ):
        assert words in told, told


def test_random_steps_do_not_come_round(capsys: pytest.CaptureFixture[str]) -> None:
    Walked.walks.clear()
    page(capsys, "--env", f"{HERE}:Walked", "--num-envs", "2")
    walks = [walk for walk in Walked.walks if len(walk) > 80]
    assert walks and all(walk[:-period] != walk[period:] for walk in walks for period in range(1, len(walk) - 20))


def test_what_a_known_one_is(capsys: pytest.CaptureFixture[str]) -> None:
    told = page(capsys)
    for words in (
        "CartPole-v1 · usable",
        "backend native (vector code of its own)",
        "time limit 500 steps",
        "rewards 1.00 to 1.00",
        "infos none",
        "preset classic-control nothing is wrong with it",
    ):
        assert words in told, told
    told = page(
        capsys, "--env", "CartPole-v1", "--frame-stack", "3", "--wrapper", "gymnasium.wrappers:TimeAwareObservation"
    )
    assert "backend sync (a wrapper needs it)" in told and "seen as 15 numbers" in told


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("CartPol-v1", "unknown environment 'CartPol-v1'; did you mean CartPole-v1"),
        (f"{HERE}:Dying", "RuntimeError: out of paper"),
        (f"{HERE}:Leaving", "SystemExit: 0"),
        (f"{HERE}:Wordy", "Text"),
        ("nowhere:Env", "cannot import 'nowhere'"),
        (f"{HERE}:Broken", "a reward is nan, which is no finite number of 32 bits and ends a run"),
        (f"{HERE}:Rich", "a reward is 1e+40, which is no finite number of 32 bits and ends a run"),
    ],
)
def test_what_no_agent_can_learn_in(env: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = page(capsys, "--env", env, code=2)
    assert f"{env} · not usable" in told and "what is wrong: - " in told and words in told


def faulty(fault: str, *args: str) -> tuple[str, ...]:
    return "--env", f"{HERE}:Faulty", "--env-kwargs", f"fault={fault}", *args


@pytest.mark.parametrize("number", ["inf", "nan"])
def test_observations_that_are_no_numbers(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = page(capsys, *faulty(number), code=2)
    words = f"the observation 'there' is {number}, which is no finite number of 32 bits and ends a run (in step 0)"
    assert "· not usable" in told and f"what is wrong: - {words}" in told
    assert "ends a run" not in page(capsys, *faulty(number, "--drop-keys", "there"))


def test_episodes_that_go_on_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    told = page(capsys, *faulty("endless"))
    assert "no episode ended in 200 random steps of all environments together, and there is no time limit" in told
    limit = ("gymnasium.wrappers:TimeLimit", "max_episode_steps=500")
    assert "add --wrapper gymnasium.wrappers:TimeLimit max_episode_steps=N" in told
    assert "nothing is wrong" in page(capsys, *faulty("endless", "--wrapper", *limit))
    assert "nothing is wrong" in page(capsys, *faulty("none"))


def test_an_error_is_said_once_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    told = page(capsys, *faulty("error"), code=2)
    assert told.count("ZeroDivisionError") == 1 and "division by zero (test_check_command.py:" in told


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (faulty("step"), "step of Faulty returned 4 values, expected (obs, reward, terminated, truncated, info): see"),
        (faulty("reset"), "reset of Faulty returned ndarray alone, expected (obs, info): see"),
        (("--env", f"{HERE}:Seedless"), "reset of Seedless takes no seed, expected reset(*, seed=None, options=None)"),
    ],
)
def test_an_older_api_is_named_and_nothing_that_follows_from_it(
    args: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = page(capsys, *args, code=2)
    assert f"what is wrong: - {words}" in told and told.count(" - ") == 1


def test_what_is_to_be_mended(capsys: pytest.CaptureFixture[str]) -> None:
    told = page(capsys, "--env", f"{HERE}:Broken", code=2)
    assert "the observation 'obs' leaves its space: 5, where at most 1 was declared" in told
    assert "a reward is nan, expected a finite number" in told


def test_an_image_among_others(capsys: pytest.CaptureFixture[str]) -> None:
    told = page(capsys, "--env", f"{HERE}:Camera")
    assert "camera by a CNN" in told and "nothing is wrong" in told


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("how", ["info", "method", "key"])
def test_only_allowed_actions_are_taken_where_there_are_masks(
    kind: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The environment refuses the others."""
    named = {"mask_key": "say.mask"} if how == "key" else {}
    env = MaskedByMethod(kind=kind, strict=True) if how == "method" else MaskedEnv(kind=kind, how=how)
    assert check_env(env, **named) == []
    name = "relax_rl_tests/MaskedByMethod-v0" if how == "method" else "relax_rl_tests/Masked-v0"
    settings = json.dumps({"kind": kind} | ({} if how == "method" else {"how": how}))
    key = ["--mask-key", "say.mask"] if how == "key" else []
    said = page(capsys, "--env", name, "--env-kwargs", settings, "--num-envs", "2", *key)
    assert "rewards" in said and "is not allowed" not in said and "unusable" not in said


def test_nested_masks_are_kept_to() -> None:
    assert check_env(Picky()) == []


def test_a_mask_that_is_none_is_a_fault() -> None:
    assert any("allows no action" in line for line in check_env(MaskedEnv(dead_at=2)))
    assert check_env(Unfit(), steps=5)[0].startswith("an action mask has shape (2,)")


class Unfit(TargetEnv):
    def __init__(self) -> None:
        super().__init__(spaces.Discrete(3))

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], {"action_mask": np.ones(2)}

"""Environments with one fault each, registered as `relax_rl_attack/NAME-v0`; all do it in their seventh step."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

__all__ = ["AT", "FAULTS", "HANGING", "Fault", "Faulty"]

AT = 7
"""The step of the fault, counted with the row that autoreset makes up: the first of the second episode."""
HANGING = "hanging"
"""The file that says, in the working folder, that one hangs."""
LENGTH = 5
"""Of an episode."""


@dataclass(frozen=True)
class Fault:
    """What an environment does, and how a run on it ends.

    Attributes:
        step, reset, close, make: change what it gives, or do something.
        ends: "told" in a line; "trains" to its end; "hangs" until it is killed; "either".
        when: what the line says of it: the step, the reset, or that it cannot be made.
    """

    step: Callable[[Faulty, tuple[Any, ...]], Any] | None = None
    reset: Callable[[Faulty, tuple[Any, ...]], Any] | None = None
    close: Callable[[], Any] | None = None
    make: Callable[[], Any] | None = None
    ends: Literal["told", "trains", "hangs", "either"] = "told"
    when: str = "in step 1 of its episode"


class Faulty(gym.Env):
    """Episodes of five steps with two numbers to see, and a fault."""

    observation_space: spaces.Space[Any] = spaces.Box(-1, 1, (2,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self, fault: str) -> None:
        self.fault = FAULTS[fault]
        self.steps = self.t = self.resets = 0
        self.seen = np.zeros(2, np.float32)
        if self.fault.make is not None:
            self.fault.make()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t, self.resets = 0, self.resets + 1
        given = self.seen.copy(), {}
        return given if self.fault.reset is None else self.fault.reset(self, given)

    def step(self, action: Any) -> Any:
        self.steps, self.t = self.steps + 1, self.t + 1
        given = (np.full(2, self.t / 10, np.float32), 1.0, False, self.t == LENGTH, {})
        if self.fault.step is None or self.steps < AT - 1:  # one row has been made up by then
            return given
        return self.fault.step(self, given)

    def close(self) -> None:
        if self.fault.close is not None:
            self.fault.close()


class TwoWords(Exception):
    """An error that is made of two arguments."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def _raise(error: BaseException | Callable[[], BaseException]) -> Callable[..., Any]:
    def act(*_: Any) -> Any:
        raise error if isinstance(error, BaseException) else error()

    return act


def _unsendable() -> BaseException:
    class Here(Exception):
        """Nobody else can import this."""

    error = Here("only here")
    error.where = lambda: None  # type: ignore[attr-defined]
    return error


def _deep(*_: Any) -> Any:
    return _deep()


def _with(index: int, value: Any) -> Callable[[Faulty, tuple[Any, ...]], Any]:
    """Give a value in a place of what `step` returns."""
    return lambda env, given: (*given[:index], value, *given[index + 1 :])


def _later(act: Callable[..., Any]) -> Callable[[Faulty, tuple[Any, ...]], Any]:
    """Do it at the second reset."""
    return lambda env, given: act(env, given) if env.resets == 2 else given


def _and(act: Callable[[Faulty], Any]) -> Callable[[Faulty, tuple[Any, ...]], Any]:
    """Do something beside giving what is right."""

    def step(env: Faulty, given: tuple[Any, ...]) -> Any:
        act(env)
        return given

    return step


def _hang(env: Faulty) -> None:
    Path(HANGING).touch()
    time.sleep(1000)


def _another_space(env: Faulty) -> None:
    env.observation_space = spaces.Box(-1, 1, (3,), np.float32)


def _odd_info(env: Faulty, given: tuple[Any, ...]) -> Any:
    odd = {"final_obs": 3, "episode": None, "x": np.zeros(env.steps), "": "é", "n": {"deep": [1, "2"]}, "r": 10**30}
    return (*given[:4], odd if env.steps % 2 else {"x": "text"})


FAULTS: Mapping[str, Fault] = {
    "Raises": Fault(step=_raise(RuntimeError("the motor is hot"))),
    "RaisesInLines": Fault(step=_raise(ValueError("one\ntwo\n\x1b[31mthree"))),
    "RaisesNothing": Fault(step=_raise(AssertionError())),
    "RaisesTwoWords": Fault(step=_raise(TwoWords("left", "right"))),
    "RaisesUnsendable": Fault(step=_raise(_unsendable)),
    "RaisesStop": Fault(step=_raise(StopIteration("no more"))),
    "RaisesMemory": Fault(step=_raise(MemoryError("all gone"))),
    "RaisesPipe": Fault(step=_raise(BrokenPipeError("the robot is gone"))),
    "Recurses": Fault(step=_deep),
    "Leaves": Fault(step=_and(lambda _: sys.exit())),
    "LeavesWithWords": Fault(step=_and(lambda _: sys.exit("enough"))),
    "Dies": Fault(step=_and(lambda _: os.kill(os.getpid(), signal.SIGKILL))),
    "Hangs": Fault(step=_and(_hang), ends="hangs"),
    "RaisesAtReset": Fault(reset=_raise(RuntimeError("no robot")), when="reset"),
    "LeavesAtReset": Fault(reset=_raise(SystemExit("no robot")), when="reset"),
    "RaisesAtSecondReset": Fault(reset=_later(_raise(RuntimeError("stuck"))), when="at its reset"),
    "OldReset": Fault(reset=lambda env, given: given[0], when="reset"),
    "ResetsToNothing": Fault(reset=lambda env, given: None, when="reset"),
    "WrongShapeAtReset": Fault(reset=lambda env, given: (np.zeros(5, np.float32), {}), when="reset"),
    "CannotBeMade": Fault(make=_raise(RuntimeError("no licence")), when="made"),
    "LeavesWhenMade": Fault(make=_raise(SystemExit(3)), when="made|sys.exit"),
    "WrongShape": Fault(step=_with(0, np.zeros(5, np.float32))),
    "Scalar": Fault(step=_with(0, 0.5), ends="either"),
    "Text": Fault(step=_with(0, "left")),
    "Nothing": Fault(step=_with(0, None)),
    "Double": Fault(step=_with(0, np.full(2, 0.25)), ends="trains"),
    "OutOfBounds": Fault(step=_with(0, np.full(2, 7.0, np.float32)), ends="trains"),
    "NaNSeen": Fault(step=_with(0, np.full(2, np.nan, np.float32))),
    "InfiniteSeen": Fault(step=_with(0, np.full(2, -np.inf, np.float32))),
    "NaNReward": Fault(step=_with(1, float("nan"))),
    "InfiniteReward": Fault(step=_with(1, float("inf"))),
    "NoReward": Fault(step=_with(1, None)),
    "TwoRewards": Fault(step=_with(1, np.ones(2))),
    "WordReward": Fault(step=_with(1, "good")),
    "HugeReward": Fault(step=_with(1, 10**400)),
    "OldStep": Fault(step=lambda env, given: (*given[:2], given[3], given[4])),
    "LongStep": Fault(step=lambda env, given: (*given, 1)),
    "GivesNothing": Fault(step=lambda env, given: None),
    "NoInfo": Fault(step=_with(4, None)),
    "OddInfo": Fault(step=_odd_info, ends="either", when=r"in step \d"),
    "UnsendableInfo": Fault(step=_with(4, {"f": lambda: None}), ends="either"),
    "EndsInWords": Fault(step=_with(2, "no"), ends="either"),
    "EndsInNumbers": Fault(step=_with(2, np.int64(1)), ends="trains"),
    "EndsAtOnce": Fault(step=_with(2, True), ends="trains"),
    "AnotherSpace": Fault(step=_and(_another_space), ends="trains"),
    "ClosesBadly": Fault(close=_raise(RuntimeError("stuck")), ends="trains"),
    "LeavesWhenClosed": Fault(close=_raise(SystemExit("bye")), ends="trains"),
    "Moves": Fault(step=_and(lambda _: os.chdir("/tmp")), ends="trains"),
    "Talks": Fault(step=_and(lambda _: print("x" * 10_000, file=sys.stderr)), ends="trains"),
    "Warns": Fault(step=_and(lambda _: warnings.warn("beware\nof this", stacklevel=2)), ends="trains"),
    "Seeds": Fault(step=_and(lambda _: np.random.seed(0)), ends="trains"),
}

for _name in FAULTS:
    gym.register(f"relax_rl_attack/{_name}-v0", Faulty, kwargs={"fault": _name}, disable_env_checker=True)

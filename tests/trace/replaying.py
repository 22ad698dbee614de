"""Recording a case, and taking its steps anew from what was recorded."""

from __future__ import annotations

import zlib
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from tests.trace import driver
from tests.trace.cases import AgentCase, Case, ToyCase, VaeCase
from tests.trace.experience import Arrays, columns_of, experience, images_of_bits, lively
from tests.workers import run_workers

__all__ = ["record", "replay"]

_LARGE = 2_000
"""Numbers from which on a tensor is made by its name in place of stored, and a sample of it recorded."""
_SAMPLE = 200


def record(case: Case) -> tuple[Arrays, Arrays]:
    """Inputs of a case, and what follows from them."""
    with driver.precision(case):
        inputs: Arrays = {}
        if isinstance(case, AgentCase):
            inputs = _experience_of(case)
        elif isinstance(case, VaeCase):
            inputs = {"images": images_of_bits(_seed(case), case.steps, case.batch_size)}
            inputs |= _initial(driver.VaeDriver(case))
    return inputs, replay(case, inputs)


def replay(case: Case, inputs: Arrays, *, compiled: bool = False) -> Arrays:
    """What follows from the inputs, `[steps, ...]` by name."""
    with driver.precision(case), driver.compilable() if compiled else nullcontext():
        if isinstance(case, ToyCase):
            return driver.toy_run(case)
        if case.workers == 1:
            return _steps(case, inputs, driver.ALONE, compiled)
        answers = run_workers(case.workers, partial(_steps_together, case, inputs))
    assert {kind for kind, _ in answers} == {"done"}, answers
    first, *others = (found for _, found in answers)
    for other in others:
        for name in first:
            if not name.startswith("metrics/"):
                np.testing.assert_array_equal(other[name], first[name], f"{name} of another worker")
    return dict(first)


def _steps_together(case: Case, inputs: Arrays, rank: int) -> Arrays:
    with driver.joined() as workers:
        return _steps(case, inputs, workers, False)


def _steps(case: Case, inputs: Arrays, workers: Any, compiled: bool) -> Arrays:
    """All steps, by one of the workers."""
    subject = _subject(case, compiled, workers)
    subject.start_from(_start(inputs))
    found: dict[str, list[Any]] = {}
    for step in range(case.steps):
        metrics = subject.update(_input_of(case, inputs, step, workers), 1_000 + step)
        for name, value in metrics.items():
            found.setdefault(f"metrics/{name}", []).append(value)
        for name, x in {**subject.parameters(), **subject.statistics()}.items():
            for key, part in _digest(name, x).items():
                found.setdefault(f"after/{key}", []).append(part)
    short = [name for name, each in found.items() if len(each) != case.steps]
    assert not short, f"not at every step: {short}"
    return {name: np.stack(each) for name, each in found.items()}


def _subject(case: Case, compiled: bool, workers: Any) -> driver.AgentDriver | driver.VaeDriver:
    if isinstance(case, AgentCase):
        return driver.AgentDriver(case, compiled=compiled, workers=workers)
    assert isinstance(case, VaeCase)
    return driver.VaeDriver(case, compiled=compiled, workers=workers)


def _input_of(case: Case, inputs: Arrays, step: int, workers: Any) -> Any:
    """The rollout, or the batch, of one step, as one of the workers sees it."""
    if not isinstance(case, AgentCase):
        return inputs["images"][step]
    arrays = _rollout_of(case, inputs, step)
    return columns_of(arrays, workers.rank, workers.count)


def _rollout_of(case: AgentCase, inputs: Arrays, step: int) -> Arrays:
    begin, end = step * case.num_steps, (step + 1) * case.num_steps
    names = ("action", "noise", "reward", "terminated", "truncated", "valid")
    arrays = {name: inputs[name][begin:end] for name in names if name in inputs}
    arrays["obs"] = inputs["obs"][begin : end + 1]
    index, episodes = inputs["final_index"], inputs["episodes"]
    here = (index[:, 0] >= begin) & (index[:, 0] < end)
    arrays["final_obs"], arrays["final_index"] = inputs["final_obs"][here], index[here] - [begin, 0]
    arrays["episodes"] = episodes[(episodes[:, 0] >= begin) & (episodes[:, 0] < end)]
    return arrays


def _experience_of(case: AgentCase) -> Arrays:
    """Rollouts whose actions are those of the policies that learn from the ones before."""
    inputs = experience(_seed(case), case.steps, case.num_steps, case.num_envs, images=case.images)
    subject = driver.AgentDriver(case)
    inputs |= _initial(subject)
    subject.start_from(_start(inputs))
    noises, actions = [], []
    for step in range(case.steps):
        arrays = _rollout_of(case, inputs, step)
        noise, action = subject.act(arrays["obs"][:-1], 500 + step)
        noises.append(noise)
        actions.append(action)
        subject.update({**arrays, "noise": noise, "action": action}, 1_000 + step)
    return {**inputs, "noise": np.concatenate(noises), "action": np.concatenate(actions)}


def _start(inputs: Arrays) -> Arrays:
    """All initial parameters."""
    stored = {name.partition("/")[2]: x for name, x in inputs.items() if name.startswith("initial/")}
    formed = {name.partition("/")[2]: tuple(x) for name, x in inputs.items() if name.startswith("formed/")}
    return {**stored, **{name: lively(name, shape) for name, shape in formed.items()}}


def _initial(subject: driver.AgentDriver | driver.VaeDriver) -> Arrays:
    """Where a case starts: at weights that are awake, as Adam's first steps make whole ones of any rounding at zero."""
    found: Arrays = {}
    kept = subject.kept()
    for name, x in subject.parameters().items():
        if name in kept:
            found[f"initial/{name}"] = x
        elif x.size >= _LARGE:
            found[f"formed/{name}"] = np.array(x.shape)
        else:
            found[f"initial/{name}"] = np.round(x + 0.2 * lively(name, x.shape), 4)
    return found


def _digest(name: str, x: np.ndarray) -> Arrays:
    """A tensor, or of a large one its norm and some of its numbers."""
    if x.size < _LARGE:
        return {name: x}
    flat = np.ascontiguousarray(x).ravel()
    norm = np.asarray(np.linalg.norm(flat.astype(np.float64)))
    return {f"{name}/norm": norm, f"{name}/some": flat[:: flat.size // _SAMPLE]}


def _seed(case: Case) -> int:
    return zlib.crc32(f"{case.name.removesuffix('-fixed-temperature')} {case.seed or ''}".encode())

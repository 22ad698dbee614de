"""Masks of Dict and Tuple actions: every form, estimates by enumeration, replayed rows, acting, and the environments' own."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from relax_rl import make_envs
from relax_rl.agents import AGENTS, RELAX, ActorCritic
from relax_rl.backends.snapshots import ForkableEnv
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError
from relax_rl.networks.actions import action_rows
from relax_rl.networks.masks import action_masks_for
from relax_rl.runs.evaluation import evaluate
from tests.oracles import assert_unbiased, collect
from tests.steps import PASSES, applied, off_policy, shake, watch_steps
from tests.test_masked_agents import batch_of, f

OBS = spaces.Box(-1, 1, (3,), np.float32)
GRIP, PLACE, LAMP = spaces.Discrete(3, start=4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)
HYBRID = spaces.Dict({"arm": spaces.Tuple((GRIP, spaces.Box(-1, 1, (1,), np.float32))), "place": PLACE, "lamp": LAMP})
CHOICES = spaces.Tuple((GRIP, spaces.Dict({"place": PLACE, "lamp": LAMP})))
BITS = spaces.Dict({"a": spaces.MultiBinary(1), "b": spaces.MultiBinary(2)})
SPACES = {"hybrid": HYBRID, "choices": CHOICES, "bits": BITS}
KINDS = pytest.mark.parametrize("kind", SPACES)
SMALL: dict[str, Any] = {"hidden": (8,), "surrogate_hidden": (8,), "num_steps": 6, "compile": "off"}
MASKS: dict[str, Any] = {  # keys of a dictionary are sorted: arm, lamp, place
    "hybrid": {"arm": ([1, 0, 1], None), "place": ([0, 1], [1, 1, 0]), "lamp": [0, 1]},
    "choices": ([1, 0, 1], {"place": ([0, 1], [1, 1, 0]), "lamp": [0, 1]}),
    "bits": {"b": [0, 1], "a": None},
}
ROWS = {
    "hybrid": [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0],
    "choices": [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0],
    "bits": [1, 1, 1, 0, 1, 1],
}


class Picky(gym.Env[Any, Any]):
    """Allows other choices in every step, says so in its infos, nested like its actions, and refuses the others."""

    observation_space = OBS

    def __init__(self, kind: str = "hybrid") -> None:
        self.action_space, self.masks = SPACES[kind], action_masks_for(SPACES[kind])

    def answer(self) -> tuple[np.ndarray, dict[str, Any]]:
        assert self.masks is not None
        row = self.np_random.random(self.masks.width) < 0.3
        for begin, size in zip(self.masks._starts, self.masks._sizes, strict=True):
            row[begin + self.np_random.integers(size)] = True
        self.row, parts = row, iter(np.split(row, self.masks._starts[1:]))
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {
            "action_mask": self.nested(self.action_space, parts)
        }

    def nested(self, space: Any, parts: Any) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self.nested(part, parts) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self.nested(part, parts) for part in space.spaces)
        if isinstance(space, spaces.Box):
            return None
        if isinstance(space, spaces.Discrete):
            return next(parts).astype(np.int8)
        if isinstance(space, spaces.MultiBinary):
            return np.stack([next(parts) for _ in range(space.n)]).astype(np.int8)
        return tuple(next(parts).astype(np.int8) for _ in space.nvec)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 5
        return self.answer()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        places = [int(x) for x in chosen(self.action_space, action)]
        assert self.row[self.masks._starts + places].all(), (action, self.row)  # type: ignore[union-attr]
        self.left -= 1
        obs, info = self.answer()
        return obs, float(sum(places)), self.left == 0, False, info


def chosen(space: Any, action: Any) -> list[int]:
    """The place of each choice of an action in its dimension."""
    if isinstance(space, spaces.Dict):
        return [place for key, part in space.spaces.items() for place in chosen(part, action[key])]
    if isinstance(space, spaces.Tuple):
        return [place for part, own in zip(space.spaces, action, strict=True) for place in chosen(part, own)]
    if isinstance(space, spaces.Box):
        return []
    return [int(x) for x in np.ravel(action) - (space.start if isinstance(space, spaces.Discrete) else 0)]


gym.register("relax_rl_tests/Picky-v0", Picky, disable_env_checker=True)


@KINDS
def test_every_form_is_the_same_row(kind: str) -> None:
    masks, row = action_masks_for(SPACES[kind]), np.array(ROWS[kind], bool)
    assert masks is not None and masks.width == len(row)
    for form in (MASKS[kind], row, row.astype(np.int8)):
        np.testing.assert_array_equal(masks.row(form), row)
        np.testing.assert_array_equal(masks.rows([form] * 3, 3), np.tile(row, (3, 1)))
    np.testing.assert_array_equal(masks.rows(np.tile(row, (2, 1)), 2), np.tile(row, (2, 1)))
    infos = {"action_mask": np.array([MASKS[kind], None], object), "_action_mask": np.array([True, False])}
    np.testing.assert_array_equal(masks.of_infos(infos, 2), [row, np.ones_like(row)])
    assert masks.stuck(np.stack([row, np.zeros_like(row)])).tolist() == [False, True]
    rng, action_space = np.random.default_rng(0), SPACES[kind]
    for _ in range(20):
        action = masks.sample(row, rng)
        assert action_space.contains(action) and row[masks._starts + chosen(action_space, action)].all()


def test_a_batch_may_be_nested_with_a_batch_in_each_leaf() -> None:
    masks = action_masks_for(HYBRID)
    assert masks is not None
    batch = {"arm": (np.array([[1, 0, 1], [0, 1, 0]]), None), "lamp": np.array([[0, 1], [1, 1]])}
    expected = [[1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(masks.rows(batch, 2), np.array(expected, bool))
    vector = {"action_mask": {**batch, "_lamp": np.array([True, True])}, "_action_mask": np.array([True, False])}
    np.testing.assert_array_equal(masks.of_infos(vector, 2), np.array([expected[0], [1] * 12], bool))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"legs": [1]}, r"has 'legs', expected one nested like Dict\(.*None where everything is allowed"),
        ({"arm": ([1, 0, 1],)}, "is not of 2 parts"),
        ({"arm": ([1, 0, 1], [1])}, r"is given for 'arm.1', which is no choice but Box\(.*; leave it None"),
        (
            {"lamp": [1, 0, 1]},
            r"at 'lamp' an action mask has shape \(3,\), expected \(2, 2\) or \(2,\) of MultiBinary\(2\)",
        ),
        ([1, 0, 1], r"has shape \(3,\), expected one nested like"),
        ({"place": ([1, 2], [1, 1, 1])}, "at 'place' an action mask holds 2"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(mask: Any, message: str) -> None:
    agent = RELAX(OBS, HYBRID, **SMALL)
    with pytest.raises(SettingsError, match=message):
        agent.predict(np.zeros(3, np.float32), action_masks=mask)


def test_spaces_without_a_choice_have_no_masks() -> None:
    assert action_masks_for(spaces.Dict({"a": spaces.Box(-1, 1, (2,))})) is None


# Gradients


def exact(agent: ActorCritic, params: Tensor, row: Tensor) -> Tensor:
    """`[P]` the gradient of E[f(a)] over what is allowed, listed outcome by outcome, by softmaxes in float64.

    Numbers are integrated by Gauss-Hermite quadrature.
    """
    params = params.double().requires_grad_()
    kind, sizes = agent.policy.kind, agent.policy.sizes
    numbers, (points, weights) = 0, (np.zeros(1), np.ones(1))
    if kind == "hybrid":
        numbers, sizes = sizes[0], sizes[1:]
        points, weights = np.polynomial.hermite_e.hermegauss(9)
        weights = weights / weights.sum()
    if kind == "bernoulli":
        factors = [torch.stack([torch.zeros(()).double(), x]) for x in params]
    else:
        factors = list(params[2 * numbers :].split(list(sizes)))
    own = torch.tensor_split(row, np.cumsum([len(x) for x in factors])[:-1].tolist())
    log_probs = [torch.where(m, x, -torch.inf).log_softmax(0) for x, m in zip(factors, own, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for picks in itertools.product(*(np.flatnonzero(m.numpy()).tolist() for m in own)):
        prob = torch.stack([x[k] for x, k in zip(log_probs, picks, strict=True)]).sum().exp()
        one_hot = [torch.eye(len(x)).double()[k] for x, k in zip(factors, picks, strict=True)]
        embedded = torch.tensor(picks).double() if kind == "bernoulli" else torch.cat(one_hot)
        for point, weight in zip(points, weights, strict=True):
            moved = params[:numbers] + params[numbers : 2 * numbers].exp() * float(point)
            total = total + float(weight) * prob * f(torch.cat([moved, embedded]))
    return torch.autograd.grad(total, params)[0]


@pytest.mark.parametrize("later", [False, True], ids=["own", "of an earlier policy"])
@pytest.mark.parametrize(
    ("estimator", "kind"), [("relax", "hybrid"), ("relax", "choices"), ("relax", "bits"), ("a2c", "hybrid")]
)
def test_estimates_are_unbiased_for_what_is_left(estimator: str, kind: str, later: bool) -> None:
    agent = AGENTS[estimator](OBS, SPACES[kind], **SMALL)
    shake(agent)
    row, generator = torch.tensor(ROWS[kind], dtype=torch.bool), torch.Generator().manual_seed(3)
    params = 0.7 * torch.randn(agent.policy.num_params, generator=generator)
    acting = params + (0.3 * torch.randn(params.shape, generator=generator) if later else 0.0)

    def draw(rows: int) -> Tensor:
        batch = batch_of(agent, kind, acting.expand(rows, -1), row.expand(rows, -1))
        if later:
            old = agent.policy.distribution(acting.expand(rows, -1), batch.mask).log_prob(batch.action)
            batch = off_policy(agent, batch, old)
        return applied(agent, batch, params.expand(rows, -1), off_policy=later)

    assert_unbiased(collect(draw, 125_000), exact(agent, params, row), power=0.1)


# In environments


@KINDS
@pytest.mark.parametrize(
    ("estimator", "settings"),
    [("relax", {"surrogate_steps": 2}), ("relax", PASSES), ("a2c", {**PASSES, "memory": "gru", "memory_size": 4})],
)
def test_agents_choose_what_is_allowed_and_replay_it(estimator: str, settings: dict[str, Any], kind: str) -> None:
    """The environments refuse what they do not allow."""
    with make_envs("relax_rl_tests/Picky-v0", num_envs=3, kind=kind, vectorization="sync") as envs:
        agent = AGENTS[estimator](envs.single_observation_space, envs.single_action_space, **{**SMALL, **settings})
        shake(agent)
        steps = watch_steps(agent)
        agent.learn(envs, 80)
        for step in steps:
            batch = step.batch
            assert batch.mask is not None and batch.mask.shape == (len(batch.obs), len(ROWS[kind]))
            if not agent.networks.recurrent:
                dist = agent.policy.distribution(agent.policy(batch.obs).detach(), batch.mask)
                assert dist.log_prob(batch.action).isfinite().all()  # type: ignore[attr-defined]
        assert evaluate(agent, envs, episodes=4, seed=0, deterministic=False) is not None
    assert all(bool(x.isfinite().all()) for x in agent.networks.parameters())


@KINDS
def test_predict_takes_one_mask_or_many(kind: str) -> None:
    agent, masks = RELAX(OBS, SPACES[kind], **SMALL), action_masks_for(SPACES[kind])
    assert masks is not None
    row = np.array(ROWS[kind], bool)
    for deterministic in (True, False, False, False):
        one, _ = agent.predict(np.zeros(3, np.float32), deterministic=deterministic, action_masks=MASKS[kind])
        assert row[masks._starts + chosen(SPACES[kind], one)].all()
        many, _ = agent.predict(np.zeros((9, 3), np.float32), None, None, deterministic, [MASKS[kind]] * 9)
        for each in action_rows(many, 9):
            assert row[masks._starts + chosen(SPACES[kind], each)].all()


def test_vectors_and_forks_heed_them_too() -> None:
    with VectorEnvs(
        SyncVectorEnv([Picky] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    ) as envs:  # nested infos of a vector
        agent = RELAX(envs.single_observation_space, envs.single_action_space, **SMALL)
        assert agent.learn(envs, 40).steps >= 40
    env = ForkableEnv("relax_rl_tests/Picky-v0", kind="choices")
    assert env.copies and env.mask is not None and env.mask.shape == (12,)


class Saying(gym.Env[Any, Any]):
    """Gives the masks that it is told, in its infos."""

    observation_space = OBS
    action_space = spaces.Dict(
        {
            "gear": spaces.Discrete(3),
            "thrust": spaces.Box(-1, 1),
            "turns": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1)]),
        }
    )

    def __init__(self, mask: Any) -> None:
        self.mask = mask

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {"action_mask": self.mask}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(3, np.float32), 0.0, False, False, {"action_mask": self.mask}


GEAR = np.array([1, 0, 1], np.int8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (({"gear": GEAR, "thrust": None}, {"gear": GEAR, "thrust": None}), ([1, 0, 1, 1, 1], [1, 0, 1, 1, 1])),
        (({"gear": None}, {"gear": None}), ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1])),
        (({"gear": None}, {"gear": GEAR}), ([1, 1, 1, 1, 1], [1, 0, 1, 1, 1])),
        (({"gear": GEAR}, {}), ([1, 0, 1, 1, 1], [1, 1, 1, 1, 1])),
        (({}, {"turns": ([0, 1], None)}), ([1, 1, 1, 1, 1], [1, 1, 1, 0, 1])),
        (({"turns": None}, {"turns": ([0, 1], None)}), ([1, 1, 1, 1, 1], [1, 1, 1, 0, 1])),
    ],
)
def test_vectors_made_elsewhere_may_leave_masks_out(given: Any, expected: Any) -> None:
    made = [lambda mask=mask: Saying(mask) for mask in given]
    with warnings.catch_warnings(), VectorEnvs(SyncVectorEnv(made)) as envs:
        warnings.simplefilter("error")
        np.testing.assert_array_equal(envs.action_mask, np.array(expected, bool))


def test_bins_have_no_masks() -> None:
    with pytest.raises(
        SettingsError,
        match=r"are those of .* by bins, which nothing says how to mask; leave action_masks at auto, or bins at 0",
    ):
        make_envs("Pendulum-v1", num_envs=1, vectorization="sync", bins=3, action_masks="info")

"""Masks of actions by every convention: read in every form, and those of the observation at hand under every autoreset."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from relax_rl import A2C, make_envs
from relax_rl.backends.single import SingleEnv
from relax_rl.envs import VectorEnvs
from relax_rl.errors import EnvironmentFault, SettingsError
from relax_rl.networks.masks import ActionMasks, action_masks_for
from relax_rl.settings.config import EnvConfig, TrainConfig
from relax_rl.settings.fields import from_json, to_json
from relax_rl.settings.options import parse
from tests.fakes import GoldenEnv, vector_of
from tests.masked import SPACES, MaskedByMethod, MaskedEnv, row_of

MODES = pytest.mark.parametrize("mode", list(AutoresetMode))
BITS, DIMS = spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3])
SQUARE = spaces.MultiDiscrete([[2, 2], [2, 3]])
FORMS: list[tuple[spaces.Space[Any], Any, list[int]]] = [
    (spaces.Discrete(3, start=7), np.array([1, 0, 1], np.int8), [1, 0, 1]),
    (spaces.Discrete(3), [True, False, True], [1, 0, 1]),
    (spaces.Discrete(3), np.array([[1.0, 0.0, 0.0]]), [1, 0, 0]),
    (DIMS, np.array([1, 0, 1, 1, 0]), [1, 0, 1, 1, 0]),
    (DIMS, (np.array([1, 0]), np.array([1, 1, 0])), [1, 0, 1, 1, 0]),
    (DIMS, [[True, False], [True, True, False]], [1, 0, 1, 1, 0]),
    (DIMS, np.array([[1, 0, 0], [1, 1, 0]]), [1, 0, 1, 1, 0]),
    (spaces.MultiDiscrete([2, 2]), np.array([[1, 0], [0, 1]]), [1, 0, 0, 1]),
    (SQUARE, (([1, 0], [1, 1]), ([0, 1], [1, 0, 0])), [1, 0, 1, 1, 0, 1, 1, 0, 0]),
    (BITS, np.array([1, 0]), [1, 1, 1, 0]),
    (BITS, np.array([[1, 0], [0, 1]]), [1, 0, 0, 1]),
    (BITS, np.array([1, 0, 0, 1]), [1, 0, 0, 1]),
]


@pytest.mark.parametrize(("space", "mask", "expected"), FORMS)
def test_every_form_of_a_mask_is_read(space: Any, mask: Any, expected: list[int]) -> None:
    masks = ActionMasks(space)
    row = masks.row(mask)
    assert row.dtype == np.bool_ and row.tolist() == [bool(x) for x in expected] and masks.width == len(row)
    assert np.array_equal(masks.rows([mask, mask], 2), [row, row])
    together = np.full(3, None, dtype=object)
    together[0] = together[2] = mask
    infos = {"action_mask": together, "_action_mask": np.array([True, False, True])}
    assert np.array_equal(masks.of_infos(infos, 3), [row, np.ones_like(row), row])
    assert masks.of_infos({}, 2).all()


@pytest.mark.parametrize(
    ("space", "mask", "told"),
    [
        (spaces.Discrete(3), [1, 0], r"has shape \(2,\), expected \(3,\)"),
        (spaces.Discrete(3), [0.0, -np.inf, 0.0], "holds -inf, expected"),
        (spaces.Discrete(3), ["a", "b", "c"], "is <U1"),
        (spaces.Discrete(3), "abc", "is for 1 choices"),
        (spaces.Discrete(3), None, "is for 1 choices"),
        (DIMS, ([1, 0, 1], [1, 1]), "is for 3, 2 choices"),
        (BITS, [1, 0, 1], r"expected \(2, 2\) or \(2,\)"),
    ],
)
def test_what_is_no_mask_is_told(space: Any, mask: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        ActionMasks(space).row(mask)


def test_batches_have_a_mask_for_each() -> None:
    masks = ActionMasks(DIMS)
    assert masks.rows(np.ones(5), 1).shape == (1, 5)
    with pytest.raises(SettingsError, match="there are 3 action masks, expected 2"):
        masks.rows(np.ones((3, 5)), 2)
    rows = np.array([[1, 0, 0, 0, 0], [1, 0, 0, 1, 0], [0, 0, 1, 1, 1]], bool)
    assert masks.stuck(rows).tolist() == [True, False, True]
    assert ActionMasks(spaces.Discrete(5)).stuck(rows & False).all()
    assert action_masks_for(spaces.Box(-1, 1, (2,))) is None


def check(envs: VectorEnvs, kind: str, steps: int = 30) -> None:
    """Steps with allowed actions: the masks are those of the observations that they are chosen on."""
    rng, space = np.random.default_rng(0), SPACES[kind]
    masks = ActionMasks(space)  # type: ignore[arg-type]
    for _ in range(steps):
        place = envs.obs["place"] if isinstance(envs.obs, dict) else envs.obs
        over = envs._resetting
        for n in range(envs.num_envs):
            expected = np.ones(masks.width, bool) if over[n] else row_of(space, place[n])
            assert envs.action_mask is not None and np.array_equal(envs.action_mask[n], expected), place[n]
        assert envs.action_mask is not None
        weight = np.where(envs.action_mask, rng.random(envs.action_mask.shape), -1.0)
        parts = np.split(weight, np.cumsum(masks._sizes)[:-1], axis=1)
        action = np.stack([part.argmax(1) for part in parts], 1)
        start = space.start if isinstance(space, spaces.Discrete) else 0
        envs.step(action[:, 0] + start if isinstance(space, spaces.Discrete) else action)


@MODES
@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("how", ["info", "method", "key"])
def test_masks_are_those_of_the_observation_at_hand(mode: AutoresetMode, kind: str, how: str) -> None:
    def make(index: int) -> Any:
        return MaskedByMethod(index, kind) if how == "method" else MaskedEnv(index, kind, how)

    vector = vector_of([lambda i=i: make(i) for i in range(3)], mode)
    with VectorEnvs(vector, mask_key="say.mask" if how == "key" else None) as envs:
        check(envs, kind)


@pytest.mark.parametrize(("how", "mode"), [("info", AutoresetMode.SAME_STEP), ("method", AutoresetMode.NEXT_STEP)])
def test_masks_of_worker_processes(how: str, mode: AutoresetMode) -> None:
    env: Any = MaskedByMethod if how == "method" else MaskedEnv
    vector = vector_of([lambda i=i: env(i, "multi_discrete") for i in range(2)], mode, "async")
    with VectorEnvs(vector, action_masks=how) as envs:  # type: ignore[arg-type]
        check(envs, "multi_discrete", 12)


@pytest.mark.parametrize("name", ["Masked", "MaskedByMethod"])
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_masks_of_registered_environments(name: str, mode: str) -> None:
    made: dict[str, Any] = {"num_envs": 1, "autoreset_mode": mode, "kind": "multi_discrete"}
    with make_envs(f"relax_rl_tests/{name}-v0", **made) as envs:
        check(envs, "multi_discrete")
    with make_envs(f"relax_rl_tests/{name}-v0", action_masks="off", **made) as envs:
        assert envs.action_mask is None
    if name == "MaskedByMethod":
        with make_envs(f"relax_rl_tests/{name}-v0", action_masks="method", vectorization="async", **made) as envs:
            check(envs, "multi_discrete", 10)


def test_a_mask_may_be_taken_out_of_the_observations() -> None:
    made: dict[str, Any] = {"num_envs": 1, "how": "key", "mask_key": "say.mask"}
    with make_envs("relax_rl_tests/Masked-v0", **made) as envs:
        check(envs, "discrete")
    with make_envs("relax_rl_tests/Masked-v0", drop_keys=["say"], **made | {"mask_key": None}) as envs:
        assert envs.action_mask is None
    with make_envs("relax_rl_tests/Masked-v0", drop_keys=["say.mask"], **made) as envs:
        assert envs.single_observation_space == spaces.Dict({"place": MaskedEnv().observation_space})
        check(envs, "discrete")
    with pytest.raises(SettingsError, match=r"mask_key names 'mask', but .* have place, say.mask"):
        make_envs("relax_rl_tests/Masked-v0", **made | {"mask_key": "mask"})


class Native(VectorEnv):
    """Vector code of somebody's own: masks without markers in the infos, or a method of its own."""

    def __init__(self, how: str) -> None:
        self.num_envs, self.how, self.t = 2, how, 0
        self.metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.observation_space = spaces.Box(0, 1, (2, 1), np.float32)
        self.single_action_space, self.action_space = spaces.Discrete(2), spaces.MultiDiscrete([2, 2])
        if how == "method":
            self.action_masks = lambda: self.masks()

    def masks(self) -> np.ndarray:
        return np.array([[True, False], [self.t % 2 == 0, True]])

    def answer(self) -> dict[str, Any]:
        return {"action_mask": self.masks()} if self.how == "info" else {}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros((2, 1), np.float32), self.answer()

    def step(self, actions: Any) -> Any:
        self.t += 1
        no = np.zeros(2, bool)
        return np.zeros((2, 1), np.float32), np.zeros(2), no, no, self.answer()


@pytest.mark.parametrize("how", ["info", "method"])
def test_masks_of_native_vector_code(how: str) -> None:
    envs = VectorEnvs(Native(how))
    assert envs.action_mask is not None and envs.action_mask.tolist() == [[True, False], [True, True]]
    envs.step(np.zeros(2, int))
    assert envs.action_mask.tolist() == [[True, False], [False, True]]
    assert VectorEnvs(Native("none")).action_mask is None


@pytest.mark.parametrize(("dead_at", "when"), [(0, "at its reset"), (2, "in step 2 of its episode")])
@MODES
def test_a_row_without_an_action_is_an_error_of_the_environment(mode: AutoresetMode, dead_at: int, when: str) -> None:
    def learn() -> None:
        cycle = [lambda i=i: MaskedEnv(i, "multi_discrete", dead_at=dead_at) for i in range(2)]
        with VectorEnvs(vector_of(cycle, mode), env_id="Mine-v0", first_env=4) as envs:
            A2C(envs.single_observation_space, envs.single_action_space, hidden=(4,)).learn(envs, 100)

    with pytest.raises(EnvironmentFault, match=rf"^environment 4 of Mine-v0 gave an action mask .* {when}, expected"):
        learn()


def test_what_does_not_go_together_is_told() -> None:
    golden = lambda **how: VectorEnvs(vector_of([GoldenEnv], AutoresetMode.NEXT_STEP), **how)  # noqa: E731
    for how, told in (
        ({"action_masks": "info"}, "'info', but GoldenEnv gives no action_mask"),
        ({"action_masks": "method"}, "'method', but GoldenEnv has no method"),
        ({"action_masks": "always"}, "'always', expected one of auto, off, info, method"),
        ({"action_masks": "off", "mask_key": "x"}, "expected auto beside a mask_key"),
        ({"mask_key": "x"}, "have one leaf without a name"),
    ):
        with pytest.raises(SettingsError, match=told):
            golden(env_id="GoldenEnv", **how)
    for asked in ({"action_masks": "info"}, {"action_masks": "method", "bins": 3}):
        with pytest.raises(SettingsError, match="asked for, but the actions of Pendulum-v1 are those of"):
            make_envs("Pendulum-v1", num_envs=1, vectorization="sync", **asked)  # type: ignore[arg-type]
    with make_envs("Pendulum-v1", num_envs=1, vectorization="sync", bins=3) as envs:
        assert envs.action_mask is None
    assert golden().action_mask is None


class Unfit(GoldenEnv):
    """Masks of three actions where there are two, from a step on."""

    def __init__(self, after: int) -> None:
        super().__init__(cycle=((9, "truncated"),))
        self.after = after

    def reset(self, **how: Any) -> Any:
        return super().reset(**how)[0], {"action_mask": np.ones(2 + (self.after == 0))}

    def step(self, action: Any) -> Any:
        *answer, _ = super().step(action)
        return *answer, {"action_mask": np.ones(2 + (self.t >= self.after))}


def test_masks_that_do_not_fit_are_left_out_with_a_word_or_refused() -> None:
    for wrap in (SingleEnv, lambda env: env):
        with pytest.warns(UserWarning, match=r"an action mask has shape \(3,\), expected \(2,\) .*; left out"):
            envs = VectorEnvs(vector_of([lambda w=wrap: w(Unfit(0))], AutoresetMode.NEXT_STEP))  # type: ignore[misc]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            envs.step([0])
        assert envs.action_mask is None
        envs = VectorEnvs(vector_of([lambda w=wrap: w(Unfit(2))], AutoresetMode.NEXT_STEP))  # type: ignore[misc]
        envs.step([0])
        with pytest.raises(SettingsError, match=r"an action mask has shape \(3,\)"):
            envs.step([0])


def test_runs_from_before_had_no_masks() -> None:
    saved = to_json(TrainConfig())
    assert saved["env"]["action_masks"] == "auto" and from_json(TrainConfig, saved) == TrainConfig()
    del saved["env"]["action_masks"], saved["env"]["mask_key"]
    before = from_json(TrainConfig, saved).env
    assert before == EnvConfig(action_masks="off")
    given = parse(TrainConfig, ["--mask-key", "say.mask"], prog="train").env
    assert (given.mask_key, given.action_masks) == ("say.mask", "auto")
    assert parse(TrainConfig, ["--action-masks", "method"], prog="train").env.action_masks == "method"
    with pytest.raises(SettingsError, match="expected action_masks auto beside it"):
        EnvConfig(mask_key="x", action_masks="info")

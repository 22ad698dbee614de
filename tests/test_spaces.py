"""Spaces: what the networks see of an observation, and what an environment gets of an action."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from relax_rl.errors import RelaxRLError, SettingsError, TrainingDiverged
from relax_rl.networks.spaces import ActionEncoder, Leaf, ObservationEncoder


def batch_of(space: spaces.Space, count: int = 5):
    """A batch as a vector environment makes it, and the observations it was made of."""
    space.seed(3)
    singles = [space.sample() for _ in range(count)]
    return concatenate(space, singles, create_empty_array(space, count)), singles


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def test_a_float_vector_passes_through_without_a_copy():
    encoder = ObservationEncoder(spaces.Box(-1, 1, (3,), np.float32))
    batch = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert encoder.encode(batch) is batch or np.shares_memory(encoder.encode(batch), batch)
    assert (encoder.shape, encoder.dtype, encoder.is_image) == ((3,), np.float32, False)
    assert encoder.leaves == (Leaf("obs", "vector", 3, (3,)),)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (2, 84, 84)])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_a_box_of_any_rank_and_number_type_is_flattened_to_float32(shape, dtype):
    space = spaces.Box(-5, 5, shape, dtype)
    batch, singles = batch_of(space)
    encoded = ObservationEncoder(space).encode(batch)
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, np.stack([np.ravel(one) for one in singles]).astype(np.float32))


@pytest.mark.parametrize("start", [0, 3, -2])
def test_discrete_is_one_hot_and_counted_from_its_start(start):
    encoder = ObservationEncoder(spaces.Discrete(3, start=start))
    encoded = encoder.encode(np.array([start, start + 2, start + 1]))
    np.testing.assert_array_equal(encoded, [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert encoded.dtype == np.float32


def test_multi_discrete_is_a_block_of_one_hot_per_number_counted_from_its_start():
    space = spaces.MultiDiscrete([2, 3], start=[5, -1])
    encoded = ObservationEncoder(space).encode(np.array([[5, 1], [6, -1]]))
    np.testing.assert_array_equal(encoded, [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]])


def test_multi_discrete_may_be_a_matrix():
    space = spaces.MultiDiscrete([[2, 2], [3, 3]])
    batch, singles = batch_of(space)
    encoded = ObservationEncoder(space).encode(batch)
    expected = [
        np.concatenate([np.eye(n)[i] for i, n in zip(one.ravel(), (2, 2, 3, 3), strict=True)]) for one in singles
    ]
    np.testing.assert_array_equal(encoded, expected)


def test_a_discrete_observation_outside_its_space_is_an_error_not_another_leafs_number():
    encoder = ObservationEncoder(spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))))
    with pytest.raises(SettingsError, match="outside its own space"):
        encoder.encode((np.array([2]), np.array([0])))


@pytest.mark.parametrize("space", [spaces.MultiBinary(4), spaces.MultiBinary((2, 3))])
def test_multi_binary_is_zeros_and_ones(space):
    batch, singles = batch_of(space)
    encoded = ObservationEncoder(space).encode(batch)
    np.testing.assert_array_equal(encoded, [one.ravel() for one in singles])
    assert encoded.dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "encoded_shape"),
    [
        ((3, 64, 48), (3, 64, 48)),
        ((64, 48, 3), (3, 64, 48)),
        ((4, 84, 84), (4, 84, 84)),
        ((84, 84), (1, 84, 84)),
        ((36, 36, 1), (1, 36, 36)),
        ((4, 84, 84, 3), (12, 84, 84)),
        ((4, 3, 84, 84), (12, 84, 84)),
        ((4, 84, 84, 1), (4, 84, 84)),
    ],
)
def test_images_become_channels_first_bytes(shape, encoded_shape):
    encoder = ObservationEncoder(image(*shape))
    batch, _ = batch_of(image(*shape), count=2)
    encoded = encoder.encode(batch)
    assert encoder.is_image and encoder.shape == encoded_shape and encoder.dtype == np.uint8
    assert encoded.shape == (2, *encoded_shape) and encoded.dtype == np.uint8
    assert encoder.leaves == (Leaf("obs", "image", int(np.prod(encoded_shape)), encoded_shape),)


def test_channels_last_images_are_moved_not_reshaped():
    batch, _ = batch_of(image(40, 50, 3), count=2)
    encoded = ObservationEncoder(image(40, 50, 3)).encode(batch)
    np.testing.assert_array_equal(encoded[1, 2, 7, 11], batch[1, 7, 11, 2])


def test_a_stack_of_colour_frames_keeps_each_frame_and_colour_as_a_channel():
    batch, _ = batch_of(image(4, 84, 84, 3), count=2)
    encoded = ObservationEncoder(image(4, 84, 84, 3)).encode(batch)
    np.testing.assert_array_equal(encoded[1, 3 * 2 + 1], batch[1, 2, :, :, 1])


@pytest.mark.parametrize(
    "space", [image(128), image(35, 84, 3), image(10, 10), spaces.Box(0, 1, (84, 84, 3), np.float32)]
)
def test_bytes_too_small_for_the_convolutions_and_float_images_are_vectors(space):
    encoder = ObservationEncoder(space)
    assert not encoder.is_image and encoder.dtype == np.float32
    assert encoder.shape == (int(np.prod(space.shape)),)


def test_a_dict_with_one_image_in_it_is_an_image():
    space = spaces.Dict({"pixels": image(40, 40, 3)})
    batch, _ = batch_of(space, count=2)
    encoder = ObservationEncoder(space)
    assert encoder.is_image and encoder.leaves[0].name == "pixels"
    np.testing.assert_array_equal(encoder.encode(batch), np.moveaxis(batch["pixels"], -1, 1))


def test_nested_dicts_and_tuples_are_joined_in_the_order_of_their_leaves():
    space = spaces.Dict(
        {
            "camera": spaces.Dict({"left": image(40, 44, 3)}),
            "pose": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(3, start=1))),
            "switches": spaces.MultiBinary(2),
        }
    )
    encoder = ObservationEncoder(space)
    batch, singles = batch_of(space, count=4)
    encoded = encoder.encode(batch)
    assert [leaf.name for leaf in encoder.leaves] == ["camera.left", "pose.0", "pose.1", "switches"]
    assert [leaf.kind for leaf in encoder.leaves] == ["image", "vector", "vector", "vector"]
    assert encoder.leaves[0].shape == (3, 40, 44)
    assert encoded.shape == (4, *encoder.shape) and encoded.dtype == np.float32
    pieces = np.split(encoded, np.cumsum([leaf.size for leaf in encoder.leaves])[:-1], axis=1)
    for row, one in enumerate(singles):
        picture = pieces[0][row].reshape(encoder.leaves[0].shape)
        np.testing.assert_array_equal(picture, np.moveaxis(one["camera"]["left"], -1, 0).astype(np.float32))
        np.testing.assert_array_equal(pieces[1][row], one["pose"][0].astype(np.float32))
        np.testing.assert_array_equal(pieces[2][row], np.eye(3)[one["pose"][1] - 1])
        np.testing.assert_array_equal(pieces[3][row], one["switches"])


def test_encoding_a_dict_leaves_the_batch_as_it_was():
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(2)})
    batch, _ = batch_of(space)
    before = {key: value.copy() for key, value in batch.items()}
    ObservationEncoder(space).encode(batch)[:] = 7
    for key, value in before.items():
        np.testing.assert_array_equal(batch[key], value)


@pytest.mark.parametrize(
    "space", [spaces.Text(5), spaces.Sequence(spaces.Discrete(2)), spaces.Dict({"t": spaces.Text(5)})]
)
def test_spaces_without_a_fixed_size_are_refused_by_name(space):
    with pytest.raises(SettingsError, match="not supported") as caught:
        ObservationEncoder(space)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("space", [spaces.Dict({}), spaces.Box(0, 1, (0,))])
def test_an_observation_without_numbers_is_refused(space):
    with pytest.raises(SettingsError, match="holds no numbers"):
        ObservationEncoder(space)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (3,)),
        spaces.Discrete(4, start=2),
        spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(2)))}),
    ],
)
def test_single_observations_and_batches_are_told_apart(space):
    encoder = ObservationEncoder(space)
    batch, singles = batch_of(space, count=3)
    as_batch, was_single = encoder.as_batch(singles[1])
    assert was_single
    np.testing.assert_array_equal(encoder.encode(as_batch)[0], encoder.encode(batch)[1])
    same, was_single = encoder.as_batch(batch)
    assert not was_single and same is batch


def test_an_observation_of_another_rank_or_without_a_key_is_refused():
    with pytest.raises(SettingsError, match="shape"):
        ObservationEncoder(spaces.Box(-1, 1, (3,))).as_batch(np.zeros((2, 2, 3)))
    with pytest.raises(SettingsError, match="no leaf 'a'"):
        ObservationEncoder(spaces.Dict({"a": spaces.Box(-1, 1, (3,))})).as_batch({"b": np.zeros(3)})


@pytest.mark.parametrize(
    ("space", "kind", "sizes"),
    [
        (spaces.Discrete(4, start=2), "categorical", (4,)),
        (spaces.MultiDiscrete([2, 3], start=[1, 1]), "multi_categorical", (2, 3)),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), "multi_categorical", (2, 3, 4, 5)),
        (spaces.MultiBinary(3), "bernoulli", (3,)),
        (spaces.MultiBinary((2, 2)), "bernoulli", (4,)),
        (spaces.Box(-2, 2, (2,)), "gaussian", (2,)),
        (spaces.Box(-np.inf, np.inf, (2, 2), np.float64), "gaussian", (4,)),
        (spaces.Box(0, 1, (), np.float32), "gaussian", (1,)),
    ],
)
def test_every_action_space_names_its_distribution_and_gets_actions_it_contains(space, kind, sizes):
    encoder = ActionEncoder(space)
    assert (encoder.kind, encoder.sizes) == (kind, sizes)
    rng = np.random.default_rng(0)
    if kind == "categorical":
        sampled = rng.integers(0, sizes[0], 50)
    elif kind == "multi_categorical":
        sampled = rng.integers(0, sizes, (50, len(sizes)))
    elif kind == "bernoulli":
        sampled = rng.integers(0, 2, (50, sizes[0])).astype(np.float32)
    else:
        sampled = rng.normal(0, 5, (50, sizes[0])).astype(np.float32)
    actions = encoder.to_env(sampled)
    assert batch_space(space, 50).contains(actions), actions[:3]
    assert all(space.contains(action) for action in actions)


def test_start_is_added_to_discrete_actions():
    np.testing.assert_array_equal(ActionEncoder(spaces.Discrete(3, start=5)).to_env(np.array([0, 2])), [5, 7])
    encoder = ActionEncoder(spaces.MultiDiscrete([2, 2], start=[10, -1]))
    np.testing.assert_array_equal(encoder.to_env(np.array([[0, 1], [1, 0]])), [[10, 0], [11, -1]])


def test_gaussian_actions_are_clipped_to_the_bounds_each_dimension_has():
    space = spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 3], np.float32))
    actions = ActionEncoder(space).to_env(np.array([[-5.0, -1e6], [0.5, 9.0]]))
    np.testing.assert_array_equal(actions, np.array([[-1, -1e6], [0.5, 3]], np.float32))


def test_squashed_actions_span_the_bounds_linearly():
    space = spaces.Box(np.array([-2, 10], np.float32), np.array([2, 20], np.float32))
    actions = ActionEncoder(space).to_env(np.array([[-1.0, -1.0], [0.0, 0.0], [0.5, 1.0]]), squashed=True)
    np.testing.assert_allclose(actions, [[-2, 10], [0, 15], [1, 20]], rtol=1e-6)


def test_squashing_onto_the_widest_bounds_does_not_overflow():
    widest = np.finfo(np.float32).max
    actions = ActionEncoder(spaces.Box(-widest, widest, (1,))).to_env(np.array([[0.999]], np.float32), squashed=True)
    assert np.isfinite(actions).all() and actions[0, 0] > 0


def test_squash_needs_finite_bounds():
    ActionEncoder(spaces.Box(-1, 1, (2,))).require_bounded()
    for space in (spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(0, np.inf, (2,)), spaces.Discrete(2)):
        with pytest.raises(SettingsError, match="squash needs"):
            ActionEncoder(space).require_bounded()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)])
def test_an_action_that_is_not_finite_never_reaches_an_environment(space, bad):
    with pytest.raises(TrainingDiverged, match="not a finite number"):
        ActionEncoder(space).to_env(np.array([[0.0, bad]]))


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (spaces.Discrete(3), [3]),
        (spaces.Discrete(3, start=1), [-1]),
        (spaces.Discrete(3), [0.5]),
        (spaces.MultiDiscrete([2, 3]), [[0, 3]]),
        (spaces.MultiBinary(2), [[0, 2]]),
    ],
)
def test_a_choice_that_does_not_exist_never_reaches_an_environment(space, action):
    """An out-of-range action hangs ale-py's native environment for ever."""
    with pytest.raises(SettingsError, match="outside the choices"):
        ActionEncoder(space).to_env(np.array(action))


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (spaces.Discrete(3), (2, 1)),
        (spaces.MultiDiscrete([2, 3]), (2,)),
        (spaces.Box(-1, 1, (2,)), (2, 3)),
        (spaces.Discrete(3), ()),
    ],
)
def test_actions_of_the_wrong_shape_are_refused(space, shape):
    with pytest.raises(SettingsError, match="have shape"):
        ActionEncoder(space).to_env(np.zeros(shape, np.int64))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))),
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Text(4),
    ],
)
def test_other_action_spaces_are_refused_by_name(space):
    with pytest.raises(RelaxRLError, match="not supported; expected Discrete") as caught:
        ActionEncoder(space)
    assert "\n" not in str(caught.value)

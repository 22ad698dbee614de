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


@pytest.mark.parametrize(
    ("space", "given", "expected"),
    [
        *(
            (spaces.Discrete(3, start=start), [start, start + 2, start + 1], [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
            for start in (0, 3, -2)
        ),
        (spaces.MultiDiscrete([2, 3], start=[5, -1]), [[5, 1], [6, -1]], [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]),
        (spaces.MultiDiscrete([[2, 2], [3, 3]]), [[[0, 1], [2, 1]]], [[1, 0, 0, 1, 0, 0, 1, 0, 1, 0]]),
    ],
)
def test_choices_are_one_hot_block_by_block_and_counted_from_their_start(space, given, expected):
    encoded = ObservationEncoder(space).encode(np.array(given))
    np.testing.assert_array_equal(encoded, expected)
    assert encoded.dtype == np.float32


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
    ("space", "message"),
    [
        (spaces.Text(5), "not supported"),
        (spaces.Sequence(spaces.Discrete(2)), "not supported"),
        (spaces.Dict({"t": spaces.Text(5)}), "not supported"),
        (spaces.Dict({}), "holds no numbers"),
        (spaces.Box(0, 1, (0,)), "holds no numbers"),
    ],
)
def test_spaces_without_a_fixed_size_or_without_numbers_are_refused(space, message):
    with pytest.raises(SettingsError, match=message) as caught:
        ObservationEncoder(space)
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize(
    ("space", "sampled", "squashed", "expected"),
    [
        (spaces.Discrete(3, start=5), [0, 2], False, [5, 7]),
        (spaces.MultiDiscrete([2, 2], start=[10, -1]), [[0, 1], [1, 0]], False, [[10, 0], [11, -1]]),
        (
            spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 3], np.float32)),
            [[-5.0, -1e6], [0.5, 9.0]],
            False,
            [[-1, -1e6], [0.5, 3]],
        ),
        (
            spaces.Box(np.array([-2, 10], np.float32), np.array([2, 20], np.float32)),
            [[-1.0, -1.0], [0.0, 0.0], [0.5, 1.0]],
            True,
            [[-2, 10], [0, 15], [1, 20]],
        ),
    ],
    ids=["choices", "several choices", "clipped to the bounds there are", "squashed onto the bounds"],
)
def test_actions_as_the_environment_takes_them(space, sampled, squashed, expected):
    actions = ActionEncoder(space).to_env(np.array(sampled), squashed=squashed)
    np.testing.assert_allclose(actions, expected, rtol=1e-6 if squashed else 0)


def test_squashing_onto_the_widest_bounds_does_not_overflow():
    widest = np.finfo(np.float32).max
    actions = ActionEncoder(spaces.Box(-widest, widest, (1,))).to_env(np.array([[0.999]], np.float32), squashed=True)
    assert np.isfinite(actions).all() and actions[0, 0] > 0


def test_squash_needs_finite_bounds():
    ActionEncoder(spaces.Box(-1, 1, (2,))).require_bounded()
    for space in (spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(0, np.inf, (2,)), spaces.Discrete(2)):
        with pytest.raises(SettingsError, match="squash needs"):
            ActionEncoder(space).require_bounded()


@pytest.mark.parametrize(
    ("space", "action", "error", "message"),
    [
        *(
            (space, [[0.0, bad]], TrainingDiverged, "not a finite number")
            for space in (spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2))
            for bad in (np.nan, np.inf)
        ),
        (spaces.Discrete(3), [3], SettingsError, "outside the choices"),
        (spaces.Discrete(3, start=1), [-1], SettingsError, "outside the choices"),
        (spaces.Discrete(3), [0.5], SettingsError, "outside the choices"),
        (spaces.MultiDiscrete([2, 3]), [[0, 3]], SettingsError, "outside the choices"),
        (spaces.MultiBinary(2), [[0, 2]], SettingsError, "outside the choices"),
        (spaces.Discrete(3), [[0], [0]], SettingsError, "have shape"),
        (spaces.MultiDiscrete([2, 3]), [0, 0], SettingsError, "have shape"),
        (spaces.Box(-1, 1, (2,)), [[0, 0, 0], [0, 0, 0]], SettingsError, "have shape"),
        (spaces.Discrete(3), 0, SettingsError, "have shape"),
    ],
)
def test_an_action_that_there_is_not_never_reaches_an_environment(space, action, error, message):
    """An out-of-range action hangs ale-py's native environment for ever."""
    with pytest.raises(error, match=message):
        ActionEncoder(space).to_env(np.array(action))


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


@pytest.mark.parametrize(
    ("space", "wrong"),
    [
        (spaces.Discrete(4), (1.9, 7, -1)),
        (spaces.Discrete(4, start=2), (1, 6)),
        (spaces.MultiDiscrete([2, 3]), ([0, 3], [0.5, 1.0], [[0, 1], [2, 1]])),
    ],
)
def test_what_is_no_choice_is_no_observation(space, wrong):
    encoder = ObservationEncoder(space)
    for each in wrong:
        with pytest.raises(SettingsError, match=r"holds what is no choice of .*expected one of"):
            encoder.as_batch(np.array(each))
    sample = np.asarray(space.sample())
    assert encoder.as_batch(sample)[1] and encoder.as_batch(sample.astype(np.float64))[1]
    assert not encoder.as_batch(np.stack([sample] * 3))[1]

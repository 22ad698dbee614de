"""The policy: parameters and the distribution they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C
from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical, TanhGaussian
from relax_rl.errors import SettingsError
from relax_rl.networks.policies import Policy
from relax_rl.networks.spaces import ActionEncoder
from relax_rl.networks.torsos import MLP

BOX = spaces.Box(-1, 1, (3,))


def policy_for(space: spaces.Space, **settings: object) -> Policy:
    torch.manual_seed(0)
    return Policy(MLP(4, (16,), "tanh"), ActionEncoder(space), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("space", "settings", "kind", "num_params"),
    [
        (spaces.Discrete(5), {}, Categorical, 5),
        (spaces.MultiDiscrete([2, 3]), {}, MultiCategorical, 5),
        (spaces.MultiBinary(4), {}, Bernoulli, 4),
        (BOX, {}, DiagGaussian, 6),
        (BOX, {"state_dependent_std": True}, DiagGaussian, 6),
        (BOX, {"squash": True}, TanhGaussian, 6),
    ],
)
def test_each_action_space_gets_its_distribution(space, settings, kind, num_params) -> None:  # type: ignore[no-untyped-def]
    policy = policy_for(space, **settings)
    params = policy(torch.randn(7, 4))
    assert params.shape == (7, num_params) == (7, policy.num_params)
    dist = policy.distribution(params)
    assert type(dist) is kind
    sample = dist.threshold(dist.relax(dist.sample_noise(torch.Generator().manual_seed(0))))
    assert dist.log_prob(sample).shape == (7,)


def test_a_fresh_policy_is_nearly_uniform() -> None:
    probs = (
        policy_for(spaces.Discrete(4)).distribution(policy_for(spaces.Discrete(4))(torch.randn(50, 4))).log_probs.exp()
    )  # type: ignore[attr-defined]
    assert (probs - 0.25).abs().max() < 0.02


@pytest.mark.parametrize("state_dependent", [False, True])
def test_the_initial_standard_deviation_is_the_one_asked_for(state_dependent: bool) -> None:
    policy = policy_for(BOX, log_std_init=-0.7, state_dependent_std=state_dependent)
    _, log_std = policy(torch.randn(50, 4)).chunk(2, -1)
    np.testing.assert_allclose(log_std.detach().numpy(), -0.7, atol=0.05)
    assert (log_std.std() > 1e-5) == state_dependent


def test_ordered_choices_begin_around_the_middle() -> None:
    policy = policy_for(spaces.MultiDiscrete([7, 2, 3]), ordinal_std_init=0.4)
    bell = torch.exp(-0.5 * (torch.linspace(-1, 1, 7) / 0.4) ** 2)
    with torch.no_grad():
        policy.head.weight.zero_()
        probs = policy.distribution(policy(torch.zeros(1, 4))).log_probs[0].exp()  # type: ignore[attr-defined]
    torch.testing.assert_close(probs[0], bell / bell.sum())
    torch.testing.assert_close(probs[1, :2], torch.tensor([0.5, 0.5]))
    assert float(probs[2, 1] / probs[2, 0]) == pytest.approx(np.exp(0.5 / 0.4**2), rel=1e-5)
    assert not policy_for(spaces.MultiDiscrete([7, 2, 3])).head.bias.any()


def test_the_narrowest_spread_is_finite() -> None:
    policy = policy_for(spaces.MultiDiscrete([7, 2]), ordinal_std_init=0.01)
    log_probs = policy.distribution(policy(torch.zeros(1, 4))).log_probs  # type: ignore[attr-defined]
    assert torch.isfinite(log_probs[..., :2]).all()


def test_a_state_dependent_standard_deviation_stays_in_float_range() -> None:
    policy = policy_for(BOX, state_dependent_std=True)
    with torch.no_grad():
        policy.head.weight.mul_(1e6)
    _, log_std = policy(torch.randn(50, 4)).chunk(2, -1)
    assert log_std.min() >= -10
    assert log_std.max() <= 2


def test_the_last_layer_begins_at_the_scale_that_is_asked_for() -> None:
    for scale in (0.01, 1.5):
        head = A2C(spaces.Box(-1, 1, (3,)), spaces.Discrete(4), policy_head_scale=scale).policy.head.weight
        torch.testing.assert_close(head @ head.t(), scale**2 * torch.eye(4))


def test_a_deviation_that_the_network_says_begins_where_it_can_learn() -> None:
    for wrong in (2.5, -10.5):
        with pytest.raises(
            SettingsError, match=rf"log_std_init is {wrong}, expected -10 to 2 beside state_dependent_std"
        ):
            policy_for(BOX, state_dependent_std=True, log_std_init=wrong)
        policy_for(BOX, log_std_init=wrong)

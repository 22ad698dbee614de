"""The loss for other people's loops: its gradients against enumeration, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical
from relax_rl.estimators import policy_gradient_loss
from tests.estimator_cases import curved, seeded
from tests.oracles import assert_unbiased, collect, exact_gradient, gradient_by_quadrature, repeat

ROWS = 500_000
TABLE = torch.tensor([1.1, -0.7, 0.4])


def of_index(b: Tensor) -> Tensor:
    return TABLE[b]


def of_bits(b: Tensor) -> Tensor:
    return 2 * b[..., 0] - torch.sin(2 * b[..., 1] + b[..., 0]) - b[..., 2] + 0.3


def of_factors(b: Tensor) -> Tensor:
    return torch.tensor([[1.9, -0.2, 0.8], [0.3, -1.6, -1.2]])[b[..., 0], b[..., 1]]


def of_normal(z: Tensor) -> Tensor:
    return torch.sin(2 * z[..., 0] + 0.5)


CASES: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "categories": (Categorical(torch.tensor([[0.4, -0.3, 0.1]])), of_index),
    "bits": (Bernoulli(torch.tensor([[0.3, -0.6, 0.9]])), of_bits),
    "factors": (MultiCategorical(torch.tensor([[0.3, -0.2, 0.1, -0.5, 0.4]]), (2, 3)), of_factors),
    "normal": (DiagGaussian(torch.tensor([[0.3, -0.4]])), of_normal),
}


def policy_rows(
    dist: Any, f: Callable[[Tensor], Tensor], behaviour: Any, seed: int, clip: float | None = None
) -> Callable[[int], Tensor]:
    """Draws of the gradient that each row of `dist.params` receives, with actions of `behaviour`."""
    generator = seeded(seed)

    def draw(rows: int) -> Tensor:
        old, params = repeat(behaviour, rows), repeat(dist, rows).params.clone().requires_grad_()
        action = old.threshold(old.relax(old.sample_noise(generator)))
        new = dist.with_params(params)
        loss = policy_gradient_loss(
            f(action), new, action, curved, old_log_prob=old.log_prob(action), clip=clip, generator=generator
        )
        (gradient,) = torch.autograd.grad(loss, params)
        return -gradient * rows

    return draw


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_theta_gets_the_policy_gradient_on_and_off_policy(case: str, shift: float) -> None:
    dist, f = CASES[case]
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])[: dist.params.shape[-1]]
    behaviour = dist.with_params(dist.params - shift * signs)
    exact = gradient_by_quadrature(dist, f) if case == "normal" else exact_gradient(dist, f)
    assert_unbiased(collect(policy_rows(dist, f, behaviour, 1), ROWS // 2), exact, power=0.03)


def test_clipping_leaves_out_the_term_of_the_advantage_alone() -> None:
    """The mean is that of PPO's clipped objective, by enumeration; the control variate adds nothing to it."""
    dist, f = CASES["categories"]
    behaviour = dist.with_params(torch.tensor([[-0.2, 0.4, 0.1]]))
    params = dist.params[0].double().requires_grad_()
    new, old = params.log_softmax(-1), behaviour.params[0].double().log_softmax(-1)
    ratio = torch.exp(new - old)
    clipped = torch.minimum(ratio * TABLE, ratio.clamp(0.8, 1.2) * TABLE)
    (exact,) = torch.autograd.grad((old.exp() * clipped).sum(), params)
    assert (ratio > 1.2).any() and (ratio < 0.8).any()
    assert_unbiased(collect(policy_rows(dist, f, behaviour, 2, clip=0.2), ROWS), exact, power=0.05)


class Surrogate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, features: Tensor, z: Tensor) -> Tensor:
        return self.layers(torch.cat([features, z], -1)).squeeze(-1)  # type: ignore[no-any-return]


def test_phi_lowers_the_variance_and_the_policy_does_not_feel_it() -> None:
    torch.manual_seed(0)
    torso, head, surrogate = nn.Linear(5, 4), nn.Linear(4, 3), Surrogate()
    obs = torch.randn(256, 5)
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=1e-2)
    generator = seeded(3)

    def loss(**options: Any) -> Tensor:
        features = torso(obs)
        dist = Categorical(head(features))
        action = dist.threshold(dist.relax(dist.sample_noise(generator)))
        return policy_gradient_loss(
            of_index(action) + 0.5,
            dist,
            action,
            lambda z: surrogate(features, dist.soften(z)),
            phi=surrogate.parameters(),
            generator=generator,
            **options,
        )

    def spread() -> float:
        draws = [torch.cat([g.flatten() for g in torch.autograd.grad(loss(), head.parameters())]) for _ in range(100)]
        return float(torch.stack(draws).var(0).sum())

    before = spread()
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert spread() < 0.5 * before

    # The same draw with and without the variance's gradient: theta, shared torso and all, receives the same.
    for module in (torso, head, surrogate):
        module.zero_grad(set_to_none=True)
    state = generator.get_state()
    loss().backward()
    received = [p.grad.clone() for p in (*torso.parameters(), *head.parameters()) if p.grad is not None]
    generator.set_state(state)
    expected = torch.autograd.grad(loss(variance_coef=0.0), [*torso.parameters(), *head.parameters()])
    for one, other in zip(received, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in surrogate.parameters())


def test_rows_of_no_weight_count_for_nothing() -> None:
    params = torch.randn(4, 3, requires_grad=True)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0])
    dist = Categorical(params)
    action = torch.tensor([0, 1, 2, 0])
    loss = policy_gradient_loss(TABLE[action], dist, action, curved, weight=weight, generator=seeded(4))
    assert float(loss.detach()) == pytest.approx(-float((weight * TABLE[action]).sum()) / 4)
    (gradient,) = torch.autograd.grad(loss, params)
    assert not gradient[1].any() and not gradient[3].any() and gradient[0].any() and gradient[2].any()


def test_one_number_a_row() -> None:
    with pytest.raises(ValueError, match="advantage has shape"):
        policy_gradient_loss(
            torch.zeros(4, 1), Categorical(torch.zeros(4, 3)), torch.zeros(4, dtype=torch.long), curved
        )


@pytest.mark.parametrize("name", ["old_log_prob", "weight"])
def test_what_else_is_given_has_one_number_a_row_too(name: str) -> None:
    rows: dict[str, Any] = {name: torch.zeros(4, 1)}
    with pytest.raises(ValueError, match=f"{name} has shape"):
        policy_gradient_loss(
            torch.zeros(4), Categorical(torch.zeros(4, 3)), torch.zeros(4, dtype=torch.long), curved, **rows
        )


@pytest.mark.parametrize(
    ("dist", "action", "message"),
    [
        (Categorical(torch.zeros(4, 3)), torch.zeros(4, 1, dtype=torch.long), r"shape \[4, 1\], .* draws \[4\]"),
        (Categorical(torch.zeros(4, 3)), torch.zeros(1, dtype=torch.long), r"shape \[1\], .* draws \[4\]"),
        (Categorical(torch.zeros(4, 3)), torch.zeros(4), "torch.float32, .* draws torch.int64"),
        (Bernoulli(torch.zeros(4, 3)), torch.zeros(4, 1), r"shape \[4, 1\], .* draws \[4, 3\]"),
        (DiagGaussian(torch.zeros(4, 2)), torch.zeros(4), r"shape \[4\], .* broadcast to \[4, 4\]"),
        (DiagGaussian(torch.zeros(4, 4)), torch.zeros(4, 1), r"shape \[4, 1\], .* broadcast to \[4, 2\]"),
        (DiagGaussian(torch.zeros(4, 4)), torch.zeros(4, 3), r"shape \[4, 3\], .* \[4, 4\] do not fit"),
        (DiagGaussian(torch.zeros(4, 4)), torch.zeros(5, 2), r"shape \[5, 2\], .* \[4, 4\] do not fit"),
    ],
)
def test_actions_are_such_as_the_distribution_draws(dist: Any, action: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_gradient_loss(torch.zeros(4), dist, action, curved)
    with pytest.raises(ValueError, match=message):
        policy_gradient_loss(torch.zeros(4), dist, action, curved, old_log_prob=torch.zeros(4))


def test_the_surrogate_adds_nothing_to_the_mean_of_the_first_pass_and_something_to_that_of_further_ones() -> None:
    """Many three-armed bandits with rollouts of four rows each: theta has learned from the actions after a pass."""
    runs, reward = 40_000, torch.tensor([1.0, 0.0, -0.5])
    action = torch.randint(3, (runs, 4), generator=seeded(40))
    advantage, old = reward[action] - reward.mean(), torch.full((runs, 4), math.log(1 / 3))
    surrogates: list[Any] = [
        lambda z: 2 * (torch.softmax(z, -1) @ torch.tensor([1.0, -1.0, 0.5])),
        lambda z: torch.zeros(z.shape[:-1]),
    ]
    theta, share, noise = torch.zeros(runs, 3), [], seeded(41)
    for _ in range(4):
        gradients = []
        for surrogate in surrogates:
            leaf = theta.clone().requires_grad_()
            dist = Categorical(leaf[:, None].expand(runs, 4, 3))
            loss = policy_gradient_loss(advantage, dist, action, surrogate, old_log_prob=old, clip=0.2, generator=noise)
            gradients.append(torch.autograd.grad(loss, leaf)[0] * runs)
        full, plain = gradients
        added = full - plain
        scores = added.mean(0) / (added.std(0) / runs**0.5)
        share.append(float(added.mean(0).norm() / plain.mean(0).norm()))
        assert scores.abs().max() < 4 if len(share) == 1 else scores.abs().max() > 8
        theta = theta - full
    assert share[0] < 0.02 and share[1:] == pytest.approx([0.15, 0.27, 0.35], abs=0.03)

"""Pieces of the training loop: Adam, the variance of a gradient, bounds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from relax_rl.compute.optimizers import GroupedAdam, flat
from relax_rl.experiments.vae.evaluation import binary_images, bound
from relax_rl.experiments.vae.exact import expected_loss
from relax_rl.experiments.vae.gradient import GradientVariance
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork, bernoulli_log_prob


def adam(*groups, lr=0.1, decay=0.0):
    lrs, decays = [lr, 0.5 * lr][: len(groups)], [decay, 0.0][: len(groups)]
    groups = [{f"{i}": p for i, p in enumerate(group)} for group in groups]
    return GroupedAdam(groups, lrs=lrs, decays=decays, betas=(0.9, 0.99999))


def test_every_group_takes_the_steps_of_torch():
    generator = torch.Generator().manual_seed(0)
    mine = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (4,), ())]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in mine]
    ours = adam(mine[:1], mine[1:], lr=0.01, decay=0.1)
    groups = [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "lr": 0.005}]
    reference = torch.optim.Adam(groups, lr=0.01, betas=(0.9, 0.99999))
    for _ in range(20):
        for parameter in theirs:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        ours.step(flat([parameter.grad for parameter in theirs]))
        reference.step()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_adam_goes_on_from_its_state_by_parameter_and_refuses_another():
    shapes, gradient = ((2, 3), (3,)), torch.arange(9.0)
    first, second = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    one, other = adam([], first), adam([], second)
    one.step(gradient)
    state = one.state_dict()
    assert {name: x.shape for name, x in state.items() if "mean" in name} == {"1.mean.0": (2, 3), "1.mean.1": (3,)}
    other.load_state_dict(state)
    for mine, theirs in zip(first, second, strict=True):
        theirs.data.copy_(mine)
    for optimizer in (one, other):
        optimizer.step(-0.5 * gradient)
    assert all(map(torch.equal, first, second))
    for wrong, error in (({**state, "1.mean.1": torch.ones(2)}, ValueError), ({}, KeyError)):
        with pytest.raises(error):
            other.load_state_dict(wrong)


def test_the_variance_of_a_gradient_is_found_without_bias():
    generator = torch.Generator().manual_seed(0)
    std = torch.linspace(0.5, 2.0, 2000)
    found = []
    for _ in range(60):
        variance = GradientVariance([std])
        for _ in range(30):  # far fewer than the window is long
            variance.update(5.0 + std * torch.randn(2000, generator=generator))
        found.append(math.exp(variance.log_variance))
    expected = float(std.square().mean())
    assert abs(sum(found) / 60 - expected) < 0.01 * expected


def test_no_variance_before_the_second_gradient_and_none_of_a_constant():
    variance = GradientVariance([torch.ones(3)])
    assert math.isnan(variance.log_variance)
    variance.update(torch.ones(3))
    assert math.isnan(variance.log_variance)
    variance.update(torch.ones(3))
    assert variance.log_variance < -12
    copy = GradientVariance([torch.ones(3)])
    copy.load_state_dict(variance.state_dict())
    assert copy.log_variance == variance.log_variance


def test_bounds_lie_below_the_log_likelihood_and_rise_with_the_samples():
    generator = torch.Generator().manual_seed(2)
    model = SigmoidBeliefNetwork(torch.full((5,), 0.4), layers=(3,), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(40, 5, generator=generator).round()
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3))).unsqueeze(1)
    joint = bernoulli_log_prob(every, model.prior) + bernoulli_log_prob(x, model.decoders[0](2 * every - 1))
    log_p = float(torch.logsumexp(joint, 0).mean().detach())
    one, ten, many = (bound(model, x.repeat(50, 1), samples=k) for k in (1, 10, 1000))
    assert one + 0.05 < ten + 0.05 < many + 0.1
    assert abs(many - log_p) < 0.01
    assert bound(model, x, samples=3) == bound(model, x, samples=3)


def test_one_sample_is_the_evidence_lower_bound():
    model = SigmoidBeliefNetwork(torch.full((5,), 0.4), layers=(3, 2), generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]])
    expected = -float(expected_loss(model, x).detach())
    assert abs(bound(model, x.expand(200_000, -1)) - expected) < 0.01


def test_grey_images_are_binarised_with_their_probabilities():
    grey = torch.tensor([[0, 64, 191, 255]], dtype=torch.uint8).repeat(20_000, 1)
    binary = binary_images(grey, dynamic=True)
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(binary.mean(0), torch.tensor([0.0, 64 / 255, 191 / 255, 1.0]), atol=0.012)
    assert binary_images(grey, dynamic=True, count=7).shape == (7, 4)
    fixed = torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8)
    assert torch.equal(binary_images(fixed, dynamic=False), fixed.float())

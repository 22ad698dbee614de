"""Pieces of the training loop: Adam, the variance of a gradient, bounds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from relax_rl.experiments.vae.evaluation import binary_images, bound
from relax_rl.experiments.vae.exact import expected_loss
from relax_rl.experiments.vae.gradient_variance import GradientVariance
from relax_rl.experiments.vae.optimizer import FusedAdam
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork, bernoulli_log_prob


def test_adam_takes_the_steps_of_torch():
    generator = torch.Generator().manual_seed(0)
    mine = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (4,), ())]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in mine]
    adam = FusedAdam(mine, lr=0.01, betas=(0.9, 0.99999), decay=0.1, decayed=mine[:1])
    groups = [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:]}]
    reference = torch.optim.Adam(groups, lr=0.01, betas=(0.9, 0.99999))
    for _ in range(20):
        gradients = [
            torch.randn(p.shape[::-1], generator=generator).t() if p.dim() == 2 else torch.ones_like(p) for p in mine
        ]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        adam.step(gradients)
        reference.step()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_adam_goes_on_from_its_state_and_refuses_another():
    parameter, copy = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    first, second = FusedAdam([parameter], lr=0.1), FusedAdam([copy], lr=0.1)

    gradient = torch.tensor([1.0, 2.0, 3.0])
    first.step([gradient])
    second.load_state_dict(first.state_dict())
    copy.data.copy_(parameter.data)
    first.step([-0.5 * gradient])
    second.step([-0.5 * gradient])
    assert torch.equal(parameter, copy)
    with pytest.raises(ValueError, match="other parameters"):
        FusedAdam([nn.Parameter(torch.ones(2))], lr=0.1).load_state_dict(first.state_dict())


def test_the_variance_of_a_gradient_is_found_without_bias():
    generator = torch.Generator().manual_seed(0)
    std = torch.linspace(0.5, 2.0, 2000)
    found = []
    for _ in range(60):
        variance = GradientVariance([std])
        for _ in range(30):  # far fewer than the window is long
            variance.update([5.0 + std * torch.randn(2000, generator=generator)])
        found.append(math.exp(variance.log_variance))
    expected = float(std.square().mean())
    assert abs(sum(found) / 60 - expected) < 0.01 * expected


def test_no_variance_before_the_second_gradient_and_none_of_a_constant():
    variance = GradientVariance([torch.ones(3)])
    assert math.isnan(variance.log_variance)
    variance.update([torch.ones(3)])
    assert math.isnan(variance.log_variance)
    variance.update([torch.ones(3)])
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

"""The relaxed loss written out, against automatic differentiation, and the slope of z given its bit."""

from __future__ import annotations

import pytest
import torch

from relax_rl.distributions import Bernoulli
from relax_rl.experiments.vae.relaxation_estimators import conditional_slope
from relax_rl.experiments.vae.relaxed_loss import relaxed_loss
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork, draw_noise


def by_autograd(model, target, chain, layer, z, log_temperature):
    """The same terms from the model's own, as a differentiable function."""
    temperature = log_temperature.exp()
    below = None if layer == 0 else chain.bits[layer - 1]
    logits, soft = chain.logits[layer].detach(), torch.sigmoid(z / temperature)
    value = model.term(layer, target, below, soft, logits)
    for deeper in range(layer + 1, len(model.layers)):
        below, logits = soft, model.encode(deeper, soft)
        soft = torch.sigmoid((logits + chain.noise[deeper]) / temperature)
        value = value + model.term(deeper, target, below, soft, logits)
    return value


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("hidden", [(), (5, 6)])
@pytest.mark.parametrize("task", ["generative", "structured"])
def test_value_slope_and_tangents(task, hidden, layer):
    generator = torch.Generator().manual_seed(0)
    model = SigmoidBeliefNetwork(
        torch.rand(6, generator=generator), layers=(4, 3, 2), hidden=hidden, task=task, generator=generator
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(7, 6, generator=generator).round().double()
    target = model.target(x)
    chain = model.draw(x, [noise.double() for noise in draw_noise((7,), (4, 3, 2), generator)])
    log_temperature = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    found = relaxed_loss(model, target, chain, layer, log_temperature)

    z = chain.z[layer].clone().requires_grad_()
    value = by_autograd(model, target, chain, layer, z, log_temperature)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    torch.testing.assert_close(found.value, value.detach())
    torch.testing.assert_close(found.slope, slope.detach())
    for tangent, output in ((found.value_tangent, value), (found.slope_tangent, slope)):
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        (expected,) = torch.autograd.grad((weights * output).sum(), log_temperature, retain_graph=True)
        torch.testing.assert_close((weights * tangent).sum(), expected)


def test_the_slope_of_z_given_the_bit():
    """1 - dz~/dlogits, by automatic differentiation of the conditional sample whose noise gives z back."""
    logits = torch.linspace(-6, 6, 41, dtype=torch.float64).requires_grad_()
    z = logits.detach() + torch.randn(41, generator=torch.Generator().manual_seed(0)).double() * 2
    dist = Bernoulli(logits)
    bits = dist.threshold(z)
    given = dist.relax_given(bits, dist.noise_given(bits, z))
    torch.testing.assert_close(given.detach(), z)
    (moved,) = torch.autograd.grad(given.sum(), logits)
    torch.testing.assert_close(conditional_slope(logits.detach(), z), 1 - moved)

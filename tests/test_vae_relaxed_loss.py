"""The relaxed loss written out, against automatic differentiation."""

from __future__ import annotations

import pytest
import torch

from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.relaxed_loss import Place, relaxed_loss
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork


def by_autograd(model, target, chain, layer, z, log_temperature):
    """The same terms from the model's own, as a differentiable function."""
    temperature = log_temperature.exp()
    below = None if layer == 0 else chain.bits[layer - 1]

    def soft(deeper, logits):
        return torch.sigmoid((logits + chain.noise[deeper]) / temperature)

    logits, bits = chain.logits[layer].detach(), torch.sigmoid(z / temperature)
    return model.rest_of_loss(layer, target, below, bits, logits, soft)


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
    chain = model.draw(x, [noise.double() for noise in Noise(generator).logistic((7,), (4, 3, 2))])
    log_temperature = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    found = relaxed_loss(Place(model, target, chain, layer), log_temperature.exp())

    z = chain.z[layer].clone().requires_grad_()
    value = by_autograd(model, target, chain, layer, z, log_temperature)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    torch.testing.assert_close(found.value, value.detach())
    torch.testing.assert_close(found.slope[0], slope.detach())
    for tangent, output in ((found.value_tangent, value), (found.slope[1], slope)):
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        (expected,) = torch.autograd.grad((weights * output).sum(), log_temperature, retain_graph=True)
        torch.testing.assert_close((weights * tangent).sum(), expected)

"""The controls made of f, against automatic differentiation: the correction is exact in the mean over random signs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from relax_rl.experiments.vae.controls import relaxed_terms
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.relaxed_loss import Place
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork
from tests.oracles import central_differences
from tests.test_vae_estimators import image, learned_gradients, make, scrambled, seeded, small_model
from tests.test_vae_relaxed_loss import by_autograd

LAYERS = (4, 3, 2)
IMAGES = 5


def drawn(weights=1.0, **options):
    """A model with random weights, images and a chain of bits, in double precision."""
    generator = torch.Generator().manual_seed(0)
    model = SigmoidBeliefNetwork(
        torch.rand(6, generator=generator), layers=LAYERS, generator=generator, **options
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator)).mul_(weights)
    target = model.target(torch.rand(IMAGES, 6, generator=generator).round().double())
    images = torch.rand(IMAGES, 6, generator=generator).round().double()
    chain = model.draw(images, [noise.double() for noise in Noise(generator).logistic((IMAGES,), LAYERS)])
    return model, target, chain


def correction_by_autograd(model, target, chain, layer, log_temperature):
    """c_j - f(y) for every bit, and its derivative at that bit's z."""
    z = chain.z[layer].clone().requires_grad_()
    temperature = log_temperature.exp()
    y = torch.sigmoid(z / temperature)
    at_y = torch.logit(y) * temperature  # y is what f is differentiated at
    (gradient,) = torch.autograd.grad(
        by_autograd(model, target, chain, layer, at_y, log_temperature).sum(), y, create_graph=True
    )
    bits = chain.bits[layer]
    values, slopes = [], []
    for j in range(LAYERS[layer]):
        others = torch.ones(LAYERS[layer]).index_fill(0, torch.tensor(j), 0.0)
        # Only z_j moves c_j: the others' distance from their bits counts as y_j's does not.
        mixed = torch.where(others.bool(), y.detach(), y)
        at_mixed = torch.logit(mixed) * temperature
        value = by_autograd(model, target, chain, layer, at_mixed, log_temperature)
        (here,) = torch.autograd.grad(value.sum(), mixed, create_graph=True)
        corrected = (here * (bits - y.detach()) * others).sum(-1)
        slopes.append(torch.autograd.grad(corrected.sum(), z, retain_graph=True)[0][:, j])
        values.append((gradient * (bits - y) * others).sum(-1))
    return torch.stack(values, -1), torch.stack(slopes, -1)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("hidden", [(), (5, 6)])
@pytest.mark.parametrize("task", ["generative", "structured"])
def test_the_correction_is_that_of_all_other_bits(task, hidden, layer):
    model, target, chain = drawn(task=task, hidden=hidden)
    log_temperature = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    before = torch.arange(IMAGES, dtype=torch.float64)
    temperature = log_temperature.detach().exp()
    temperature, scales = log_temperature.detach().exp(), torch.tensor([0.8, 1.3], dtype=torch.float64)
    found = []
    for signs in itertools.product((-1.0, 1.0), repeat=LAYERS[layer]):
        each = torch.tensor(signs, dtype=torch.float64).expand(IMAGES, -1)
        found.append(relaxed_terms(Place(model, target, chain, layer, each), before, temperature, scales))
    plain = relaxed_terms(Place(model, target, chain, layer), before, temperature, scales[:1])
    assert torch.equal(plain[0], found[0][0])
    value = before + by_autograd(model, target, chain, layer, chain.z[layer], log_temperature)
    values, slopes = correction_by_autograd(model, target, chain, layer, log_temperature)
    value = value[:, None].expand_as(values)
    for mine, theirs in ((plain[0, 0], value), (found[0][1, 0], values)):
        torch.testing.assert_close(mine, theirs.detach())
    torch.testing.assert_close(torch.stack([each[1, 1] for each in found]).mean(0), slopes.detach())
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for terms, expected in ((plain, scales[0] * value), (found[0], scales[0] * value + scales[1] * values)):
        (moved,) = torch.autograd.grad((weights * expected).sum(), log_temperature, retain_graph=True)
        torch.testing.assert_close((weights * terms[-1, 0]).sum(), moved)


def test_how_its_slope_moves_with_the_temperature_lacks_no_more_than_the_third_derivative():
    """Of order weights^3, where what is kept is of order weights^2."""

    def left_out(weights):
        model, target, chain = drawn(weights)
        at = torch.tensor(-0.4, dtype=torch.float64)

        def slope():
            return correction_by_autograd(model, target, chain, 2, at.clone().requires_grad_())[1]

        (expected,) = central_differences(slope, at, step=1e-4)

        signs = [torch.tensor(each).double() for each in itertools.product((-1.0, 1.0), repeat=2)]
        nothing = torch.zeros(IMAGES)
        of_correction = torch.tensor([0.0, 1.0], dtype=torch.float64)
        places = [Place(model, target, chain, 2, each.expand(IMAGES, -1)) for each in signs]
        terms = [relaxed_terms(place, nothing, at.exp(), of_correction) for place in places]
        found = torch.stack([each[-1, 1] for each in terms]).mean(0)
        return float((found - expected).norm() / expected.norm())

    first = left_out(0.1)
    assert first < 0.1
    assert left_out(0.05) < 0.7 * first


def test_signs_are_fair_coins():
    first, second = seeded().signs((20_000,), (3, 2))
    assert first.shape == (20_000, 3) and second.shape == (20_000, 2)
    signs = torch.cat([first, second], -1)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    correlations = signs.T @ signs / len(signs) - torch.eye(5)
    assert max(float(signs.mean(0).abs().max()), float(correlations.abs().max())) < 4.5 / math.sqrt(len(signs))


def test_the_corrected_surrogate_is_trained_on_the_variance():
    """The gradients that it leaves at its scales and at r, against finite differences of the mean square."""
    model = small_model()
    model.double()
    estimator = scrambled(make("relax", model)).double()
    x = image(5).double()

    def variance():
        found = estimator(model, x, seeded(4))
        return sum((len(x) * g).square().mean() for g in found.cotangents)

    wanted = learned_gradients(model, estimator, x, seeded(4))
    learned = {name: p for name, p in estimator.named_parameters() if name != "log_temperature"}
    assert {"eta", "correction"} < learned.keys()
    for parameter in learned.values():
        found = central_differences(variance, parameter, every=5)
        torch.testing.assert_close(found, wanted[parameter].flatten()[::5], rtol=1e-4, atol=1e-6)


def test_each_bit_with_a_control_of_its_own_has_less_variance():
    """With many bits in doubt, scales and temperatures learned by both."""
    generator = torch.Generator().manual_seed(0)
    model = SigmoidBeliefNetwork(torch.full((30,), 0.4), layers=(20,), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    x = torch.rand(60, 30, generator=generator).round()
    found = {}
    for surrogate in ("objective", "corrected"):
        estimator = make("relax", model, surrogate=surrogate)
        optimizer, noise = torch.optim.Adam(estimator.parameters(), lr=0.01), Noise(generator)
        for _ in range(120):
            for parameter, gradient in learned_gradients(model, estimator, x, noise).items():
                parameter.grad = gradient
            optimizer.step()
        draws = torch.stack([estimator(model, x, noise).cotangents[0] for _ in range(50)])
        found[surrogate] = float(draws.var(0).mean())
    assert found["corrected"] < 0.6 * found["objective"]

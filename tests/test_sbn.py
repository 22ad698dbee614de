"""Sigmoid belief networks: the bound against torch.distributions, the samples' law, and what the tasks model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as td

from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork, bernoulli_log_prob


def network(**options) -> SigmoidBeliefNetwork:
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([0.5, 0.2, 0.9, 0.0, 1.0, 0.3])
    model = SigmoidBeliefNetwork(mean, generator=generator, **{"layers": (4, 3), **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def seeded(seed: int) -> Noise:
    return Noise(torch.Generator().manual_seed(seed))


def images(count=5):
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(1)).round()


def test_the_loss_is_the_negative_log_weight():
    model, x = network(), images()
    chain = model.draw(x, seeded(2).logistic((5,), (4, 3)))
    b1, b2 = chain.bits

    def log_prob(bits, logits):
        return td.Bernoulli(logits=logits).log_prob(bits).sum(-1)

    log_q = log_prob(b1, model.encoders[0](x - model.mean)) + log_prob(b2, model.encoders[1](2 * b1 - 1))
    log_p = log_prob(b2, model.prior.expand_as(b2)) + log_prob(b1, model.decoders[1](2 * b2 - 1))
    log_p = log_p + log_prob(x, model.decoders[0](2 * b1 - 1))
    torch.testing.assert_close(model.loss(x, chain), log_q - log_p)


def test_structured_prediction_reaches_the_pixels_through_every_layer():
    """The lower half is predicted from the deepest layer of bits, and from nothing else."""
    model, x = network(task="structured"), images()
    assert model.split == 3 and len(model.decoders) == 1 and model.prior is None
    chain = model.draw(x, seeded(2).logistic((5,), (4, 3)))
    expected = -td.Bernoulli(logits=model.decoders[0](2 * chain.bits[1] - 1)).log_prob(x[:, 3:]).sum(-1)
    torch.testing.assert_close(model.loss(model.target(x), chain), expected)
    torch.testing.assert_close(model.encode(0, model.input(x)), model.encoders[0]((x - model.mean)[:, :3]))


def test_pixels_start_at_the_logit_of_their_mean():
    model = SigmoidBeliefNetwork(torch.tensor([0.2, 0.0, 1.0]), layers=(2,))
    clipped = torch.tensor([0.2, 0.001, 0.999])
    torch.testing.assert_close(model.decoders[0].biases[-1].detach(), -(1 / clipped - 1).log())
    assert model.prior.count_nonzero() == 0


def test_hidden_layers_are_tanh_and_the_wide_decoder_has_those_of_its_output():
    narrow, wide = network(hidden=(7, 8)), network(hidden=(7, 8), wide_decoder=True)
    shapes = [tuple(weight.shape) for weight in narrow.encoders[0].weights]
    assert shapes == [(7, 6), (8, 7), (4, 8)]
    assert [tuple(weight.shape) for weight in wide.decoders[0].weights] == [(6, 4), (6, 6), (6, 6)]
    net = narrow.encoders[0]
    h = images() @ net.weights[0].T + net.biases[0]
    h = torch.tanh(h).matmul(net.weights[1].T) + net.biases[1]
    torch.testing.assert_close(net(images()), torch.tanh(h) @ net.weights[2].T + net.biases[2])


def test_several_samples_share_the_first_logits():
    model, x = network(), images()
    noise = seeded(0).logistic((3, 5), (4, 3))
    chain = model.draw(x, noise)
    assert [tuple(logits.shape) for logits in chain.logits] == [(5, 4), (3, 5, 3)]
    alone = model.draw(x, [layer[1] for layer in noise])
    torch.testing.assert_close(model.loss(x, chain)[1], model.loss(x, alone))


def test_bits_are_drawn_with_their_probabilities():
    model, x = network(), images(1)
    chain = model.draw(x.expand(200_000, -1), seeded(0).logistic((200_000,), (4, 3)))
    probs = torch.sigmoid(chain.logits[0][0])
    error = (probs * (1 - probs) / 200_000).sqrt()
    assert ((chain.bits[0].mean(0) - probs) / error).abs().max() < 4


def test_the_noise_is_logistic_and_finite():
    (noise,) = seeded(0).logistic((400_000,), (1,))
    assert noise.isfinite().all() and noise.dtype == torch.float32
    # Kolmogorov and Smirnov's distance from the logistic distribution, at a level of 1e-4.
    u = torch.sigmoid(noise.flatten().double()).sort().values
    distance = (u - torch.arange(1, len(u) + 1, dtype=torch.float64) / len(u)).abs().max()
    assert distance < 2.2 / math.sqrt(len(u))


def test_generated_pixels_are_probabilities_of_the_whole_image():
    model = network()
    probs = model.generate(9, torch.Generator().manual_seed(0))
    assert probs.shape == (9, 6) and (probs > 0).all() and (probs < 1).all()
    assert torch.equal(probs, model.generate(9, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("size", [-80.0, 80.0])
def test_log_probabilities_of_extreme_logits(size):
    logits = torch.full((2, 3), size, requires_grad=True)
    value = bernoulli_log_prob(torch.tensor([0.0, 1.0])[:, None].expand(2, 3), logits)
    torch.testing.assert_close(value.abs().max(), torch.tensor(240.0))
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()

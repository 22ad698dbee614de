"""Every estimator in a stack of layers, against the sum over all bits; and what it trains beside the model."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from relax_rl import estimators as core
from relax_rl.compute.optimizers import pieces
from relax_rl.distributions import Bernoulli
from relax_rl.errors import SettingsError
from relax_rl.estimators import ESTIMATORS
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.estimators import LAYERED, make_layered_estimator
from relax_rl.experiments.vae.exact import expected_loss
from relax_rl.experiments.vae.gradient import gradients
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork
from tests.oracles import central_differences

PIXELS, SAMPLES, COPIES, BATCHES = 4, 4, 5000, 25
BIASED = ("concrete", "straight-through", "straight-through-gumbel", "gumbel-rao", "reinmax")
UNBIASED = tuple(name for name in LAYERED if name not in (*BIASED, "enumerated", "vimco"))


def small_model(layers=(3, 2), **options) -> SigmoidBeliefNetwork:
    generator = torch.Generator().manual_seed(3)
    model = SigmoidBeliefNetwork(torch.full((PIXELS,), 0.4), layers=layers, generator=generator, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.7 * torch.randn(parameter.shape, generator=generator))
    return model


def scrambled(estimator):
    """All that the estimator learns, far from where it starts."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return estimator


def make(name, model, **options):
    settings = {"num_samples": SAMPLES, "surrogate_depth": 2, "surrogate_width": 8, "surrogate_activation": "tanh"}
    return make_layered_estimator(name, VaeConfig(**{**settings, **options}), model, torch.Generator().manual_seed(1))


def seeded(seed=0):
    return Noise(torch.Generator().manual_seed(seed))


def image(copies=1):
    return torch.tensor([1.0, 0.0, 1.0, 1.0]).expand(copies, -1)


def flat_gradient(model, estimator, x, noise):
    """At the model's parameters; the estimator's moving moments move."""
    found = gradients(model, estimator, x, noise)
    estimator.move_moments(found.signals)
    return found.model


def learned_gradients(model, estimator, x, noise):
    """By parameter of the estimator."""
    parameters = [parameter for group in estimator.groups() for parameter in group]
    found = gradients(model, estimator, x, noise, at="nothing").learned
    return dict(zip(parameters, pieces(found, parameters), strict=True))


def exact_gradient(model):
    parameters = [*model.encoder_parameters, *model.generative_parameters]
    grads = torch.autograd.grad(expected_loss(model, image()).sum(), parameters)
    return torch.cat([grad.flatten() for grad in grads])


def z_scores(model, estimator, exact, batches=BATCHES):
    """Of all parameters' gradients; asserts that a bias of 6% of the gradient would have been seen."""
    noise = seeded(7)
    draws = torch.stack([flat_gradient(model, estimator, image(COPIES), noise) for _ in range(batches)])
    error = draws.double().std(0) / math.sqrt(batches)
    assert 4 * error.norm() < 0.06 * exact.norm(), "too few draws"
    return (draws.double().mean(0) - exact) / error.clamp(min=1e-5)


@pytest.mark.parametrize("layers", [(3,), (3, 2)])
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_in_one_and_in_two_layers(name, layers):
    model = small_model(layers)
    scores = z_scores(model, scrambled(make(name, model)), exact_gradient(model))
    assert scores.abs().max() < 4.5, scores


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rebar", {"rebar_scope": "layer"}),
        ("rebar", {"rebar_scope": "bit"}),
        ("relax", {"surrogate": "free"}),
        ("relax", {"surrogate": "objective"}),
        ("dlax", {"surrogate": "objective"}),
        ("relax", {"surrogate_activation": "relu", "surrogate_context": "input"}),
        ("reinforce", {"baseline": "none"}),
        ("disarm", {"num_samples": 2}),
    ],
)
def test_options_keep_it_unbiased(name, options):
    model = small_model()
    scores = z_scores(model, scrambled(make(name, model, **options)), exact_gradient(model), batches=2 * BATCHES)
    assert scores.abs().max() < 4.5, scores


@pytest.mark.parametrize("name", ["relax", "rebar", "rloo", "muprop", "arms"])
def test_unbiased_with_three_nonlinear_layers_and_in_structured_prediction(name):
    deep = small_model((2, 2, 2), hidden=(3, 3))
    scores = z_scores(deep, scrambled(make(name, deep)), exact_gradient(deep), batches=2 * BATCHES)
    assert scores.abs().max() < 4.5, scores
    structured = small_model((3, 2), task="structured")
    assert z_scores(structured, scrambled(make(name, structured)), exact_gradient(structured)).abs().max() < 4.5


@pytest.mark.parametrize("name", BIASED)
def test_the_biased_ones_are_seen_to_be_biased(name):
    model = small_model()
    scores = z_scores(model, make(name, model), exact_gradient(model))
    assert scores.abs().max() > 8


def test_gumbel_rao_has_the_bias_of_straight_through_gumbel():
    model = small_model()
    noise = seeded(7)

    def mean_and_error(name):
        estimator = make(name, model)
        draws = [flat_gradient(model, estimator, image(COPIES), noise) for _ in range(BATCHES)]
        return torch.stack(draws).mean(0), torch.stack(draws).std(0) / math.sqrt(BATCHES)

    (rao, rao_error), (gumbel, gumbel_error) = mean_and_error("gumbel-rao"), mean_and_error("straight-through-gumbel")
    assert ((rao - gumbel) / (rao_error**2 + gumbel_error**2).sqrt().clamp(min=1e-6)).abs().max() < 4.5
    assert rao_error.norm() < gumbel_error.norm()


def test_vimco_follows_the_bound_of_several_samples():
    model = small_model()
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5)))
    bits = every.split([3, 2], -1)
    logits = [model.encode(0, model.input(image())).expand(len(every), -1), model.encode(1, bits[0])]
    log_q = sum(torch.distributions.Bernoulli(logits=a).log_prob(b).sum(-1) for a, b in zip(logits, bits, strict=True))
    log_w = -torch.stack(model.terms(model.target(image()), bits, logits)).sum(0)
    bound = torch.logsumexp(torch.stack(torch.broadcast_tensors(log_w[:, None], log_w[None])), 0) - math.log(2)
    expected = -(torch.exp(log_q[:, None] + log_q[None]) * bound).sum()
    grads = torch.autograd.grad(expected, [*model.encoder_parameters, *model.generative_parameters])
    exact = torch.cat([grad.flatten() for grad in grads])
    assert z_scores(model, make("vimco", model, num_samples=2), exact).abs().max() < 4.5
    assert not torch.allclose(exact, exact_gradient(model), rtol=0.1)


def test_enumeration_needs_no_draws():
    model = small_model()
    found = flat_gradient(model, make("enumerated", model), image(3), noise=None)
    torch.testing.assert_close(found, exact_gradient(model))


def test_the_last_layer_of_marginal_has_no_variance():
    model = small_model((3,))
    estimator, noise = make("marginal", model), seeded()
    draws = [gradients(model, estimator, image(), noise, at="encoder").model for _ in range(2)]
    torch.testing.assert_close(*draws)


def one_layer(name, **options):
    """A model of one layer, an estimator with a random surrogate, images, their noise and the same as one distribution."""
    model = small_model((3,))
    estimator = scrambled(make(name, model, **options))
    x = torch.rand(6, PIXELS, generator=torch.Generator().manual_seed(2)).round()
    (noise,) = seeded(11).logistic((6,), (3,))
    found = estimator(model, x, seeded(11))
    logits = model.encode(0, model.input(x)).detach()

    def f(bits):
        return model.term(0, x, None, bits, logits)

    return model, estimator, x, noise, found, Bernoulli(logits.clone().requires_grad_()), f


def residual(network, context, z):
    """r as plain differentiable code."""
    activation = {"relu": torch.relu, "tanh": torch.tanh, "silu": torch.nn.functional.silu}[network.kind]
    h = activation(context @ network.of_context.T + z @ network.of_z.T + network.biases[0])
    for weight, bias in zip(network.inner, network.biases[1:], strict=True):
        h = activation(h @ weight.T + bias)
    return h @ network.out


@pytest.mark.parametrize(
    ("activation", "context"), [("relu", "input"), ("relu", "logits"), ("tanh", "logits"), ("silu", "input")]
)
@pytest.mark.parametrize("name", ["relax", "dlax", "rebar"])
def test_one_layer_is_the_estimator_for_one_distribution_and_so_is_its_variance_gradient(name, activation, context):
    options = {
        "surrogate_activation": activation,
        "surrogate_context": context,
        "surrogate_depth": 3,
        "rebar_scope": "layer",
        "surrogate": "objective",
    }
    model, estimator, x, noise, found, dist, f = one_layer(name, **options)
    eta, temperature = estimator.eta[0], estimator.log_temperature[0].exp()

    def surrogate(z):
        control = eta * f(dist.soften(z, temperature))
        given = model.input(x) if context == "input" else dist.params.detach()
        return control + residual(estimator.residuals[0], given, z) if estimator.residuals else control

    coupled = {} if name == "dlax" else {"coupling": "coupled"}
    function = core.dlax if name == "dlax" else core.relax
    expected = function(f, dist, surrogate, noise=noise, phi=estimator.parameters(), **coupled)
    torch.testing.assert_close(found.cotangents[0] * len(x), expected.grad.detach(), rtol=1e-4, atol=1e-4)
    loss = expected.variance_loss() / dist.params.shape[-1]
    parameters = [parameter for group in estimator.groups() for parameter in group]
    for mine, grad in zip(found.learned, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(mine, grad, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["reinforce", "straight-through", "straight-through-gumbel", "reinmax", "concrete"])
def test_one_layer_is_the_estimator_for_one_distribution(name):
    model, _, x, noise, found, dist, f = one_layer(name, baseline="none")
    expected = core.make_estimator(name)(f, dist, noise=noise).grad.detach()
    if found.cotangents is None:  # these also hold q's own score, at the (relaxed) bits
        bits = dist.threshold(dist.relax(noise)) if name != "concrete" else dist.soften(dist.relax(noise), 0.5)
        expected = expected + (bits - dist.mean).detach()
    torch.testing.assert_close(
        found.pull_back(model.encoder_parameters, [])[0], expected.T @ model.input(x) / len(x), rtol=1e-4, atol=1e-5
    )


def test_the_variance_at_the_parameters_trains_parameter_rebar():
    """The gradient that REBAR leaves at its scales, temperature and baseline, against finite differences."""
    model = small_model()
    model.double()
    estimator = scrambled(make("rebar", model)).double()
    x = image(3).double()

    def variance():
        return gradients(model, estimator, x, seeded(4), at="encoder").model.square().sum()

    for parameter, grad in learned_gradients(model, estimator, x, seeded(4)).items():
        wanted = grad.flatten()[::7]
        torch.testing.assert_close(central_differences(variance, parameter, every=7), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["relax", "rebar", "double-cv", "rodeo"])
def test_what_is_learned_beside_the_model_lowers_the_variance(name):
    model, noise = small_model(), seeded()
    estimator = scrambled(make(name, model))

    def variance():
        draws = torch.stack([flat_gradient(model, estimator, image(50), noise) for _ in range(150)])
        return float(draws.var(0).sum())

    before = variance()
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.02)
    for _ in range(200):
        for parameter, gradient in learned_gradients(model, estimator, image(50), noise).items():
            parameter.grad = gradient
        optimizer.step()
    assert variance() < 0.87 * before


@pytest.mark.parametrize("name", LAYERED)
def test_gradients_move_nothing_and_are_there_for_every_parameter(name):
    model = small_model()
    estimator = make(name, model)
    both = torch.nn.ModuleList([model, estimator])
    before = copy.deepcopy(both.state_dict())
    found = gradients(model, estimator, image(5), seeded())
    assert all(torch.equal(x, before[key]) for key, x in both.state_dict().items())
    assert all(parameter.grad is None for parameter in both.parameters())
    every = vars(found).values()
    assert found.loss.shape == (5,) and all(x.isfinite().all() and not x.requires_grad for x in every)
    sizes = [sum(x.numel() for x in module.parameters()) for module in (model, estimator)]
    assert [len(found.model), len(found.learned)] == sizes
    watching = gradients(model, estimator, image(5), seeded(), at="encoder")
    size = sum(parameter.numel() for parameter in model.encoder_parameters)
    assert len(watching.model) == size and torch.equal(watching.model, found.model[:size])
    assert not len(gradients(model, estimator, image(5), seeded(), at="nothing").model)


def test_every_estimator_of_the_registry_that_is_for_bits_is_there():
    assert set(LAYERED) == {name for name, info in ESTIMATORS.items() if "bits" in info.outcomes}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lax", {}, "does not apply to layers of bits"),
        ("relaxx", {}, "unknown estimator"),
        ("rloo", {"num_samples": 1}, "at least 2"),
        ("disarm", {"num_samples": 3}, "an even number"),
        ("rodeo", {"num_samples": 1}, "at least 2"),
    ],
)
def test_what_cannot_work_is_refused(name, options, message):
    with pytest.raises(SettingsError, match=message):
        make(name, small_model(), **options)


def test_sums_over_many_bits_are_refused():
    with pytest.raises(SettingsError, match="out of reach"):
        make("enumerated", small_model((13,)))


def test_extreme_logits_stay_finite():
    model = small_model()
    with torch.no_grad():
        for parameter in model.encoder_parameters:
            parameter.mul_(100.0)
    for name in ("relax", "rebar", "dlax", "gumbel-rao", "reinmax", "arms", "disarm"):
        estimator = make(name, model)
        found = gradients(model, estimator, image(200), seeded())
        assert all(x.isfinite().all() for x in vars(found).values()), name


@pytest.mark.parametrize("name", ["muprop", "simple-muprop"])
def test_scales_of_an_expansion_go_down_the_square_of_what_multiplies_the_score(name):
    model, x = small_model(), image(64)
    estimator = scrambled(make(name, model))

    def mean_square(logits):
        """Of the first layer's signal, for one and the same draw of bits."""
        twin = copy.deepcopy(estimator).double()
        with torch.no_grad():
            twin.scale_logits[0] = logits
        seen = []
        twin.centrings[0].register_forward_hook(lambda module, given, found: seen.append(found.signal))
        twin(copy.deepcopy(model).double(), x.double(), seeded(2))
        return seen[0].square().mean()

    at = estimator.scale_logits[0].detach().double().clone()
    double = copy.deepcopy(estimator).double()
    found = learned_gradients(copy.deepcopy(model).double(), double, x.double(), seeded(2))[double.scale_logits]
    expected = central_differences(lambda: mean_square(at), at)
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-7)

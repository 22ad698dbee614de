"""The product of continuous and discrete distributions: its estimates are exact, and it is its factors side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.critics import MLPSurrogate
from relax_rl.distributions import Bernoulli, Beta, Categorical, DiagGaussian, MultiCategorical, Product, TanhGaussian
from relax_rl.estimators import enumerated, lax, marginal, reinforce, relax, variance_loss
from tests.estimator_cases import seeded
from tests.oracles import assert_unbiased, central_differences, collect

PARAMS = torch.tensor([[0.4, -0.3, 0.7]], dtype=torch.float64)


def number_and_bit(family: Any, params: Tensor = PARAMS) -> Product:
    """A number with a bit whose logit is the last parameter."""
    return Product.of(family(params[:, :2]), Bernoulli(params[:, 2:]))


def payoff(sample: Tensor) -> Tensor:
    """Neither linear nor separable in the number and the bit."""
    x, bit = sample[..., 0], sample[..., 1]
    return torch.sin(2 * x) * (1 + 1.5 * bit) + 0.7 * bit - 0.2 * x.square()


def surrogate(z: Tensor) -> Tensor:
    """Unrelated to the payoff, coupled, oscillating."""
    return torch.sin(1.5 * z[..., 0] + 0.4 * z[..., 1]) - torch.tanh(z[..., 1]) * (0.5 + z[..., 0])


def grid(family: Any, count: int, params: Tensor = PARAMS) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`[R]` numbers, and the weights `[R]` of each as a function of the parameters `[1, 2]`."""
    if family is Beta:
        nodes = torch.linspace(0, torch.pi, count + 2, dtype=torch.float64)[1:-1]
        x, step = (1 - nodes.cos()) / 2, nodes.sin() / 2 * (nodes[1] - nodes[0])
        return x, lambda at: step * Beta(at.expand(count, -1)).log_prob(x[:, None]).exp()
    at = DiagGaussian(params[:, :2])
    x = (at.mean + at.log_std.exp() * torch.linspace(-9, 9, count, dtype=torch.float64)).flatten().detach()
    step = x[1] - x[0]
    return x, lambda at: step * DiagGaussian(at.expand(count, -1)).log_prob(x[:, None]).exp()


def exact(family: Any, f: Callable[[Tensor], Tensor]) -> Tensor:
    """`[3]` the gradient of E[f] by quadrature over the number and a sum over the bit."""
    params = PARAMS.clone().requires_grad_()
    x, weights = grid(family, 400)
    total = torch.zeros(())
    for bit, p in ((0.0, torch.sigmoid(-params[0, 2])), (1.0, torch.sigmoid(params[0, 2]))):
        total = total + p * (weights(params[:, :2]) * f(torch.stack([x, torch.full_like(x, bit)], -1))).sum()
    (gradient,) = torch.autograd.grad(total, params)
    return gradient[0]


FAMILIES = pytest.mark.parametrize("family", [DiagGaussian, TanhGaussian, Beta])


@FAMILIES
@pytest.mark.parametrize("coupling", ["coupled", "independent"])
def test_relax_is_exact_in_expectation_over_numbers_and_bits_at_once(family: Any, coupling: Any) -> None:
    """LAX on the number and RELAX on the bit: the mean over both, and over the noise behind them, is the gradient."""
    independent = coupling == "independent"
    count = 30 if independent else 60
    x, weights = grid(family, count)
    noise = torch.linspace(-24, 24, 40, dtype=torch.float64)
    density = torch.softmax(-noise - 2 * torch.nn.functional.softplus(-noise), 0)
    v, v_tilde = torch.meshgrid(noise, noise if independent else noise[:1], indexing="ij")
    of_noise = density[:, None] * (density if independent else torch.ones(1, dtype=torch.float64))
    rows = (count, *v.shape)
    total = torch.zeros(3, dtype=torch.float64)
    for bit in (0.0, 1.0):
        dist = number_and_bit(family, PARAMS.expand(count * v.numel(), -1))
        sample = torch.stack([x[:, None, None].expand(rows), torch.full(rows, bit, dtype=torch.float64)], -1)
        sample = sample.flatten(0, 2)

        def standard(bits: Tensor, dist: Product = dist, rows: tuple[int, ...] = rows) -> Tensor:
            """Base noise with these of the bit; that of the number plays no part in z given b."""
            number = dist.factors[0].sample_noise(seeded(0))
            return torch.cat([number, bits.expand(rows).flatten()[:, None]], -1)

        z = dist.relax_given(sample, standard(v[None]))
        options = {"conditional_noise": standard(v_tilde[None])} if independent else {"coupling": "coupled"}
        found = relax(payoff(sample), dist, surrogate, noise=dist.noise_of(z), sample=sample, **options).grad
        probability = torch.sigmoid((2 * bit - 1) * PARAMS[0, 2])
        weight = probability * weights(PARAMS[:, :2])[:, None, None] * of_noise
        total += (weight.flatten()[:, None] * found).sum(0)
    torch.testing.assert_close(total, exact(family, payoff), rtol=2e-4, atol=2e-5)


def test_an_estimate_that_is_only_relax_of_the_bit_would_be_found_out() -> None:
    """Were the number in z~ to move too, the estimate would lack LAX's half."""

    class Moving(Product):
        def conditional_weight(self, sample: Tensor, z_tilde: Tensor) -> Tensor:
            weight = super().conditional_weight(sample, z_tilde)
            return torch.cat([torch.ones_like(weight[..., :1]), weight[..., 1:]], -1)

    whole = number_and_bit(DiagGaussian, PARAMS.expand(62_500, -1).float())
    spoilt = Moving(whole.params, whole.parts)
    generator = seeded(1)
    right, wrong = (
        collect(lambda _, d=dist: relax(payoff, d, surrogate, generator=generator).grad, 250_000)  # type: ignore[misc]
        for dist in (whole, spoilt)
    )
    assert_unbiased(right, exact(DiagGaussian, payoff), power=0.1)
    assert ((wrong.mean - exact(DiagGaussian, payoff)) / wrong.standard_error).abs().max() > 20


def test_relax_of_numbers_and_several_choices_is_unbiased() -> None:
    params = torch.tensor([[0.2, -0.1, -0.4, -0.6, 0.3, -0.2, 0.1, -0.5, 0.4]])

    def made(rows: int) -> Product:
        at = params.expand(rows, -1)
        return Product.of(DiagGaussian(at[:, :4]), MultiCategorical(at[:, 4:], (2, 3)))

    table = torch.tensor([[0.9, -0.2, 0.8], [0.3, -1.1, -0.7]])

    def f(sample: Tensor) -> Tensor:
        gear = sample[..., 2:].long()
        return table[gear[..., 0], gear[..., 1]] * (1 + sample[..., 0]) + 0.5 * torch.cos(sample[..., 1])

    row = params[0].double().requires_grad_()
    nodes = torch.linspace(-9, 9, 200, dtype=torch.float64)
    weights = torch.softmax(-0.5 * nodes.square(), 0)
    probs = row[4:6].softmax(0)[:, None] * row[6:].softmax(0)
    cosine = (weights * torch.cos(row[1] + row[3].exp() * nodes)).sum()
    (gradient,) = torch.autograd.grad((probs * table).sum() * (1 + row[0]) + 0.5 * cosine, row)
    net = torch.nn.Sequential(torch.nn.Linear(7, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(2)) * 0.4)
    dist, generator = made(62_500), seeded(3)
    for coupling in ("coupled", "independent"):
        c = MLPSurrogate(net, dist)
        draws = collect(lambda _, c=c, k=coupling: relax(f, dist, c, coupling=k, generator=generator).grad, 250_000)  # type: ignore[misc]
        assert_unbiased(draws, gradient, power=0.1)


@FAMILIES
@pytest.mark.parametrize("coupling", ["coupled", "independent"])
def test_the_gradient_of_the_variance_in_phi_equals_finite_differences(family: Any, coupling: Any) -> None:
    dist = number_and_bit(family, PARAMS.expand(16, -1))
    phi = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        def c(z: Tensor) -> Tensor:
            return torch.sin(phi[0] * z[..., 0] + phi[1] * z[..., 1]) * phi[2] + phi[0] * z.prod(-1)

        return variance_loss(relax(payoff, dist, c, coupling=coupling, generator=seeded(4)).grad)

    (found,) = torch.autograd.grad(loss(), phi)
    torch.testing.assert_close(found, central_differences(loss, phi), rtol=1e-6, atol=1e-8)


def test_a_product_of_numbers_alone_is_lax() -> None:
    params, generator = torch.randn(50, 4, generator=seeded(5)), seeded(6)
    whole, plain = Product.of(DiagGaussian(params)), DiagGaussian(params)
    noise = plain.sample_noise(generator)
    for coupling in ("coupled", "independent"):
        found = relax(surrogate, whole, surrogate, noise=noise, coupling=coupling, generator=generator).grad  # type: ignore[arg-type]
        torch.testing.assert_close(found, lax(surrogate, plain, surrogate, noise=noise).grad)
    with pytest.raises(ValueError, match="use relax for Product"):
        lax(surrogate, whole, surrogate, noise=noise)


def test_products_of_choices_can_be_listed_and_others_say_why_not() -> None:
    params = torch.randn(3, 5, generator=seeded(7))
    dist = Product.of(Categorical(params[:, :3]), Bernoulli(params[:, 3:]))
    assert dist.support().shape == (12, 3) and len(dist.support().unique(dim=0)) == 12
    value = torch.randn(3, 2, 2, generator=seeded(8))

    def f(sample: Tensor) -> Tensor:
        return value[tuple(sample.long().unbind(-1))]

    leaf = params.clone().requires_grad_()
    probs = leaf[:, :3].softmax(-1)[:, :, None, None]
    for k in (3, 4):
        bit = torch.stack([torch.sigmoid(-leaf[:, k]), torch.sigmoid(leaf[:, k])], -1)
        probs = probs * (bit[:, None, :, None] if k == 3 else bit[:, None, None, :])
    (gradient,) = torch.autograd.grad((probs * value).sum(), leaf)
    torch.testing.assert_close(enumerated(f, dist).grad, gradient)
    summed = marginal(f, dist, lambda b: f(b[..., [0, 3, 4]] * 0 + dist_index(b)), generator=seeded(9)).grad
    torch.testing.assert_close(summed, gradient)
    mixed = number_and_bit(DiagGaussian)
    for refused in (lambda: marginal(payoff, mixed, surrogate), lambda: mixed.mean, lambda: enumerated(payoff, mixed)):
        with pytest.raises(ValueError, match="a product with DiagGaussian cannot be listed"):
            refused()


def dist_index(embedded: Tensor) -> Tensor:
    """Outcomes of a choice of three and two bits, from their embedding."""
    return torch.cat([embedded[..., :3].argmax(-1, keepdim=True), embedded[..., 3:]], -1)


def test_a_product_is_its_factors_side_by_side() -> None:
    params = torch.randn(40, 13, generator=seeded(10))
    factors = [TanhGaussian(params[:, :4]), Categorical(params[:, 4:7]), Beta(params[:, 7:9]), Bernoulli(params[:, 9:])]
    dist, other = Product.of(*factors), Product.of(*(f.with_params(f.params.flip(0)) for f in factors))
    noise = dist.sample_noise(seeded(11))
    z = dist.relax(noise)
    sample = dist.threshold(z)
    assert sample.shape == (40, 8) and sample.dtype == params.dtype and z.shape == (40, 10)
    own = dist.samples(sample)
    assert own[1].dtype == torch.int64 and own[1].shape == (40,)
    for name in ("log_prob", "score", "embed", "cdf"):
        parts = [getattr(f, name)(b) for f, b in zip(factors, own, strict=True)]
        parts = [x[:, None] if name == "cdf" and x.dim() == 1 else x for x in parts]
        expected = sum(parts) if name == "log_prob" else torch.cat(parts, -1)
        torch.testing.assert_close(getattr(dist, name)(sample), expected)
    torch.testing.assert_close(dist.entropy(), sum(f.entropy() for f in factors))
    assert torch.equal(dist.relax_given(sample, noise)[:, :2], z[:, :2])
    assert torch.equal(dist.threshold(dist.relax_given(sample, dist.sample_noise(seeded(12)))), sample)
    torch.testing.assert_close(dist.relax(dist.noise_of(z)), z)
    torch.testing.assert_close(dist.relax_given(sample, dist.noise_given(sample, z)), z, rtol=1e-4, atol=1e-4)
    divergence = [f.kl_divergence(f.with_params(f.params.flip(0))) for f in factors]
    torch.testing.assert_close(dist.kl_divergence(other), sum(divergence))
    leaf = dist.with_params(params.clone().requires_grad_())
    (score,) = torch.autograd.grad(leaf.log_prob(sample).sum(), leaf.params)
    torch.testing.assert_close(score, dist.score(sample))
    mode = dist.samples(dist.mode())
    for f, found in zip(factors, mode, strict=True):
        torch.testing.assert_close(found, f.mode())


def test_a_look_without_graph_leaves_the_graph_to_what_follows() -> None:
    dist = number_and_bit(DiagGaussian, PARAMS.clone().requires_grad_())
    with torch.no_grad():
        dist.log_prob(torch.zeros(1, 2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(dist.entropy().sum(), dist.params)
    assert gradient[0, 1] == 1.0


def test_factors_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2, 4\), \(3, 2\), expected alike"):
        Product.of(DiagGaussian(torch.zeros(2, 4)), Bernoulli(torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="shapes none"):
        Product.of()
    dist = number_and_bit(DiagGaussian)
    with pytest.raises(ValueError, match="expected a last dimension of 3"):
        dist.with_params(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="of 2 and of 1 factors"):
        dist.kl_divergence(Product.of(Bernoulli(torch.zeros(1, 3))))
    with pytest.raises(ValueError, match="not of one family"):
        dist.kl_divergence(number_and_bit(TanhGaussian))


def test_reinforce_of_a_product_needs_no_noise_of_its_own() -> None:
    dist = number_and_bit(Beta, PARAMS.expand(62_500, -1).float())
    generator = seeded(13)
    draws = collect(lambda _: reinforce(payoff, dist, generator=generator).grad, 375_000)
    assert_unbiased(draws, exact(Beta, payoff), power=0.1)

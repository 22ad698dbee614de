"""KL divergences, cumulative probabilities, and what is said of parameters that cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor
from torch import distributions as td

from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical, TanhGaussian

INF = math.inf
FAMILIES: dict[str, Any] = {
    "bits": Bernoulli,
    "ways": Categorical,
    "vectors": lambda p: Categorical(p, one_hot=True),
    "equal factors": lambda p: MultiCategorical(p, (3, 3)),
    "factors": lambda p: MultiCategorical(p, (2, 3, 1)),
    "gaussian": DiagGaussian,
    "squashed": TanhGaussian,
}
every = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_torch(dist: Any) -> list[td.Distribution]:
    """Independent parts, whose divergences add up to `[*]`."""
    if isinstance(dist, Bernoulli):
        return [td.Independent(td.Bernoulli(logits=dist.params), 1)]
    if isinstance(dist, DiagGaussian):
        return [td.Independent(td.Normal(dist.mean, dist.log_std.exp()), 1)]
    sizes = dist.nvec if isinstance(dist, MultiCategorical) else [dist.params.shape[-1]]
    return [td.Categorical(logits=part) for part in dist.params.split(list(sizes), -1)]


def expected_kl(p: Any, q: Any) -> Tensor:
    return torch.stack([td.kl_divergence(a, b) for a, b in zip(of_torch(p), of_torch(q), strict=True)]).sum(0)


# Divergence


@every
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 4, 6)], ids=str)
def test_the_divergence_and_its_gradients_are_those_of_torch(family: Any, shape: tuple[int, ...]) -> None:
    x, y = (drawn(*shape, seed=seed).requires_grad_() for seed in (1, 2))
    found, expected = family(x).kl_divergence(family(y)), expected_kl(family(x), family(y))
    assert found.shape == shape[:-1] and (found > 0).all()
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(kl.sum(), (x, y)) for kl in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda a, b: family(a).kl_divergence(family(b)), (x, y))


@every
def test_rows_of_one_are_compared_with_all_rows_of_the_other(family: Any) -> None:
    one, many = drawn(6, seed=3), drawn(5, 6, seed=4)
    torch.testing.assert_close(
        family(many).kl_divergence(family(one)), expected_kl(family(many), family(one.expand(5, 6)))
    )
    assert family(one).kl_divergence(family(one)).abs() < 1e-12


def test_a_divergence_from_near_by_keeps_its_digits() -> None:
    for mean in (1e-4, 1e-3):
        near = DiagGaussian(torch.tensor([mean, 0.0])).kl_divergence(DiagGaussian(torch.zeros(2)))
        assert float(near) == pytest.approx(mean**2 / 2, rel=1e-5)


MASKED: list[tuple[Any, list[float], list[float], float]] = [
    (Categorical, [0.0, 0.0, -INF], [0.0, 0.0, -INF], 0.0),
    (Categorical, [0.0, -INF, -INF], [0.0, 0.0, -INF], math.log(2)),
    (Categorical, [0.0, 0.0, -INF], [0.0, 0.0, 0.0], math.log(1.5)),
    (Categorical, [0.0, 0.0, 0.0], [0.0, 0.0, -INF], INF),
    (Bernoulli, [-INF, INF], [-INF, INF], 0.0),
    (Bernoulli, [-INF, INF], [0.0, 0.0], math.log(4)),
    (Bernoulli, [0.0, 0.0], [0.0, -INF], INF),
    (Bernoulli, [INF], [-INF], INF),
    (lambda p: MultiCategorical(p, (2, 3)), [0.0, -INF, 0.0, 0.0, -INF], [0.0, 0.0, 0.0, 0.0, 0.0], math.log(3)),
    (lambda p: MultiCategorical(p, (2, 3)), [0.0, 0.0, 0.0, 0.0, 0.0], [0.0, -INF, 0.0, 0.0, 0.0], INF),
]


@pytest.mark.parametrize(("family", "p", "q", "expected"), MASKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masked_choices_have_their_divergence(
    family: Any, p: list[float], q: list[float], expected: float, dtype: torch.dtype
) -> None:
    x, y = (torch.tensor(values, dtype=dtype, requires_grad=True) for values in (p, q))
    found = family(x).kl_divergence(family(y))
    assert float(found.detach()) == pytest.approx(expected, abs=1e-6)
    for params, gradient in zip((x, y), torch.autograd.grad(found, (x, y)), strict=True):
        assert gradient.isfinite().all() and not gradient[params.isinf()].any()


def test_logits_that_are_large_are_no_masks() -> None:
    bits = Bernoulli(torch.tensor([0.0])).kl_divergence(Bernoulli(torch.tensor([-200.0])))
    assert float(bits) == pytest.approx(100 - math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (Categorical(torch.zeros(3)), Bernoulli(torch.zeros(3))),
        (Categorical(torch.zeros(3)), Categorical(torch.zeros(4))),
        (DiagGaussian(torch.zeros(4)), TanhGaussian(torch.zeros(4))),
        (MultiCategorical(torch.zeros(5), (2, 3)), MultiCategorical(torch.zeros(5), (3, 2))),
        (Bernoulli(torch.zeros(3)), td.Bernoulli(torch.zeros(3))),
    ],
)
def test_what_cannot_be_compared_is_told(left: Any, right: Any) -> None:
    with pytest.raises(ValueError, match="not of one family and width"):
        left.kl_divergence(right)


# Cumulative probabilities


def test_the_cdf_of_normals_is_that_of_scipy() -> None:
    params, x = drawn(4, 6, seed=5), 3 * drawn(4, 3, seed=6)
    law = stats.norm(params[:, :3].numpy(), params[:, 3:].exp().numpy())
    for family in (DiagGaussian, TanhGaussian):
        torch.testing.assert_close(family(params).cdf(x), torch.from_numpy(law.cdf(x.numpy())))
    far = DiagGaussian(torch.zeros(2).double()).cdf(torch.tensor([-20.0]).double())
    assert float(far) == pytest.approx(stats.norm.cdf(-20.0), rel=1e-9)
    # A sample stands before the squashing, which is monotone.
    dist = TanhGaussian(torch.tensor([0.3, -0.5], dtype=torch.float64))
    outcome = torch.tanh(dist.relax(torch.randn(50_000, 1, generator=torch.Generator().manual_seed(1))))
    assert float((outcome <= 0.2).double().mean()) == pytest.approx(
        float(dist.cdf(torch.atanh(torch.tensor([0.2])))), abs=0.01
    )


def test_the_cdf_of_choices_adds_up_their_probabilities() -> None:
    params = torch.tensor([[0.1, -INF, 0.7, -0.3], [0.0, 0.0, 0.0, 0.0]])
    sums = params.softmax(-1).cumsum(-1)
    for index in range(4):
        at = torch.tensor([index, index])
        torch.testing.assert_close(Categorical(params).cdf(at), sums[:, index])
        vectors = torch.nn.functional.one_hot(at, 4).float()
        torch.testing.assert_close(Categorical(params, one_hot=True).cdf(vectors), sums[:, index])
    assert (Categorical(params).cdf(torch.tensor([3, 3])) <= 1).all()
    assert Categorical(params[0]).cdf(torch.arange(4)).shape == (4,)
    factors = MultiCategorical(torch.tensor([0.2, -0.4, 0.5, 0.1, -1.0]), (2, 3))
    each = [part.softmax(-1).cumsum(-1) for part in factors.params.split([2, 3])]
    torch.testing.assert_close(factors.cdf(torch.tensor([0, 1])), torch.stack([each[0][0], each[1][1]]))
    bits = Bernoulli(torch.tensor([0.4, -INF, INF]))
    torch.testing.assert_close(bits.cdf(torch.zeros(3)), torch.tensor([torch.sigmoid(torch.tensor(-0.4)), 1.0, 0.0]))
    assert bits.cdf(torch.ones(3)).tolist() == [1.0, 1.0, 1.0]


@every
def test_the_cdf_grows_with_the_outcome(family: Any) -> None:
    dist = family(drawn(5, 6, seed=7))
    if hasattr(dist, "support"):
        low, high = dist.support()[0], dist.support()[-1]
    else:
        low, high = torch.full((3,), -1.0), torch.full((3,), 1.0)
    assert (dist.cdf(low) <= dist.cdf(high)).all() and (dist.cdf(low) >= 0).all() and (dist.cdf(high) <= 1).all()


# Arguments


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: DiagGaussian(torch.zeros(2, 3)), r"params of DiagGaussian have shape \(2, 3\), expected .* an even"),
        (lambda: MultiCategorical(torch.zeros(4), (2, 3)), r"have shape \(4,\), expected a last dimension of 5"),
        (lambda: Categorical(torch.zeros(())), r"params of Categorical have shape \(\)"),
        (lambda: Bernoulli(torch.zeros(3, 0)), r"have shape \(3, 0\), expected a last dimension of at least 1"),
        (lambda: Categorical(torch.tensor([0.0, math.nan])).sample_noise(), "allow no outcome"),
        (lambda: Bernoulli(torch.tensor([[0.0, math.nan]])).sample_noise(), r"params\[0, 1\] of Bernoulli is nan"),
        (lambda: DiagGaussian(torch.tensor([0.0, INF])).sample_noise(), r"params\[1\] of DiagGaussian is inf"),
        (
            lambda: TanhGaussian(torch.cat([torch.zeros(1), torch.tensor([-1.0]).log()])).sample_noise(),
            r"params\[1\] of TanhGaussian is nan, .* was a logarithm taken of a negative number",
        ),
    ],
)
def test_parameters_that_cannot_be_are_told(make: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("params", [torch.zeros(3, dtype=torch.int64), [0.0, 1.0]])
def test_parameters_of_another_type_are_told(params: Any) -> None:
    for family in (Bernoulli, Categorical, DiagGaussian):
        with pytest.raises(TypeError, match=f"params of {family.__name__} are .*, expected a tensor of floating-point"):
            family(params)

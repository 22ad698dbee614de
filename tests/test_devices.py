"""Estimators stay on the device of the parameters: no tensor made elsewhere, no number fetched to the host.

On the "meta" device nothing has a value: an operation that needs one on the host fails there, and so does one that
mixes devices. So the rule is tested without an accelerator; with one, the same cases run on it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from relax_rl.critics import MLPSurrogate
from relax_rl.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    Gamma,
    MultiCategorical,
    Ordinal,
    PlackettLuce,
    Poisson,
    Subset,
    TanhGaussian,
)
from relax_rl.estimators import (
    ESTIMATORS,
    MovingAverage,
    describe,
    make_estimator,
    nvil,
    policy_gradient_loss,
    relax,
    variance_loss,
)
from relax_rl.estimators.diagnostics import (
    bias,
    effective_sample_size_ratio,
    mean,
    squared_norm,
    variance,
    variance_parts,
)

FAMILIES: dict[str, Callable[[Tensor], Any]] = {
    "bits": Bernoulli,
    "categories": lambda params: Categorical(params, one_hot=True),
    "indices": Categorical,
    "factors": lambda params: MultiCategorical(params, (2, 4), one_hot=True),
    "index of factors": lambda params: MultiCategorical(params, (2, 4)),
    "orders": lambda params: PlackettLuce(params, 3, one_hot=True),
    "subsets": lambda params: Subset(params, 2, one_hot=True),
    "continuous": DiagGaussian,
    "squashed": TanhGaussian,
    "counts": Poisson,
    "ranks": Ordinal,
    "positive": Gamma,
}
DISCRETE = ("bits", "categories", "indices", "factors", "index of factors")
# nvil keeps statistics on the host, and so fetches the mean of f; matchings are found there.
CASES = [
    (name, kind)
    for name, info in ESTIMATORS.items()
    for kind in info.outcomes
    if name != "nvil" and kind != "matchings"
]
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
devices = pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=on_cuda)])


class OnlyOn(TorchDispatchMode):
    """Refuses every operation that leaves a tensor on another device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.device.type != self.device:
                raise AssertionError(f"{func} made a tensor on {x.device}")
        return result


def f(b: Tensor) -> Tensor:
    return torch.sin(2 * b.sum(-1)) + (b[..., 0] - 0.3) ** 2


def c(z: Tensor) -> Tensor:
    return 0.4 * torch.tanh(z).sum(-1) - 0.3 * torch.sin(z[..., 0]) * torch.tanh(z[..., -1])


def run_estimator(
    name: str, kind: str, device: str, generator: torch.Generator | None, *, watched: bool = True
) -> Tensor:
    """One estimate and all its gradients; returns the one at theta."""
    options: dict[str, Any] = {"surrogate": c} if "surrogate" in describe(name).needs else {}
    if name == "rebar":
        options["eta"] = torch.ones((), device=device, requires_grad=True)
    options["generator"] = generator
    params = torch.ones(5, 6, device=device, requires_grad=True)
    with OnlyOn(device) if watched else nullcontext():
        make_estimator(name, **options)(f, FAMILIES[kind](params)).loss().backward()
        estimate = make_estimator(name, **options)(f, FAMILIES[kind](params))
        if estimate.grad.requires_grad:
            variance_loss(estimate.grad).backward(retain_graph=True)
        estimate.backward()
    for x in (estimate.sample, estimate.value, estimate.grad, params.grad):
        assert x is not None and x.device.type == device
    assert params.grad is not None
    return params.grad


def run_distribution(family: str, device: str, generator: torch.Generator | None) -> None:
    params = torch.ones(5, 6, device=device, requires_grad=True)
    with OnlyOn(device):
        dist = FAMILIES[family](params)
        noise = dist.sample_noise(generator)
        z = dist.relax(noise)
        b = dist.threshold(z)
        made = [noise, z, b, dist.noise_of(z), dist.log_prob(b), dist.score(b), dist.entropy(), dist.mode(), dist.mean]
        made += [dist.soften(z), dist.embed(b)]
        if family in DISCRETE:
            made += [dist.support(), dist.relax_given(b, noise), dist.noise_given(b, z), dist.relaxed_log_prob(z)]
            made += [dist.with_mean(dist.mean).params]
        (z.sum() + dist.log_prob(b).sum() + dist.entropy().sum()).backward()
    assert all(x.device.type == device for x in made)


def run_losses(device: str, generator: torch.Generator | None) -> None:
    params, advantage = torch.ones(5, 6, device=device, requires_grad=True), torch.ones(5, device=device)
    action = torch.zeros(5, dtype=torch.int64, device=device)
    for options in ({"coupling": "coupled"}, {"num_conditional": 2}):
        with OnlyOn(device):
            relax(f, Bernoulli(params), c, generator=generator, **options).loss().backward()
    with OnlyOn(device):
        ratio = {"old_log_prob": torch.ones_like(advantage), "clip": 0.2, "weight": torch.ones_like(advantage)}
        policy_gradient_loss(advantage, Categorical(params), action, c, generator=generator, **ratio).backward()
        policy_gradient_loss(advantage, DiagGaussian(params), torch.ones_like(params[:, :3]), c).backward()


def run_closed_form(device: str, generator: torch.Generator | None) -> None:
    params, features = torch.ones(5, 6, device=device, requires_grad=True), torch.ones(5, 2, device=device)
    net = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).to(device)
    for options in ({}, {"coupling": "coupled"}, {"num_conditional": 2}):
        with OnlyOn(device):
            dist = Categorical(params)
            relax(
                f, Bernoulli(params), MLPSurrogate(net, dist, features), generator=generator, **options
            ).loss().backward()
    assert all(x.grad is not None and x.grad.device.type == device for x in net.parameters())


def run_diagnostics(device: str, generator: torch.Generator) -> list[float]:
    draws = torch.randn(6, 2, 3, 4, generator=torch.Generator().manual_seed(1)).to(device)
    flat = draws.flatten(0, 2)
    ratio = effective_sample_size_ratio(flat, 2 * flat, paired=True, generator=generator)
    separate = effective_sample_size_ratio(flat, 2 * flat, generator=generator)
    parts = variance_parts(draws, generator=generator)
    found = [mean(flat[:, 0], generator=generator), variance(flat, generator=generator), ratio, separate]
    found += [parts.trajectory, parts.action, parts.state, parts.total]
    apart = bias(flat, torch.zeros(4, device=device))
    numbers = [x for interval in found for x in (interval.value, interval.low, interval.high)]
    return [*numbers, apart.relative, apart.largest_z, apart.visible, squared_norm(flat)]


def generator_on(device: str) -> torch.Generator | None:
    """There is none on "meta"."""
    return None if device == "meta" else torch.Generator(device).manual_seed(0)


@devices
@pytest.mark.parametrize("name, kind", CASES)
def test_estimators_stay_on_the_device_of_the_parameters(name: str, kind: str, device: str) -> None:
    run_estimator(
        name, kind, "cpu", generator_on("cpu"), watched=False
    )  # tables that are made once are made on the host
    one, other = (run_estimator(name, kind, device, generator_on(device)) for _ in range(2))
    if device != "meta":  # a generator there decides them
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert one.isfinite().all()


@devices
@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name != "counts"]
)  # whose entropy is a sum of numbers known there
def test_distributions_stay_on_the_device_of_the_parameters(family: str, device: str) -> None:
    run_distribution(family, device, generator_on(device))


@devices
def test_options_and_losses_stay_on_the_device_of_the_parameters(device: str) -> None:
    run_losses(device, generator_on(device))
    run_closed_form(device, generator_on(device))


def test_the_rule_finds_a_tensor_made_on_the_host() -> None:
    with pytest.raises(AssertionError, match="made a tensor on cpu"), OnlyOn("meta"):
        torch.zeros(3)
    with pytest.raises(RuntimeError, match="meta"), OnlyOn("meta"):
        float(torch.ones(3, device="meta").mean())


@on_cuda
def test_diagnostics_of_draws_on_cuda_are_those_of_the_cpu() -> None:
    on_cpu, there = (run_diagnostics(device, torch.Generator().manual_seed(0)) for device in ("cpu", "cuda"))
    assert there == pytest.approx(on_cpu, rel=1e-6, abs=1e-9)
    one, other = (run_diagnostics("cuda", torch.Generator("cuda").manual_seed(0)) for _ in range(2))
    assert one == pytest.approx(other, rel=1e-9, abs=1e-9)


@on_cuda
def test_estimates_on_cuda_are_those_of_the_cpu() -> None:
    params = torch.linspace(-1.0, 1.0, 30).reshape(5, 6)
    noise, fresh = (Bernoulli(params).sample_noise(torch.Generator().manual_seed(seed)) for seed in (1, 2))
    on_cpu = relax(f, Bernoulli(params), c, noise=noise, conditional_noise=fresh)
    there = relax(f, Bernoulli(params.cuda()), c, noise=noise.cuda(), conditional_noise=fresh.cuda())
    torch.testing.assert_close(there.grad.cpu(), on_cpu.grad, rtol=1e-4, atol=1e-5)


@on_cuda
def test_nvil_on_cuda() -> None:
    params, average = torch.ones(5, 6, device="cuda", requires_grad=True), MovingAverage()
    estimate = nvil(f, Bernoulli(params), torch.zeros(5, device="cuda"), average)
    estimate.backward()
    assert estimate.grad.device.type == "cuda" and average.mean != 0.0

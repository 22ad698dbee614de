"""The models that `benchmarks.estimators` takes gradients of, and every estimator on each of them.

A contestant is a function without arguments that leaves one gradient of every parameter behind: one estimate, its
pull-back to theta, and the backward pass of the variance where there is a phi.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from relax_rl.critics import MLPSurrogate
from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian
from relax_rl.estimators import ESTIMATORS, Estimate, MovingAverage, describe, make_estimator, nvil

__all__ = ["BATCH", "Model", "Step", "belief_network", "mlp", "policy"]

Step = Callable[[], object]
BATCH, PIXELS, UNITS = 24, 784, 200
NUM_OBS, NUM_ACTIONS = 4, 2
NO_TABLE = "its 2^200 outcomes cannot be listed"
NEEDS_F = "asks f at outcomes that were not drawn"
NEEDS_BITS = "for bits"
CONTINUOUS = "for continuous outcomes"


@dataclass
class Model:
    """Contestants on one model.

    Attributes:
        name: of the model.
        about: the model in words.
        steps: contestant -> one gradient of all parameters, by eager code.
        without_phi: the same but for the backward pass to phi, where there is one.
        compiled: contestant -> function that compiles on its first call.
        references: contestant -> the plain REINFORCE that its time is divided by, where it is not "reinforce".
        left_out: estimator -> why it is not there.
    """

    name: str
    about: str
    steps: dict[str, Step] = field(default_factory=dict)
    without_phi: dict[str, Step] = field(default_factory=dict)
    compiled: dict[str, Step] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, estimate: Callable[[], Estimate], theta: Sequence[Tensor], phi: Sequence[Tensor]) -> None:
        """Enter a contestant, with and without phi's part."""

        def step(variance: bool) -> None:
            for parameter in (*theta, *phi):
                parameter.grad = None
            found = estimate()
            loss = found.loss(variance_coef=float(variance))
            if variance and found.fit_loss is not None:
                loss = loss + found.fit_loss
            loss.backward()

        self.steps[name] = partial(step, bool(phi))
        if phi:
            self.without_phi[name] = partial(step, False)


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for size, next_size in pairwise(sizes):
        layers += [nn.Linear(size, next_size), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class BeliefNetwork(nn.Module):
    """784 pixels, 200 tanh units, 200 bits in the encoder, and the same back in the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(PIXELS, UNITS, UNITS), mlp(UNITS, UNITS, PIXELS)
        self.gaussian = mlp(PIXELS, UNITS, 2 * UNITS)
        self.prior = nn.Parameter(torch.zeros(UNITS))

    def bound(self, data: Tensor, logits: Tensor, bits: Tensor) -> Tensor:
        """`[*]` evidence lower bound of each image, for bits `[*, 200]`."""
        pixels: Tensor = self.decoder(bits)
        likelihood = -F.softplus(pixels).sum(-1) + (pixels * data).sum(-1)
        log_prior = -F.softplus(self.prior).sum() + bits @ self.prior
        log_posterior = -F.softplus(logits).sum(-1) + (bits * logits).sum(-1)
        bound: Tensor = likelihood + log_prior - log_posterior
        return bound

    def gaussian_bound(self, data: Tensor, params: Tensor, z: Tensor) -> Tensor:
        """`[*]` the same with 200 normals as latent variables."""
        pixels: Tensor = self.decoder(z)
        likelihood = -F.softplus(pixels).sum(-1) + (pixels * data).sum(-1)
        bound: Tensor = likelihood - 0.5 * z.square().sum(-1) - DiagGaussian(params).log_prob(z)
        return bound


def belief_network() -> Model:
    """The gradient of an evidence lower bound, f = log p(x, b) - log q(b | x), to all parameters."""
    torch.manual_seed(0)
    about = (
        f"784-200-200 sigmoid belief network: 784 pixels, 200 tanh units and 200 bits, and the same back; batch {BATCH}. "
        "Gradient of the evidence lower bound to all parameters. RELAX's, LAX's and DLAX's free surrogate is 200-64-64-1"
    )
    network, surrogate, data = BeliefNetwork(), mlp(UNITS, 64, 64, 1), torch.rand(BATCH, PIXELS).round()
    baseline, eta, temperature = mlp(PIXELS, 100, 1), torch.ones(()).requires_grad_(), torch.ones(()).requires_grad_()
    model = Model("belief network", about)
    theta, weights = tuple(network.parameters()), tuple(surrogate.parameters())
    free = {"surrogate": lambda z: surrogate(z).squeeze(-1), "phi": weights}

    def bits(estimator: Callable[..., Estimate]) -> Estimate:
        logits = network.encoder(data)
        return estimator(partial(network.bound, data, logits), Bernoulli(logits))

    def normals(estimator: Callable[..., Estimate]) -> Estimate:
        params = network.gaussian(data)
        return estimator(partial(network.gaussian_bound, data, params), DiagGaussian(params))

    def with_baseline() -> Estimate:
        logits, average = network.encoder(data), MovingAverage()
        f = partial(network.bound, data, logits)
        return nvil(f, Bernoulli(logits), baseline(data).squeeze(-1), average)

    for name, info in ESTIMATORS.items():
        if name in ("enumerated", "marginal"):
            model.left_out[name] = NO_TABLE
        elif name == "nvil":
            model.add(name, with_baseline, theta, tuple(baseline.parameters()))
        elif name == "rebar":
            options = {"eta": eta, "temperature": temperature}
            model.add(name, partial(bits, make_estimator(name, **options)), theta, (eta, temperature))
        elif "surrogate" in info.needs:
            run = normals if "bits" not in info.outcomes else bits
            model.add(name, partial(run, make_estimator(name, **free)), theta, weights)
        else:
            run = normals if "bits" not in info.outcomes else bits
            model.add(name, partial(run, make_estimator(name)), theta, ())
    model.add("relax, coupled", partial(bits, make_estimator("relax", coupling="coupled", **free)), theta, weights)
    model.add("reinforce, normals", partial(normals, make_estimator("reinforce")), theta, ())
    model.references |= {"lax": "reinforce, normals", "reparameterized": "reinforce, normals"}
    return model


@dataclass(frozen=True)
class Batch:
    """What an agent brings to its update: observations, known advantages and the noise of the actions taken."""

    obs: Tensor
    value: Tensor
    noise: Tensor
    fresh: Tensor

    def surrogate(self, net: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """c(s, z) of observations and relaxed actions."""
        return net(torch.cat([self.obs.expand(*z.shape[:-1], NUM_OBS), z], -1)).squeeze(-1)


def policy(rows: int) -> Model:
    """The policy gradient of a 64-64 policy from known advantages, with a 64-64 surrogate of state and action."""
    torch.manual_seed(0)
    about = (
        f"64-64 tanh policy and 64-64 tanh surrogate, {NUM_OBS} observations and {NUM_ACTIONS} actions, batch {rows}; "
        "advantages and noise are known, as in an update of an agent. LAX's policy is Gaussian"
    )
    model = Model(f"policy, batch {rows}", about)
    entries: dict[str, Entry] = {}
    for name, info in ESTIMATORS.items():
        if name in ("reinforce", "dlax", "relax", "marginal", "lax"):
            entries[name] = Entry(name, gaussian=name == "lax")
        elif "categories" not in info.outcomes:
            model.left_out[name] = CONTINUOUS if "continuous" in info.outcomes else NEEDS_BITS
        elif name != "nvil":
            model.left_out[name] = NEEDS_F
    entries["relax, coupled"] = Entry("relax", options={"coupling": "coupled"})
    entries |= {
        f"{name}, closed form": replace(entries[name], closed_form=True)
        for name in ("relax", "relax, coupled", "lax", "dlax")
    }
    entries["reinforce, Gaussian policy"] = Entry("reinforce", gaussian=True)
    for name, entry in entries.items():
        _enter(model, name, entry, rows)
        if entry.gaussian and entry.estimator != "reinforce":
            model.references[name] = "reinforce, Gaussian policy"
    _enter_nvil(model, rows)
    return model


@dataclass(frozen=True)
class Entry:
    """A contestant on the policy.

    Attributes:
        estimator: its name.
        gaussian: whether the policy is Gaussian.
        closed_form: whether the surrogate is an `MLPSurrogate`, which brings its slope, and not a plain function.
        options: of the estimator.
    """

    estimator: str
    gaussian: bool = False
    closed_form: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def _batch(gaussian: bool, rows: int) -> Batch:
    width = 2 * NUM_ACTIONS if gaussian else NUM_ACTIONS
    dist: Any = (DiagGaussian if gaussian else Categorical)(torch.zeros(rows, width))
    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.randn(rows, NUM_OBS), torch.randn(rows), dist.sample_noise(generator), dist.sample_noise(generator)
    )


def _enter(model: Model, name: str, entry: Entry, rows: int) -> None:
    """One estimator on the policy, by eager code and as one compiled function of theta and phi."""
    torch.manual_seed(0)
    estimator, gaussian, options = entry.estimator, entry.gaussian, entry.options
    family: Any = DiagGaussian if gaussian else Categorical
    net, critic = (
        mlp(NUM_OBS, 64, 64, 2 * NUM_ACTIONS if gaussian else NUM_ACTIONS),
        mlp(NUM_OBS + NUM_ACTIONS, 64, 64, 1),
    )
    batch, has_surrogate = _batch(gaussian, rows), "surrogate" in describe(estimator).needs
    function = describe(estimator).function

    def estimate(
        actor: Callable[[Tensor], Tensor],
        c: Callable[[Tensor], Tensor],
        batch: Batch,
        *,
        critic_parameters: dict[str, Tensor] | None = None,
        **more: Any,
    ) -> Estimate:
        dist = family(actor(batch.obs))
        given = {**options, **more, "noise": batch.noise}
        if estimator == "relax" and "coupling" not in options:
            given["conditional_noise"] = batch.fresh
        if has_surrogate:
            # What `marginal` asks c for are vectors of probabilities already.
            soften = (lambda z: z) if estimator == "marginal" else dist.soften
            given["surrogate"] = lambda z: batch.surrogate(c, soften(z))
        if entry.closed_form:
            given["surrogate"] = MLPSurrogate(critic, dist, batch.obs, parameters=critic_parameters)
        return function(batch.value, dist, **given)

    phi = tuple(critic.parameters()) if has_surrogate else ()
    # A surrogate in closed form holds nothing of theta that the variance could reach.
    eager_options: dict[str, Any] = {"phi": phi} if has_surrogate and not entry.closed_form else {}
    model.add(name, lambda: estimate(net, critic, batch, **eager_options), tuple(net.parameters()), phi)

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], *fields: Tensor) -> Tensor:
        actor, c = partial(functional_call, net, theta), partial(functional_call, critic, phi)
        return estimate(actor, c, Batch(*fields), critic_parameters=phi).loss()

    arguments = dict(net.named_parameters()), dict(critic.named_parameters())
    fields = batch.obs, batch.value, batch.noise, batch.fresh

    def update(*everything: Any) -> Any:
        return grad(loss, argnums=(0, 1) if has_surrogate else 0)(*everything)

    compiled = torch.compile(_with_code_of_its_own(update), fullgraph=True, dynamic=False)
    model.compiled[name] = lambda: compiled(*arguments, *fields)


def _with_code_of_its_own(function: Any) -> Any:
    """The compiler keeps its results by code object: contestants that share one would check each other's guards."""
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def _enter_nvil(model: Model, rows: int) -> None:
    torch.manual_seed(0)
    net, value, batch = mlp(NUM_OBS, 64, 64, NUM_ACTIONS), mlp(NUM_OBS, 64, 64, 1), _batch(False, rows)
    average = MovingAverage()

    def estimate() -> Estimate:
        prediction = value(batch.obs).squeeze(-1)
        return nvil(batch.value, Categorical(net(batch.obs)), prediction, average, noise=batch.noise)

    model.add("nvil", estimate, tuple(net.parameters()), tuple(value.parameters()))

"""What tests of the estimators share: distributions with objectives, surrogates, and helpers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relax_rl.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    Distribution,
    Gamma,
    MultiCategorical,
    Ordinal,
    PlackettLuce,
    Poisson,
    Subset,
    TanhGaussian,
)
from relax_rl.estimators import dlax_gradient, lax_gradient, reinforce_gradient, relax_gradient
from tests.oracles import (
    Function,
    exact_gradient,
    gradient_by_quadrature,
)

__all__ = [
    "CONTINUOUS",
    "DISCRETE",
    "DRAWS",
    "EXTREME",
    "KINDS",
    "LOW_LEVEL",
    "MILLION",
    "MLP",
    "adversarial",
    "at_leaf",
    "curved",
    "flat_surrogate",
    "low_level",
    "of_three",
    "of_vector",
    "policy_and_observations",
    "quadratic",
    "relaxed_size",
    "seeded",
    "sine",
    "true_gradient",
    "zero_mlp",
]

MILLION = 1_000_000
# Draws that make a bias of 1% visible where a million are too few: the estimate's variance is larger there.
DRAWS = {"quadratic": 3 * MILLION, "3 bits": MILLION * 5 // 4}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Objectives. They are nonlinear, not separable, and as far from 0 on average as REINFORCE without a baseline can bear.


def of_three(b: Tensor) -> Tensor:
    return torch.tensor([1.1, -0.7, -0.5])[b]


def of_five(b: Tensor) -> Tensor:
    return torch.tensor([1.6, -1.0, 0.4, 2.1, -1.3])[b]


def of_factors(b: Tensor) -> Tensor:
    return torch.tensor([[1.9, -0.2, 0.8], [0.3, -1.6, -1.2]])[b[:, 0], b[:, 1]]


def of_bits(b: Tensor) -> Tensor:
    return (
        2 * b[:, 0] - torch.sin(2 * b[:, 1] + b[:, 0]) + 1.5 * (b[:, 2] - 0.499) ** 2 + b.prod(-1) + 2 * b[:, 2] - 1.8
    )


def quadratic(z: Tensor) -> Tensor:
    return 0.5 * (z[:, 0] - 1) ** 2 + z[:, 0] * z[:, -1] - 2 * z[:, -1] - 0.5


def sine(z: Tensor) -> Tensor:
    return torch.sin(2 * z[:, 0] + 0.5)


def of_squashed(z: Tensor) -> Tensor:
    outcome = torch.tanh(z)
    return torch.sin(2 * outcome[:, 0]) * (1 + 0.5 * outcome[:, -1]) + 1.5 * outcome[:, -1]


DISCRETE: dict[str, tuple[Any, Function]] = {
    "3-way": (Categorical(torch.tensor([[0.4, -0.3, 0.1]])), of_three),
    "5-way": (Categorical(torch.tensor([[0.4, -0.3, 0.1, -1.0, 0.8]])), of_five),
    "3 bits": (Bernoulli(torch.tensor([[0.3, -0.6, 0.9]])), of_bits),
    "2 x 3": (MultiCategorical(torch.tensor([[0.3, -0.2, 0.1, -0.5, 0.4]]), (2, 3)), of_factors),
    "2 x 2": (MultiCategorical(torch.tensor([[0.3, -0.2, 0.6, -0.5]]), (2, 2)), of_factors),
}
EXTREME: dict[str, tuple[Any, Function]] = {
    "3-way, rare": (Categorical(torch.tensor([[3.0, -2.0, 0.0]])), lambda b: torch.tensor([0.0, -4.0, 3.0])[b]),
    "3 bits, rare": (Bernoulli(torch.tensor([[4.0, -0.6, -3.0]])), of_bits),
}
CONTINUOUS: dict[str, tuple[Any, Function]] = {
    "quadratic": (DiagGaussian(torch.tensor([[0.5, -0.3, -0.2, -0.6]])), quadratic),
    "sine": (DiagGaussian(torch.tensor([[0.3, -0.4]])), sine),
    "squashed": (TanhGaussian(torch.tensor([[0.2, -0.3, -0.5, -0.4]])), of_squashed),
}


class MLP(nn.Module):
    """A tanh network c(z) with fixed random weights of a size that lets the z-tests see 1%."""

    def __init__(self, inputs: int, hidden: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden, dtype=dtype)
        self.last = nn.Linear(hidden, 1, dtype=dtype)
        generator = seeded(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(z))).squeeze(-1)  # type: ignore[no-any-return]


def zero_mlp(inputs: int) -> MLP:
    """c as an agent starts it: random but for the last layer, which is zero."""
    surrogate = MLP(inputs)
    nn.init.zeros_(surrogate.last.weight)
    nn.init.zeros_(surrogate.last.bias)
    return surrogate


def adversarial(z: Tensor) -> Tensor:
    """Unbounded, oscillating, coupled and unrelated to any f: the estimate must stay unbiased all the same."""
    return torch.sin(2 * z).sum(-1) - torch.tanh(z).sum(-1) + 0.3 * z[:, 0] * torch.tanh(z[:, -1])


def of_vector(b: Tensor) -> Tensor:
    """Of embedded outcomes `[..., F]`: nonlinear, not separable, differentiable, any number of leading dimensions."""
    weights = torch.linspace(-1.0, 2.0, b.shape[-1], dtype=b.dtype)
    return (b * weights).sum(-1) + torch.sin(2 * b[..., 0] + b[..., -1]) - 0.8 * (b[..., 1] - 0.3) ** 2 - 0.9


def curved(z: Tensor) -> Tensor:
    return 0.4 * torch.tanh(z).sum(-1) + 0.3 * torch.sin(z[..., 0])


def relaxed_size(dist: Distribution) -> int:
    return dist.params.shape[-1] // (2 if isinstance(dist, DiagGaussian) else 1)


def at_leaf(dist: Any, rows: int) -> Any:
    """`rows` copies of a distribution at parameters of their own, which take a gradient."""
    return dist.with_params(dist.params.expand(rows, -1).clone().requires_grad_())


def true_gradient(dist: Distribution, f: Function) -> Tensor:
    return gradient_by_quadrature(dist, f) if isinstance(dist, DiagGaussian) else exact_gradient(dist, f)


def flat_surrogate(inputs: int, hidden: int = 4) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """phi as one float64 vector, and c(phi, z)."""
    phi = torch.randn(hidden * (inputs + 2), generator=seeded(17), dtype=torch.float64)

    def c(phi: Tensor, z: Tensor) -> Tensor:
        first, bias, last = phi[: hidden * inputs], phi[hidden * inputs : -hidden], phi[-hidden:]
        return torch.tanh(z @ first.reshape(inputs, hidden) + bias) @ last

    return phi, c


def policy_and_observations(outputs: int) -> tuple[nn.Module, Tensor]:
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(23)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))
    torch.random.set_rng_state(torch_state)
    return net, torch.randn(32, 4, generator=seeded(24))


# Under compilers and transforms

KINDS: dict[str, Callable[[Tensor], Any]] = {
    "bits": Bernoulli,
    "categories": lambda params: Categorical(params, one_hot=True),
    "factors": lambda params: MultiCategorical(params, (2, 2), one_hot=True),
    "counts": Poisson,
    "ranks": Ordinal,
    "orders": lambda params: PlackettLuce(params, 3, one_hot=True),
    "subsets": lambda params: Subset(params, 2, one_hot=True),
    "continuous": DiagGaussian,
    "positive": Gamma,
}
"""Distributions of four parameters a row, by the kind of outcome that the registry names."""

LOW_LEVEL = ("reinforce", "lax", "dlax", "relax")
NOISE, FRESH = (torch.randn(5, 3, generator=seeded(seed)) for seed in (11, 12))


def low_level(name: str, phi: Tensor, params: Tensor, *, functions: bool) -> Tensor:
    """A low-level gradient `[5, 3]` of bits, given tensors or functions of the parameters."""
    here = Bernoulli(params.detach())
    z = here.relax(NOISE)
    b, value = here.threshold(z), torch.linspace(-1.0, 2.0, len(params))
    given: dict[str, Callable[[Tensor], Tensor]] = {
        "log_prob": lambda at: Bernoulli(at).log_prob(b),
        "relaxed_log_prob": lambda at: Bernoulli(at).relaxed_log_prob(z),
        "control": lambda at: torch.tanh(Bernoulli(at).relax(NOISE)) @ phi,
        "conditional_control": lambda at: torch.tanh(Bernoulli(at).relax_given(b, FRESH)) @ phi,
    }
    gradient, names = {
        "reinforce": (reinforce_gradient, ["log_prob"]),
        "lax": (lax_gradient, ["log_prob", "control"]),
        "dlax": (dlax_gradient, ["log_prob", "relaxed_log_prob", "control"]),
        "relax": (relax_gradient, ["log_prob", "control", "conditional_control"]),
    }[name]
    value = value - phi.sum() if name == "reinforce" else value
    return gradient(value, *(given[key] if functions else given[key](params) for key in names), params)  # type: ignore[operator, no-any-return]

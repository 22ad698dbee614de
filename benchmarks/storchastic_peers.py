"""Storchastic's estimators on the models of `benchmarks.estimator_models`, where it has them.

Optional: `pip install --no-deps storchastic pyro-ppl pyro-api entmax opt-einsum`. Written as that library's examples
are: the batch is an independent dimension, the cost is added, `storch.backward()` makes the gradient and trains phi.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.estimator_models import BATCH, NUM_ACTIONS, NUM_OBS, PIXELS, UNITS, BeliefNetwork, Step, mlp

__all__ = ["belief_network_peers", "policy_peers", "version"]


def version() -> str | None:
    """Of the library, or None where it is not installed."""
    if find_spec("storch") is None:
        return None
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("storchastic")
    except PackageNotFoundError:
        return "unknown"


def _methods(surrogate: Any) -> dict[str, Callable[[], Any]]:
    """Our name -> its estimator of the same kind."""
    from storch import method

    return {
        "reinforce": lambda: method.ScoreFunction("z"),
        "rloo": lambda: method.ScoreFunction("z", n_samples=2, baseline_factory="batch_average"),
        "concrete": lambda: method.GumbelSoftmax("z"),
        "straight-through-gumbel": lambda: method.GumbelSoftmax("z", straight_through=True),
        "rebar": lambda: method.REBAR("z"),
        "relax": lambda: method.RELAX("z", c_phi=surrogate),
        "arm": lambda: method.ARM("z"),
    }


def _step(run: Callable[[], Tensor], parameters: Sequence[Tensor], method: Any) -> None:
    import storch

    for parameter in (*parameters, *method.parameters()):
        parameter.grad = None
    storch.reset()
    storch.add_cost(run(), "cost")
    storch.backward()


def belief_network_peers() -> dict[str, Step]:
    """The evidence lower bound of `belief_network`, by its estimators."""
    import storch
    from torch.distributions import Bernoulli

    torch.manual_seed(0)
    network, data = BeliefNetwork(), torch.rand(BATCH, PIXELS).round()
    surrogate = mlp(UNITS, 64, 64, 1)
    parameters = list(network.parameters())

    @storch.deterministic
    def probabilities(x: Tensor) -> Tensor:
        return torch.sigmoid(network.encoder(x))

    @storch.deterministic
    def bound(x: Tensor, probs: Tensor, bits: Tensor) -> Tensor:
        pixels = network.decoder(bits)
        likelihood = -F.binary_cross_entropy_with_logits(pixels, x.expand_as(pixels), reduction="none").sum(-1)
        log_prior = -F.softplus(network.prior).sum() + bits @ network.prior
        log_posterior = (bits * probs.log() + (1 - bits) * torch.log1p(-probs)).sum(-1)
        return likelihood + log_prior - log_posterior

    def run(method: Any) -> Tensor:
        x = storch.denote_independent(data, 0, "data")
        probs = probabilities(x)
        return bound(x, probs, method(Bernoulli(probs=probs)))  # type: ignore[no-any-return]

    steps: dict[str, Step] = {}
    for name, make in _methods(_Squeezed(surrogate)).items():
        method = make()
        steps[name] = partial(_step, partial(run, method), parameters, method)
    return steps


def policy_peers(rows: int) -> dict[str, Step]:
    """The update of `policy`: known advantages are a cost that the sampled action decides nothing of."""
    import storch
    from torch.distributions import OneHotCategorical

    torch.manual_seed(0)
    net, critic = mlp(NUM_OBS, 64, 64, NUM_ACTIONS), mlp(NUM_OBS + NUM_ACTIONS, 64, 64, 1)
    # One categorical an example stands as a row of one: the library sums over event dimensions, and takes none for all.
    # The last column is the advantage.
    batch, parameters = torch.randn(rows, 1, NUM_OBS + 1), list(net.parameters())

    @storch.deterministic
    def probabilities(x: Tensor) -> Tensor:
        return net(x[..., :NUM_OBS]).softmax(-1)  # type: ignore[no-any-return]

    @storch.deterministic
    def cost(x: Tensor, action: Tensor) -> Tensor:
        return x[..., 0, NUM_OBS] + 0.0 * action.sum((-2, -1))

    def run(method: Any) -> Tensor:
        x = storch.denote_independent(batch, 0, "data")
        return cost(x, method(OneHotCategorical(probs=probabilities(x))))  # type: ignore[no-any-return]

    steps: dict[str, Step] = {}
    every = _methods(_OfState(critic, batch[:, 0, :NUM_OBS]))
    for name in ("reinforce", "relax"):
        method = every[name]()
        steps[name] = partial(_step, partial(run, method), parameters, method)
    return steps


class _Squeezed(torch.nn.Module):
    """A surrogate of the relaxed sample."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Any) -> Any:
        return self.net(z).squeeze(-1)


class _OfState(torch.nn.Module):
    """A surrogate of observation and relaxed action."""

    def __init__(self, net: torch.nn.Module, obs: Tensor) -> None:
        super().__init__()
        self.net, self.obs = net, obs

    def forward(self, z: Any) -> Any:
        import storch

        @storch.deterministic
        def control(z: Tensor) -> Tensor:
            action = z.squeeze(-2)
            state_action = torch.cat([self.obs.expand(*action.shape[:-1], NUM_OBS), action], -1)
            return self.net(state_action).squeeze(-1)  # type: ignore[no-any-return]

        return control(z)

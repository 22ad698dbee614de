"""Score-function estimators of a stack of layers: REINFORCE, NVIL, RLOO, VIMCO, SimpleMuProp and MuProp.

The score of layer l is s_l = dlog q(b_l | b_{l-1}) at its logits; E[(f - a) s_l] is the layer's gradient for every a
that does not depend on b_l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relax_rl.experiments.vae.baselines import Centring
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator, at_logits
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork

__all__ = ["MuProp", "Reinforce", "Rloo", "Vimco"]


class Reinforce(LayeredEstimator):
    """g_l = (f(b) - baseline) s_l: REINFORCE, or NVIL with a baseline that is a function of the image."""

    def __init__(self, centring: Centring) -> None:
        super().__init__()
        self.centring = centring

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain = model.sample(x, generator)
        value = model.loss(model.target(x), chain)
        loss = value.detach()
        centred = self.centring(loss, model.input(x)).unsqueeze(-1)
        estimates = [centred * score for score in chain.scores]
        return Gradient(loss, value.mean(), chain.logits, at_logits(chain.logits, estimates, len(x)))


class Rloo(LayeredEstimator):
    """g_l = 1/K sum_k (f_k - mean of the other f) s_l,k, with K independent chains."""

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain, value = _several(model, x, self.num_samples, generator)
        loss = value.detach()
        centred = ((loss - loss.mean(0)) / (self.num_samples - 1)).unsqueeze(-1)
        estimates = [centred * score for score in chain.scores]
        return Gradient(loss.mean(0), value.mean(), chain.logits, at_logits(chain.logits, estimates, len(x)))


class Vimco(LayeredEstimator):
    """VIMCO (Mnih and Rezende 2016), which maximises the bound of K samples, L = log 1/K sum_k w_k.

        g_l = -sum_k (L - L_{-k} - w_k / sum_j w_j) s_l,k,    L_{-k}: w_k replaced by the geometric mean of the others

    The last part is the bound's own dependence on q through w_k = p / q, which no longer vanishes in expectation as that
    of one sample does. Its `loss` is -L.
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain, value = _several(model, x, self.num_samples, generator)
        count, log_w = self.num_samples, -value.detach()
        stand_in = (log_w.sum(0) - log_w) / (count - 1)
        each = torch.eye(count, dtype=torch.bool, device=x.device).unsqueeze(-1)
        without = torch.logsumexp(torch.where(each, stand_in, log_w.unsqueeze(0)), 1)
        signal = (torch.logsumexp(log_w, 0) - without - torch.softmax(log_w, 0)).unsqueeze(-1)
        bound = torch.logsumexp(-value, 0) - math.log(count)
        estimates = [-signal * score for score in chain.scores]
        return Gradient(-bound.detach(), -bound.mean(), chain.logits, at_logits(chain.logits, estimates, len(x)))


class MuProp(LayeredEstimator):
    """MuProp (Gu et al. 2016): the first-order Taylor expansion of f at the mean field as control variate.

        g_l = (f(b) - eta_l f(m) - kappa_l f'(m)_l (b_l - m_l) - baseline_l) s_l + kappa_l f'(m)_l p_l (1 - p_l)

    with m the mean field, every layer at the probabilities that those of the layer before give; f'(m)_l the total
    derivative, through the deeper layers too; and p_l the probabilities given the bits. The scales eta and kappa, from 0
    to 2, begin at 1 and minimise the square of what multiplies the score, as in the experiments of Tucker et al. (2017).
    SimpleMuProp leaves the slopes out.

    Args:
        centrings: the baseline of each layer.
        slope: take in the slopes.
    """

    def __init__(self, centrings: Sequence[Centring], *, slope: bool = True) -> None:
        super().__init__()
        self.centrings, self.slope = nn.ModuleList(centrings), slope
        self.scale_logits = nn.Parameter(torch.zeros(len(centrings), 2 if slope else 1))

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain = model.sample(x, generator)
        value = model.loss(model.target(x), chain)
        loss = value.detach()
        with torch.set_grad_enabled(self.slope):
            means, at_mean = self._mean_field(model, x)
        slopes = torch.autograd.grad(at_mean.sum(), means) if self.slope else ()
        estimates = []
        for layer, score in enumerate(chain.scores):
            terms = [at_mean.detach()]
            if self.slope:
                terms.append((slopes[layer] * (chain.bits[layer] - means[layer].detach())).sum(-1))
            signal, scales = self._signal(layer, loss, terms, model.input(x))
            estimate = signal.unsqueeze(-1) * score
            if self.slope:
                probs = torch.sigmoid(chain.logits[layer].detach())
                estimate = estimate + scales[1] * slopes[layer] * probs * (1 - probs)
            estimates.append(estimate)
        return Gradient(loss, value.mean(), chain.logits, at_logits(chain.logits, estimates, len(x)))

    def _signal(self, layer: int, loss: Tensor, terms: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B]` what multiplies a layer's score, and the scales `[2]` of its terms; the scales' gradient is added."""
        with torch.enable_grad():
            scales = 2.0 * torch.sigmoid(self.scale_logits[layer])
            rest = loss - (scales.unsqueeze(-1) * torch.stack(list(terms))).sum(0)
            centred: Tensor = self.centrings[layer](rest.detach(), x)
            torch.autograd.backward(rest, 2.0 * centred / len(loss), inputs=[self.scale_logits])
        return centred, scales.detach()

    def _mean_field(self, model: SigmoidBeliefNetwork, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The mean field of each layer, and f there `[B]`."""
        means, logits = [], []
        below = model.input(x)
        for layer in range(len(model.layers)):
            at = model.encode(layer, below)
            below = torch.sigmoid(at.detach() if layer == 0 else at).requires_grad_(self.slope)
            logits.append(at.detach() if layer == 0 else at)
            means.append(below)
        return means, torch.stack(model.terms(model.target(x), means, logits)).sum(0)


def _several(
    model: SigmoidBeliefNetwork, x: Tensor, num_samples: int, generator: torch.Generator | None
) -> tuple[Chain, Tensor]:
    """K independent chains for each image, and f of each, `[K, B]`."""
    chain = model.sample(x, generator, count=num_samples)
    return chain, model.loss(model.target(x), chain)

"""Score-function estimators of a stack of layers, and the antithetic ones that they led to: ARM, DisARM and ARMS.

The score of layer l is s_l = dlog q(b_l | b_{l-1}) at its logits; E[(f - a) s_l] is the layer's gradient for every a
that does not depend on b_l. Given the layers before, s_l has mean zero: a control variate that is linear in the scores of
several layers stays a baseline for each of them, but for the layer's own term, which is put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from relax_rl.distributions import Bernoulli
from relax_rl.estimators import Estimate, reinforce_gradient
from relax_rl.estimators.multisample import linear_control, stein
from relax_rl.estimators.score import leave_one_out, mean_gradient, others_mean, vimco_signal
from relax_rl.experiments.vae.baselines import Centring, MovingMoments, moments_of
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork, threshold

__all__ = ["DoubleControlVariates", "MuProp", "Reinforce", "Rodeo", "antithetic", "rloo", "vimco"]


class Reinforce(LayeredEstimator):
    """g_l = (f(b) - baseline) s_l: REINFORCE, or NVIL with a baseline that is a function of the image."""

    def __init__(self, centring: Centring) -> None:
        super().__init__()
        self.centring = centring

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, noise: Noise) -> Gradient:
        chain = model.sample(x, noise)
        value = model.loss(model.target(x), chain)
        centred = self.centring(value.detach(), model.input(x))
        estimates, (fit_loss, signals) = _times_score(centred.signal, chain), centred[1:]
        return Gradient.of_layers(value, chain.logits, estimates, learning=fit_loss, signals=signals)


def rloo(model: SigmoidBeliefNetwork, x: Tensor, noise: Noise, *, num_samples: int) -> Gradient:
    """g_l = mean_k (f_k - mean of the other f) s_l,k, with K independent chains."""
    chain = model.sample(x, noise, count=num_samples)
    value = model.loss(model.target(x), chain)
    return Gradient.of_layers(value, chain.logits, _times_score(leave_one_out(value.detach()), chain))


def vimco(model: SigmoidBeliefNetwork, x: Tensor, noise: Noise, *, num_samples: int) -> Gradient:
    """VIMCO (Mnih and Rezende 2016), which maximises the bound of K samples, L = log 1/K sum_k w_k.

        g_l = -sum_k (L - L_{-k} - w_k / sum_j w_j) s_l,k,    L_{-k}: w_k replaced by the geometric mean of the others

    The last part is the bound's own dependence on q through w_k = p / q, which no longer vanishes in expectation as that
    of one sample does. Its `loss` is -L.
    """
    chain = model.sample(x, noise, count=num_samples)
    value = model.loss(model.target(x), chain)
    log_w = -value.detach()
    estimates = _times_score(torch.softmax(log_w, 0) - vimco_signal(log_w), chain)
    bound = torch.logsumexp(-value, 0) - math.log(num_samples)
    return Gradient.of_layers(-bound, chain.logits, estimates)


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

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, noise: Noise) -> Gradient:
        chain = model.sample(x, noise)
        target, below = model.target(x), model.input(x)
        value = model.loss(target, chain)
        with torch.set_grad_enabled(self.slope):
            logits, means = model.upwards(x, lambda layer, at: torch.sigmoid(at))
            at_mean = torch.stack(model.terms(target, means, logits)).sum(0)
        slopes = torch.autograd.grad(at_mean.sum(), means) if self.slope else []
        learning, signals, estimates = [], [], []
        for layer, (dist, score) in enumerate(zip(chain.dists, chain.scores, strict=True)):
            terms = [at_mean.detach()]
            if self.slope:
                terms.append((slopes[layer] * (chain.bits[layer] - means[layer].detach())).sum(-1))
            scales = 2.0 * torch.sigmoid(self.scale_logits[layer])
            rest = value.detach() - (scales.unsqueeze(-1) * torch.stack(terms)).sum(0)
            centred = self.centrings[layer](rest.detach(), below)
            # The square of the centred rest, whose baseline does not move with the scales.
            learning.append(2.0 * (centred.signal * rest).mean())
            learning += [] if centred.fit_loss is None else [centred.fit_loss]
            signals += centred.moments
            estimate = reinforce_gradient(centred.signal, None, dist.params, score=score)
            if self.slope:
                estimate = estimate + scales[1].detach() * mean_gradient(dist, slopes[layer])
            estimates.append(estimate)
        total = torch.stack(learning).sum()
        return Gradient.of_layers(value, chain.logits, estimates, learning=total, signals=signals)


class DoubleControlVariates(LayeredEstimator):
    """Double control variates (Titsias and Shi 2022), with a linear control variate for every layer.

        a_k,l = mean_{j != k} f'(b_j)_l,    v_k = sum_l a_k,l . s_k,l
        g_l = mean_k [f_k + alpha v_k - mean_{j != k}(f_j + alpha v_j)] s_k,l - alpha a_k,l p_k,l (1 - p_k,l)

    alpha starts at -1 and is trained on the variance.
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.alpha = nn.Parameter(torch.tensor(-1.0))

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, noise: Noise) -> Gradient:
        chain, value, slopes = _with_slopes(model, x, self.num_samples, noise)
        linear = [linear_control(slope, score) for slope, score in zip(slopes, chain.scores, strict=True)]
        signal = leave_one_out(value.detach() + self.alpha * torch.stack(linear).sum(0))
        estimates = [
            estimate - self.alpha * mean_gradient(dist, others_mean(slope))
            for estimate, dist, slope in zip(_times_score(signal, chain), chain.dists, slopes, strict=True)
        ]
        return _mean_over_chains(chain, value, estimates)


class Rodeo(LayeredEstimator):
    """RODEO (Shi et al. 2022), with the Stein operator of every layer in the leave-one-out baseline.

        d_k,l(b) = mean_{j != k} f'(b_j)_l . (b - b_j,l),    h_k,l(b) = h(mean_{j != k} f_j, d_k,l(b))
        (A h)(b) = sum_i P(1 - b_i | layers before) (h(b with bit i flipped) - h(b))
        g_l = mean_k [f_k - mean_{j != k}(f_j + alpha sum_m (A h_j,m)(b_j,m))] s_k,l + beta (A h_k,l s_l)(b_k,l)

    The flips reach h through two numbers alone, so that f and its derivative are asked for K chains only. The other
    chains enter h by their mean, and h(f, d) = d + w . tanh(a f + c d + e) on inputs divided by the moving standard
    deviation of f; h has 16 tanh units, and w starts at zero. alpha, beta and h are trained on the variance.

    Args:
        num_samples: K.
        generator: of the initial weights.
    """

    def __init__(self, num_samples: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.alpha, self.beta = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.2))
        self.moments = MovingMoments()
        inner = torch.empty(3, 16).uniform_(-1.0, 1.0, generator=generator)
        self.hidden = nn.ParameterList([*map(nn.Parameter, inner), nn.Parameter(torch.zeros(16))])

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, noise: Noise) -> Gradient:
        chain, value, slopes = _with_slopes(model, x, self.num_samples, noise)
        loss = value.detach()
        known = others_mean(loss)
        control_parts, score_parts = [], []
        for bits, score, slope in zip(chain.bits, chain.scores, slopes, strict=True):
            along, offset = others_mean(slope), others_mean((slope * bits).sum(-1))
            here = (along * bits).sum(-1) - offset
            flipped = self.h(known.unsqueeze(-1), here.unsqueeze(-1) + along * (1 - 2 * bits))
            control_part, score_part = stein(self.h(known, here), flipped, bits, score)
            control_parts.append(control_part)
            score_parts.append(score_part)
        signal = loss - others_mean(loss + self.alpha * torch.stack(control_parts).sum(0))
        estimates = [
            estimate + self.beta * part for estimate, part in zip(_times_score(signal, chain), score_parts, strict=True)
        ]
        return _mean_over_chains(chain, value, estimates, [moments_of(loss)])

    def h(self, known: Tensor, change: Tensor) -> Tensor:
        """Control at f of the other chains `[*]` and the change `[*]` that their derivative predicts."""
        scale = self.moments.std.clamp(min=1.0)
        at_f, at_change, shift, out = self.hidden
        centred = ((known - self.moments.mean) / scale).unsqueeze(-1)
        inner = torch.tanh(centred * at_f + (change / scale).unsqueeze(-1) * at_change + shift)
        control: Tensor = change + scale * (inner @ out)
        return control


def antithetic(
    model: SigmoidBeliefNetwork,
    x: Tensor,
    noise: Noise,
    *,
    estimate: Callable[..., Estimate],
    groups: int = 1,
    uniforms: int = 0,
) -> Gradient:
    """Each layer's gradient from samples of its bits that repel each other, given one sample of the layers before.

    Every one of them is continued by samples of its own through the deeper layers. K samples a layer are K evaluations
    of f for the first layer, and K of the terms of f that are left for each deeper one.

    Args:
        estimate: `estimate(f, dist, noise=)`, an estimator of `relax_rl.estimators` for bits.
        groups: independent groups of antithetic samples, whose estimates are averaged.
        uniforms: uniform numbers in double precision that `estimate` takes for each bit; 0 for one of logistic noise.
    """
    target = model.target(x)
    logits, cotangents, values = [], [], []
    below: Tensor | None = None

    def sampled(layer: int, logits: Tensor) -> Tensor:
        return threshold(logits, *noise.logistic(logits.shape[:-1], logits.shape[-1:]))

    for layer in range(len(model.layers)):
        at = model.encode(layer, model.input(x) if below is None else below)
        here = at.detach()
        rest = partial(model.rest_of_loss, layer, target, below, logits=here, outcome=sampled)
        dist = Bernoulli(here.expand(groups, *here.shape))
        if uniforms:
            drawn = noise.uniform((uniforms, *dist.params.shape), torch.float64)
        else:
            (drawn,) = noise.logistic(dist.params.shape[:-1], here.shape[-1:])
        with torch.set_grad_enabled(layer == 0):
            found = estimate(rest, dist, noise=drawn)
        logits.append(at)
        cotangents.append(found.grad.detach().mean(0) / len(x))
        values.append(found.value)
        below = found.sample[0, 0]
    loss = values[0].mean(0)
    return Gradient(loss.detach(), loss.mean(), logits, cotangents)


def _times_score(signal: Tensor, chain: Chain) -> list[Tensor]:
    """The score-function estimate of every layer, for one signal `[*, B]`."""
    return [
        reinforce_gradient(signal, None, dist.params, score=score)
        for dist, score in zip(chain.dists, chain.scores, strict=True)
    ]


def _with_slopes(
    model: SigmoidBeliefNetwork, x: Tensor, num_samples: int, noise: Noise
) -> tuple[Chain, Tensor, list[Tensor]]:
    """K chains for each image, f of each `[K, B]`, and its derivative at the bits of each layer `[K, B, P]`.

    The derivative is that of f at fixed bits of the other layers.
    """
    drawn = noise.logistic((num_samples, len(x)), model.layers)
    logits, bits = model.upwards(x, lambda layer, at: threshold(at, drawn[layer]).requires_grad_())
    value = torch.stack(model.terms(model.target(x), bits, [logits[0].detach(), *logits[1:]])).sum(0)
    slopes = list(torch.autograd.grad(value.sum(), bits, retain_graph=True))
    return Chain(logits, drawn, [b.detach() for b in bits]), value, slopes


def _mean_over_chains(
    chain: Chain, value: Tensor, estimates: Sequence[Tensor], signals: Sequence[Tensor] = ()
) -> Gradient:
    """The gradient from estimates `[K, B, P]` of each layer, trained on the variance of their mean."""
    variance = torch.stack([estimate.mean(0).square().mean() for estimate in estimates]).sum()
    return Gradient.of_layers(value, chain.logits, estimates, learning=variance, signals=signals)

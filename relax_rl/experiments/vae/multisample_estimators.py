"""Double control variates and RODEO in a stack of layers: RLOO on K chains, helped by the derivative of f.

Given the layers before, the score s_l of a layer has mean zero. A control variate that is linear in the scores of
several layers therefore stays a baseline for each of them, but for the layer's own term, which is put back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relax_rl.estimators.multisample import others_mean
from relax_rl.experiments.vae.baselines import MovingMoments
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator, at_logits
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork, draw_noise

__all__ = ["DoubleControlVariates", "Rodeo"]


class DoubleControlVariates(LayeredEstimator):
    """Double control variates (Titsias and Shi 2022), with a linear control variate for every layer.

        a_k,l = mean_{j != k} f'(b_j)_l,    v_k = sum_l a_k,l . s_k,l
        g_l = mean_k [f_k + alpha v_k - mean_{j != k}(f_j + alpha v_j)] s_k,l - alpha a_k,l p_k,l (1 - p_k,l)

    alpha starts at -1 and is trained on the variance.
    """

    def __init__(self, num_samples: int, *, alpha: float = -1.0) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain, value, slopes = _with_slopes(model, x, self.num_samples, generator)
        loss, scores = value.detach(), chain.scores
        others = [others_mean(slope) for slope in slopes]
        linear = torch.stack([(a * s).sum(-1) for a, s in zip(others, scores, strict=True)]).sum(0)
        signal = loss + self.alpha * linear
        centred = (signal - others_mean(signal)).unsqueeze(-1)
        estimates = [
            centred * score - self.alpha * other * _spread(logits)
            for logits, score, other in zip(chain.logits, scores, others, strict=True)
        ]
        return _mean_over_chains(self, chain, value, estimates)


class Rodeo(LayeredEstimator):
    """RODEO (Shi et al. 2022), with the Stein operator of every layer in the leave-one-out baseline.

        d_k,l(b) = mean_{j != k} f'(b_j)_l . (b - b_j,l),    h_k,l(b) = h(mean_{j != k} f_j, d_k,l(b))
        (A h)(b) = sum_i P(1 - b_i | layers before) (h(b with bit i flipped) - h(b))
        g_l = mean_k [f_k - mean_{j != k}(f_j + alpha sum_m (A h_j,m)(b_j,m))] s_k,l + beta (A h_k,l s_l)(b_k,l)

    The flips reach h through two numbers alone, so that f and its derivative are asked for K chains only. The other
    chains enter h by their mean, and h(f, d) = d + w . tanh(a f + c d + e) on inputs divided by the moving standard
    deviation of f; w starts at zero. alpha, beta and h are trained on the variance.

    Args:
        num_samples: K.
        hidden: tanh units of h; 0 leaves h = d.
        generator: of the initial weights.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        alpha: float = 0.5,
        beta: float = 0.2,
        hidden: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.alpha, self.beta = nn.Parameter(torch.tensor(alpha)), nn.Parameter(torch.tensor(beta))
        self.moments = MovingMoments()
        self.hidden: nn.ParameterList | None = None
        if hidden:
            inner = torch.empty(3, hidden).uniform_(-1.0, 1.0, generator=generator)
            self.hidden = nn.ParameterList([*map(nn.Parameter, inner), nn.Parameter(torch.zeros(hidden))])

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain, value, slopes = _with_slopes(model, x, self.num_samples, generator)
        loss = value.detach()
        known = others_mean(loss)
        steins, stein_scores = [], []
        for bits, score, slope in zip(chain.bits, chain.scores, slopes, strict=True):
            along, offset = others_mean(slope), others_mean((slope * bits).sum(-1))
            here = (along * bits).sum(-1) - offset
            flip, flip_prob = 1 - 2 * bits, score.abs()
            h_here = self.h(known, here)
            h_flipped = self.h(known.unsqueeze(-1), here.unsqueeze(-1) + along * flip)
            stein = (flip_prob * (h_flipped - h_here.unsqueeze(-1))).sum(-1)
            steins.append(stein)
            stein_scores.append(stein.unsqueeze(-1) * score + flip_prob * h_flipped * flip)
        baseline = others_mean(loss + self.alpha * torch.stack(steins).sum(0))
        centred = (loss - baseline).unsqueeze(-1)
        estimates = [centred * score + self.beta * term for score, term in zip(chain.scores, stein_scores, strict=True)]
        gradient = _mean_over_chains(self, chain, value, estimates)
        self.moments.update(loss)
        return gradient

    def h(self, known: Tensor, change: Tensor) -> Tensor:
        """Control at f of the other chains `[*]` and the change `[*]` that their derivative predicts."""
        if self.hidden is None:
            return change
        scale = self.moments.std.clamp(min=1.0)
        at_f, at_change, shift, out = self.hidden
        centred = ((known - self.moments.mean) / scale).unsqueeze(-1)
        inner = torch.tanh(centred * at_f + (change / scale).unsqueeze(-1) * at_change + shift)
        control: Tensor = change + scale * (inner @ out)
        return control


def _with_slopes(
    model: SigmoidBeliefNetwork, x: Tensor, num_samples: int, generator: torch.Generator | None
) -> tuple[Chain, Tensor, list[Tensor]]:
    """K chains for each image, f of each `[K, B]`, and its derivative at the bits of each layer `[K, B, P]`.

    The derivative is that of f at fixed bits of the other layers.
    """
    noise = draw_noise((num_samples, len(x)), model.layers, generator, x.device)
    below = model.input(x)
    logits, zs, bits = [], [], []
    for layer, epsilon in enumerate(noise):
        at = model.encode(layer, below)
        zs.append(at.detach() + epsilon)
        below = (zs[-1] > 0).to(zs[-1].dtype).requires_grad_()
        logits.append(at)
        bits.append(below)
    value = torch.stack(model.terms(model.target(x), bits, [logits[0].detach(), *logits[1:]])).sum(0)
    slopes = list(torch.autograd.grad(value.sum(), bits, retain_graph=True))
    chain = Chain(tuple(logits), tuple(noise), tuple(zs), tuple(b.detach() for b in bits))
    return chain, value, slopes


def _mean_over_chains(estimator: LayeredEstimator, chain: Chain, value: Tensor, estimates: list[Tensor]) -> Gradient:
    """The gradient from estimates `[K, B, P]` of each layer; adds that of their mean's variance to the estimator's."""
    count, examples = value.shape
    variance = torch.stack([estimate.mean(0).square().mean() for estimate in estimates]).sum()
    torch.autograd.backward(variance, inputs=list(estimator.parameters()))
    each = [estimate.detach() / count for estimate in estimates]
    return Gradient(value.detach().mean(0), value.mean(), chain.logits, at_logits(chain.logits, each, examples))


def _spread(logits: Tensor) -> Tensor:
    """p (1 - p), the variance of the bits."""
    probs = torch.sigmoid(logits.detach())
    return probs * (1 - probs)

"""Control variates through a relaxation of every layer: RELAX, REBAR and DLAX, one surrogate a layer.

The surrogate of layer l sees the bits of the layers before, z_l, and f relaxed from there on:

    c_l(z) = eta f(b_<l, sigma(z_l / lambda), deeper layers relaxed with the very noise of their bits) + r_l(context, z_l)
    g_l = (f(b) - c_l(z~)) s_l + dc_l(z) - dc_l(z~)

or, corrected, f relaxed in one bit at a time: another c_l for every bit (see `controls.py`). Each entry of g_l is an
estimate of its own, so that to the estimators each bit of an image is a row. The noise of z~ given b is coupled with that
of z, so that c_l is evaluated and differentiated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from relax_rl.distributions import Bernoulli
from relax_rl.estimators import dlax, reinforce_gradient, relax, variance_loss
from relax_rl.experiments.vae.baselines import InputBaseline
from relax_rl.experiments.vae.controls import Control, factors_of, relaxed_control
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator, at_logits
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.residual import ResidualNetwork
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork

__all__ = ["ParameterRebar", "Relax", "SurrogateContext"]

SurrogateContext = Literal["input", "logits"]


class Relax(LayeredEstimator):
    """RELAX (Grathwohl et al. 2018) with one surrogate, one eta and one temperature a layer; REBAR without r; DLAX.

    Trained on the sum over layers of the mean of g_l^2 over examples and bits.

    Args:
        layers: widths of the layers of bits.
        residuals: r_l of each layer, of its context and z_l; none for REBAR.
        objective: whether the surrogate holds eta f.
        corrected: whether f is relaxed in one bit at a time; the correction of the others has a learned scale too.
        temperature: lambda at the start; its logarithm is learned.
        context: of r_l: the "input" and the bits before the layer, [input, 2 b_1 - 1, ..., 2 b_{l-1} - 1], as published; or
            the "logits" of the layer, held.
        conditional: RELAX's form with z given b; otherwise DLAX's, f(b) s_l - c(z) dlog p(z) + dc(z).
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        residuals: Sequence[ResidualNetwork] = (),
        objective: bool = True,
        corrected: bool = False,
        temperature: float = 0.5,
        conditional: bool = True,
        context: SurrogateContext = "logits",
    ) -> None:
        super().__init__()
        self.conditional, self.context = conditional, context
        self.residuals = nn.ModuleList(residuals)
        self.eta: nn.Parameter | None = None
        self.correction: nn.Parameter | None = None
        self.log_temperature: nn.Parameter | None = None
        if objective:
            self.eta = nn.Parameter(torch.ones(len(layers)))
            if corrected:
                self.correction = nn.Parameter(torch.ones(len(layers)))
            self.log_temperature = nn.Parameter(torch.full((len(layers),), temperature).log())

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        scalars = [x for x in (self.eta, self.correction, self.log_temperature) if x is not None]
        return list(self.residuals.parameters()), scalars

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, noise: Noise) -> Gradient:
        chain, target = model.sample(x, noise), model.target(x)
        signs: Sequence[Tensor | None] = [None] * len(model.layers)
        if self.correction is not None:
            signs = noise.signs(x.shape[:1], model.layers)
        decoded = [model.decoded(layer, bits) for layer, bits in enumerate(chain.bits)]
        terms = model.terms(target, chain.bits, [dist.params for dist in chain.dists], decoded)
        value = torch.stack(terms).sum(0)
        loss = value.detach()
        before, context = torch.zeros_like(loss), [model.input(x)]
        factors, temperatures = self._factors()
        estimates, losses = [], []
        for layer, dist in enumerate(chain.dists):
            control: Control | None = None
            if factors:
                control = relaxed_control(
                    model,
                    target,
                    chain,
                    layer,
                    before,
                    temperatures[layer],
                    factors[layer],
                    signs[layer],
                    decoded[layer],
                )
            if self.residuals:
                given = torch.cat(context, -1) if self.context == "input" else dist.params
                control = self._with_residual(control, layer, given, chain.z[layer])
            assert control is not None
            found = self._estimate(loss, chain, layer, control)
            estimates.append(found.squeeze(-1))
            losses.append(variance_loss(found))
            before = before + terms[layer].detach()
            if self.context == "input":
                context.append(2 * chain.bits[layer] - 1)
        cotangents = at_logits(chain.logits, estimates, len(x))
        return Gradient(loss, value.mean(), chain.logits, cotangents, learning=torch.stack(losses).sum())

    def _factors(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Those of the control of each layer, and its temperature; none where the surrogate holds nothing of f."""
        if self.log_temperature is None:
            return [], []
        scales = [scale for scale in (self.eta, self.correction) if scale is not None]
        return factors_of(scales, self.log_temperature).unbind(), self.log_temperature.detach().exp().unbind()

    def _estimate(self, loss: Tensor, chain: Chain, layer: int, control: Control) -> Tensor:
        """g_l `[B, P, 1]`, one row for each bit."""
        logits, noise, bits = (x[layer].unsqueeze(-1) for x in (chain.logits, chain.noise, chain.bits))
        value, dist = loss.unsqueeze(-1).expand_as(control.value), Bernoulli(logits.detach())
        if self.conditional:
            return relax(value, dist, control, noise=noise, sample=bits, coupling="coupled").grad
        return dlax(value, dist, control, noise=noise).grad

    def _with_residual(self, control: Control | None, layer: int, context: Tensor, z: Tensor) -> Control:
        """r added to what the surrogate holds of f."""
        residual = self.residuals[layer]
        assert isinstance(residual, ResidualNetwork)
        value, slope = residual.given(context).value_and_slope(z)
        if control is None:
            return Control(value.unsqueeze(-1).expand_as(slope), slope)
        return Control(control.value + value.unsqueeze(-1), control.slope + slope)


class ParameterRebar(LayeredEstimator):
    """REBAR as first published in code: scales for each tensor of the encoder, one temperature, an input baseline.

        g = J'(f(b) - baseline(x)) s - eta J'[f(sigma(z~)) s - (df(sigma(z)) - df(sigma(z~)))]

    with J' the pull-back from the logits of all layers to the encoder's parameters and eta = 2 sigmoid(w) for each of
    its tensors, 1 at the start. eta, lambda and the baseline are trained on the sum of g^2 over parameters, g being the
    gradient of the whole batch that the workers see together.

    Args:
        num_tensors: of the encoder.
        baseline: of the image.
        temperature: lambda at the start; its logarithm is learned.
    """

    def __init__(self, num_tensors: int, baseline: InputBaseline, *, temperature: float = 0.5) -> None:
        super().__init__()
        self.baseline = baseline
        self.scale_logits = nn.Parameter(torch.zeros(num_tensors))
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, noise: Noise) -> Gradient:
        chain, target = model.sample(x, noise), model.target(x)
        terms = model.terms(target, chain.bits, [dist.params for dist in chain.dists])
        value = torch.stack(terms).sum(0)
        loss = value.detach()
        signal, before = loss - self.baseline(model.input(x)), torch.zeros_like(loss)
        plain, controls, temperature = [], [], self.log_temperature.detach().exp()
        factors = factors_of([torch.ones_like(temperature)], self.log_temperature)
        for layer, (dist, score) in enumerate(zip(chain.dists, chain.scores, strict=True)):
            plain.append(reinforce_gradient(signal, None, dist.params, score=score) / len(x))
            relaxed = relaxed_control(model, target, chain, layer, before, temperature, factors)
            dist, drawn, bits = Bernoulli(dist.params.unsqueeze(-1)), chain.noise[layer], chain.bits[layer]
            found = relax(
                torch.zeros_like(score),
                dist,
                relaxed,
                noise=drawn.unsqueeze(-1),
                sample=bits.unsqueeze(-1),
                coupling="coupled",
            )
            controls.append(found.grad.squeeze(-1) / len(x))
            before = before + terms[layer].detach()
        logits, tensors = list(chain.logits), model.encoder_parameters
        # The variance at the parameters reaches what is learned through these, which keep their graph for that.
        of_plain = torch.autograd.grad(logits, tensors, plain, create_graph=True)
        of_control = torch.autograd.grad(logits, tensors, controls, create_graph=True)
        scales = 2.0 * torch.sigmoid(self.scale_logits)
        with torch.no_grad():
            encoder = [
                torch.addcmul(p, eta, c).contiguous() for p, eta, c in zip(of_plain, scales, of_control, strict=True)
            ]
            self.workers.average_(*encoder)
        products = [
            torch.stack([_dot(2.0 * g, p), eta * _dot(2.0 * g, c)])
            for g, p, eta, c in zip(encoder, of_plain, scales, of_control, strict=True)
        ]
        return Gradient(loss, value.mean(), encoder=encoder, learning=torch.stack(products).sum())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))

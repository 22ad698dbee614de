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
from relax_rl.estimators import dlax, reinforce_gradient, relax
from relax_rl.experiments.vae.baselines import InputBaseline
from relax_rl.experiments.vae.controls import Control, ResidualNetwork, relaxed_terms
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.relaxed_loss import Place
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork

__all__ = ["ParameterRebar", "Relax"]


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
        context: Literal["input", "logits"] = "logits",
    ) -> None:
        super().__init__()
        self.conditional, self.context = conditional, context
        self.residuals: Sequence[ResidualNetwork] = nn.ModuleList(residuals)  # type: ignore[assignment]
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
        return [p for residual in self.residuals for p in residual.parameters()], scalars

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, noise: Noise) -> Gradient:
        chain, target, layers = model.sample(x, noise), model.target(x), model.layers
        corrected = self.correction is not None
        signs = noise.signs(x.shape[:1], layers) if corrected else (None,) * len(layers)
        decoded = [model.decoded(layer, bits) for layer, bits in enumerate(chain.bits)]
        f_terms = model.terms(target, chain.bits, [dist.params for dist in chain.dists], decoded)
        value = torch.stack(f_terms).sum(0)
        loss = value.detach()
        before, context = torch.zeros_like(loss), [model.input(x)]
        scales, temperatures = self._scalars()
        estimates: list[Tensor] = []
        of_residuals: list[Tensor] = []
        of_scalars: list[Tensor] = []
        for layer, dist in enumerate(chain.dists):
            control, terms, pull_back = None, None, None
            if scales:
                eta, temperature = scales[layer], temperatures[layer]
                place = Place(model, target, chain, layer, signs[layer], decoded[layer])
                terms = relaxed_terms(place, before, temperature, eta)
                control = Control(*(eta @ terms[:-1].flatten(1)).view(terms.shape[1:]))
            if self.residuals:
                given = torch.cat(context, -1) if self.context == "input" else dist.params
                residual, pull_back = self.residuals[layer].evaluate(given, chain.z[layer])
                control = residual if control is None else control + residual
            assert control is not None
            estimate, weight, direction = self._estimate(loss, chain, layer, control)
            estimates.append(estimate)
            if terms is not None:
                of_scalars.append(terms.flatten(1) @ torch.stack([weight, direction]).flatten())
            if pull_back is not None:
                of_residuals += pull_back(weight.sum(-1), direction)
            before = before + f_terms[layer].detach()
            if self.context == "input":
                context.append(2 * chain.bits[layer] - 1)
        learned = [*of_residuals, *(torch.stack(of_scalars, 1) if of_scalars else ())]
        return Gradient.of_layers(value, chain.logits, estimates, learned=learned)

    def _scalars(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Scales `[k]` of the terms of each layer's control, and its temperature; none where it holds nothing of f."""
        if self.log_temperature is None:
            return (), ()
        scales = [scale.detach() for scale in (self.eta, self.correction) if scale is not None]
        return torch.stack(scales, 1).unbind(), self.log_temperature.detach().exp().unbind()

    def _estimate(self, loss: Tensor, chain: Chain, layer: int, control: Control) -> tuple[Tensor, Tensor, Tensor]:
        """g_l `[B, P]`, and the gradient of the mean of its square at the control's value and slope."""
        control.value.requires_grad_()
        control.slope.requires_grad_()
        value, dist = loss.unsqueeze(-1).expand_as(control.slope), Bernoulli(chain.dists[layer].params.unsqueeze(-1))
        noise = chain.noise[layer].unsqueeze(-1)
        if self.conditional:
            bits = chain.bits[layer].unsqueeze(-1)
            estimate = relax(value, dist, control, noise=noise, sample=bits, coupling="coupled").grad
        else:
            estimate = dlax(value, dist, control, noise=noise).grad
        found = estimate.detach()
        learned = [control.value, control.slope]
        weight, direction = torch.autograd.grad(estimate, learned, found * (2.0 / found.numel()))
        return found.squeeze(-1), weight, direction


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
        f_terms = model.terms(target, chain.bits, [dist.params for dist in chain.dists])
        value = torch.stack(f_terms).sum(0)
        loss = value.detach()
        signal, before = loss - self.baseline(model.input(x)), torch.zeros_like(loss)
        temperature = self.log_temperature.detach().exp()
        one = torch.ones_like(temperature).unsqueeze(0)
        plain, controls, tangents = [], [], []
        for layer, (dist, score) in enumerate(zip(chain.dists, chain.scores, strict=True)):
            plain.append(reinforce_gradient(signal, None, dist.params, score=score) / len(x))
            terms = relaxed_terms(Place(model, target, chain, layer), before, temperature, one)
            # Of the control and of how it moves with log lambda, in which the estimate is linear.
            rows = (dist.params, chain.noise[layer], chain.bits[layer])
            params, drawn, bits = (each.unsqueeze(-1).expand(2, *each.shape, 1) for each in rows)
            nothing, both = torch.zeros_like(terms[:, 0]), Control(terms[:, 0], terms[:, 1])
            found = relax(nothing, Bernoulli(params), both, noise=drawn, sample=bits, coupling="coupled").grad
            control, tangent = found.squeeze(-1) / len(x)
            controls.append(control)
            tangents.append(tangent)
            before = before + f_terms[layer].detach()
        # The variance reaches the baseline through the pull-back of the plain part, which keeps its graph for that.
        logits, tensors = list(chain.logits), model.encoder_parameters
        of_plain = torch.autograd.grad(logits, tensors, plain, create_graph=True)
        of_control = torch.autograd.grad(logits, tensors, controls, retain_graph=True)
        of_tangent = torch.autograd.grad(logits, tensors, tangents, retain_graph=True)
        scales = 2.0 * torch.sigmoid(self.scale_logits.detach())
        each = zip(of_plain, scales, of_control, strict=True)
        encoder = [torch.addcmul(p.detach(), eta, control).contiguous() for p, eta, control in each]
        self.workers.average_(*encoder)
        by_scale = torch.stack([_dot(g, control) for g, control in zip(encoder, of_control, strict=True)])
        moved = torch.stack([_dot(g, tangent) for g, tangent in zip(encoder, of_tangent, strict=True)])
        learned = [2.0 * by_scale * scales * (1 - scales / 2), 2.0 * (scales * moved).sum()]
        of_baseline = torch.autograd.grad(of_plain, list(self.baseline.parameters()), [2.0 * g for g in encoder])
        return Gradient(value.detach(), value.mean(), encoder=encoder, learned=[*learned, *of_baseline])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))

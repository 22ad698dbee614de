"""Control variates through a relaxation of every layer: RELAX, REBAR and DLAX, one surrogate a layer.

The surrogate of layer l sees the bits of the layers before, z_l, and f relaxed from there on:

    c_l(z) = eta f(b_<l, sigma(z_l / lambda), deeper layers relaxed with the very noise of their bits) + r_l(context, z_l)
    g_l = (f(b) - c_l(z~)) s_l + dc_l(z) - dc_l(z~)

The noise of z~ given b is coupled with that of z (Tucker et al. 2017, appendix): z~ equals z and moves otherwise with
the logits. So c_l is evaluated and differentiated once, and dc_l(z) - dc_l(z~) = c_l'(z) (1 - dz~/dlogits) in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from relax_rl.experiments.vae.baselines import InputBaseline
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator, at_logits
from relax_rl.experiments.vae.relaxed_loss import relaxed_loss
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork, draw_noise
from relax_rl.experiments.vae.surrogate import ResidualNetwork

__all__ = ["ParameterRebar", "Relax", "SurrogateContext", "conditional_slope"]

SurrogateContext = Literal["input", "logits"]


def conditional_slope(logits: Tensor, z: Tensor) -> Tensor:
    """1 - dz~/dlogits at z~ = z, the noise of z~ given the bit held.

    z~ = +-softplus(noise + softplus(+-logits)) with the sign of the bit, so that dz~/dlogits is
    (1 - exp(-|z|)) sigmoid(+-logits).
    """
    return 1 + torch.expm1(-z.abs()) * torch.sigmoid(torch.copysign(logits, logits * z))


class Relax(LayeredEstimator):
    """RELAX (Grathwohl et al. 2018) with one surrogate, one eta and one temperature a layer; REBAR without r; DLAX.

    Trained on the sum over layers of the mean of g_l^2 over examples and bits.

    Args:
        layers: widths of the layers of bits.
        residuals: r_l of each layer, of its context and z_l; none for REBAR.
        objective: whether the surrogate holds eta f.
        temperature: lambda at the start; its logarithm is learned.
        context: of r_l: the "input" and the bits before the layer, [input, 2 b_1 - 1, ..., 2 b_{l-1} - 1], as published; or
            the "logits" of the layer, held.
        conditional: RELAX's form with z given b; otherwise DLAX's, (f(b) s_l - c(z) dlog p(z)) + dc(z).
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        residuals: Sequence[ResidualNetwork] = (),
        objective: bool = True,
        temperature: float = 0.5,
        conditional: bool = True,
        context: SurrogateContext = "logits",
    ) -> None:
        super().__init__()
        self.conditional, self.context = conditional, context
        self.residuals = nn.ModuleList(residuals)
        self.eta: nn.Parameter | None = None
        self.log_temperature: nn.Parameter | None = None
        if objective:
            self.eta = nn.Parameter(torch.ones(len(layers)))
            self.log_temperature = nn.Parameter(torch.full((len(layers),), temperature).log())

    def decayed_parameters(self) -> list[nn.Parameter]:
        return list(self.residuals.parameters())

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain = model.draw(x, draw_noise(x.shape[:1], model.layers, generator, x.device))
        target = model.target(x)
        terms = model.terms(target, chain.bits, [logits.detach() for logits in chain.logits])
        value = torch.stack(terms).sum(0)
        loss = value.detach()
        before = torch.zeros_like(loss)
        context, estimates, trained = [model.input(x)], [], []
        for layer, score in enumerate(chain.scores):
            estimate, at_scales = self._layer(model, target, chain, layer, score, loss, before, context)
            estimates.append(estimate)
            trained.append(at_scales)
            before = before + terms[layer].detach()
            context.append(2 * chain.bits[layer] - 1)
        self._train_scales(trained)
        return Gradient(loss, value.mean(), chain.logits, at_logits(chain.logits, estimates, len(x)))

    def _layer(
        self,
        model: SigmoidBeliefNetwork,
        target: Tensor,
        chain: Chain,
        layer: int,
        score: Tensor,
        loss: Tensor,
        before: Tensor,
        context: list[Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """g_l `[B, P]`, and the gradient of its variance at eta and log lambda `[2]`.

        g_l is linear in c and c': its variance moves with phi as `weight` c + `direction` . c' does.
        """
        z, logits = chain.z[layer], chain.logits[layer].detach()
        if self.conditional:
            c_score, slope_factor = score, conditional_slope(logits, z)
        else:
            c_score, slope_factor = torch.tanh(chain.noise[layer] / 2), torch.ones_like(z)  # dlog p(z) at fixed z
        control, slope = torch.zeros_like(loss), torch.zeros_like(z)
        relaxed = None
        if self.eta is not None and self.log_temperature is not None:
            relaxed = relaxed_loss(model, target, chain, layer, self.log_temperature[layer])
            eta = self.eta.detach()[layer]
            control, slope = eta * (before + relaxed.value), eta * relaxed.slope
        residual = self._residual(layer)
        if residual is not None:
            given = torch.cat(context, -1) if self.context == "input" else logits
            free, free_slope = residual(given, z)
            control, slope = control + free, slope + free_slope
        estimate = loss.unsqueeze(-1) * score - control.unsqueeze(-1) * c_score + slope_factor * slope
        pull = estimate * (2.0 / estimate.numel())
        weight, direction = -(pull * c_score).sum(-1), pull * slope_factor
        if residual is not None:
            residual.add_gradient(weight, direction)
        if relaxed is None:
            return estimate, None
        by_eta = weight @ (before + relaxed.value) + (direction * relaxed.slope).sum()
        by_temperature = weight @ relaxed.value_tangent + (direction * relaxed.slope_tangent).sum()
        return estimate, torch.stack([by_eta, eta * by_temperature])

    def _residual(self, layer: int) -> ResidualNetwork | None:
        if not self.residuals:
            return None
        residual = self.residuals[layer]
        assert isinstance(residual, ResidualNetwork)
        return residual

    def _train_scales(self, gradients: list[Tensor | None]) -> None:
        """Add the gradients at eta and log lambda, one pair a layer."""
        if self.eta is None or self.log_temperature is None:
            return
        each = torch.stack([pair for pair in gradients if pair is not None], -1)
        for parameter, gradient in zip((self.eta, self.log_temperature), each, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


class ParameterRebar(LayeredEstimator):
    """REBAR as first published in code: scales for each tensor of the encoder, one temperature, an input baseline.

        g = J'(f(b) - baseline(x)) s - eta J'[f(sigma(z~)) s - (df(sigma(z)) - df(sigma(z~)))]

    with J' the pull-back from the logits of all layers to the encoder's parameters and eta = 2 sigmoid(w) for each of
    its tensors, 1 at the start. eta, lambda and the baseline are trained on the sum of g^2 over parameters.

    Args:
        num_tensors: of the encoder.
        baseline: of the image; None for none.
        temperature: lambda at the start; its logarithm is learned.
    """

    def __init__(self, num_tensors: int, baseline: InputBaseline | None, *, temperature: float = 0.5) -> None:
        super().__init__()
        self.baseline = baseline
        self.scale_logits = nn.Parameter(torch.zeros(num_tensors))
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain = model.draw(x, draw_noise(x.shape[:1], model.layers, generator, x.device))
        target = model.target(x)
        terms = model.terms(target, chain.bits, [logits.detach() for logits in chain.logits])
        value = torch.stack(terms).sum(0)
        loss = value.detach()
        signal = loss if self.baseline is None else loss - self.baseline(model.input(x))
        before = torch.zeros_like(loss)
        plain, controls, tangents = [], [], []
        for layer, score in enumerate(chain.scores):
            relaxed = relaxed_loss(model, target, chain, layer, self.log_temperature)
            factor = conditional_slope(chain.logits[layer].detach(), chain.z[layer])
            plain.append(signal.unsqueeze(-1) * score / len(x))
            controls.append(((before + relaxed.value).unsqueeze(-1) * score - factor * relaxed.slope) / len(x))
            tangents.append((relaxed.value_tangent.unsqueeze(-1) * score - factor * relaxed.slope_tangent) / len(x))
            before = before + terms[layer].detach()
        logits, tensors = list(chain.logits), model.encoder_parameters
        # The variance at the parameters reaches the baseline through this pull-back, which keeps its graph for that.
        of_plain = torch.autograd.grad(
            logits, tensors, plain, create_graph=self.baseline is not None, retain_graph=True
        )
        of_control = torch.autograd.grad(logits, tensors, controls, retain_graph=True)
        of_tangent = torch.autograd.grad(logits, tensors, tangents, retain_graph=self.baseline is not None)
        scales = 2 * torch.sigmoid(self.scale_logits)
        encoder = [a - eta * c for a, eta, c in zip(of_plain, scales, of_control, strict=True)]
        variance = torch.stack([torch.linalg.vector_norm(g).square() for g in encoder]).sum()
        pairs = zip(encoder, scales.detach(), of_tangent, strict=True)
        by_temperature = torch.stack([eta * (g.detach() * t).sum() for g, eta, t in pairs]).sum()
        moved = variance - 2 * by_temperature * self.log_temperature
        torch.autograd.backward(moved, inputs=list(self.parameters()), retain_graph=True)
        return Gradient(loss, value.mean(), encoder=[g.detach() for g in encoder])

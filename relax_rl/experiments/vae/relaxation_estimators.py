"""Control variates through a relaxation of every layer: RELAX, REBAR and DLAX, one surrogate a layer.

The surrogate of layer l sees the bits of the layers before, z_l, and f relaxed from there on:

    c_l(z) = eta f(b_<l, sigma(z_l / lambda), deeper layers relaxed with the very noise of their bits) + r_l(context, z_l)
    g_l = (f(b) - c_l(z~)) s_l + dc_l(z) - dc_l(z~)

or, corrected, f relaxed in one bit at a time: another c_l for every bit (see `controls.py`).
The noise of z~ given b is coupled with that of z (Tucker et al. 2017, appendix): z~ equals z and moves otherwise with
the logits. So c_l is evaluated and differentiated once, and dc_l(z) - dc_l(z~) = c_l'(z) (1 - dz~/dlogits) in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from relax_rl.distributed import ALONE, Workers
from relax_rl.experiments.vae.baselines import InputBaseline
from relax_rl.experiments.vae.controls import Control, relaxed_controls
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator, at_logits
from relax_rl.experiments.vae.relaxed_loss import relaxed_loss
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork, draw_signs
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
        corrected: whether f is relaxed in one bit at a time; the correction of the others has a learned scale too.
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

    def decayed_parameters(self) -> list[nn.Parameter]:
        return list(self.residuals.parameters())

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain = model.sample(x, generator)
        signs: Sequence[Tensor | None] = [None] * len(model.layers)
        if self.correction is not None:
            signs = draw_signs(x.shape[:1], model.layers, generator, x.device)
        target = model.target(x)
        decoded = [model.decoded(layer, bits) for layer, bits in enumerate(chain.bits)]
        terms = model.terms(target, chain.bits, [logits.detach() for logits in chain.logits], decoded)
        value = torch.stack(terms).sum(0)
        loss = value.detach()
        before = torch.zeros_like(loss)
        context, estimates, trained = [model.input(x)], [], []
        for layer, score in enumerate(chain.scores):
            controls, scales = self._controls(model, target, chain, layer, before, signs[layer], decoded[layer])
            estimate, at_scalars = self._layer(chain, layer, score, loss, controls, scales, context)
            estimates.append(estimate)
            trained.append(at_scalars)
            before = before + terms[layer].detach()
            context.append(2 * chain.bits[layer] - 1)
        self._train_scalars(trained)
        return Gradient(loss, value.mean(), chain.logits, at_logits(chain.logits, estimates, len(x)))

    def _layer(
        self,
        chain: Chain,
        layer: int,
        score: Tensor,
        loss: Tensor,
        controls: Sequence[Control],
        scales: Sequence[Tensor],
        context: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """g_l `[B, P]`, and the gradients of its variance at the learned scalars of the layer, in order.

        g_l is linear in c and c': its variance moves with phi as `weight` c + `direction` . c' does.
        """
        z, logits = chain.z[layer], chain.logits[layer].detach()
        if self.conditional:
            c_score, slope_factor = score, conditional_slope(logits, z)
        else:
            c_score, slope_factor = torch.tanh(chain.noise[layer] / 2), torch.ones_like(z)  # dlog p(z) at fixed z
        estimate = loss.unsqueeze(-1) * score
        for control, scale in zip(controls, scales, strict=True):
            estimate = estimate - (scale * control.value) * c_score + (scale * control.slope) * slope_factor
        residual = self._residual(layer)
        if residual is not None:
            given = torch.cat(context, -1) if self.context == "input" else logits
            free, free_slope = residual(given, z)
            estimate = estimate - free.unsqueeze(-1) * c_score + free_slope * slope_factor
        pull = estimate * (2.0 / estimate.numel())
        weight, direction = -pull * c_score, pull * slope_factor
        if residual is not None:
            residual.add_gradient(weight.sum(-1), direction)
        by_scale = [(weight * control.value + direction * control.slope).sum() for control in controls]
        moved = [(weight * control.value_tangent + direction * control.slope_tangent).sum() for control in controls]
        by_temperature = [scale * each for scale, each in zip(scales, moved, strict=True)]
        return estimate, [*by_scale, torch.stack(by_temperature).sum()] if controls else []

    def _controls(
        self,
        model: SigmoidBeliefNetwork,
        target: Tensor,
        chain: Chain,
        layer: int,
        before: Tensor,
        signs: Tensor | None,
        decoded: Tensor | None,
    ) -> tuple[list[Control], list[Tensor]]:
        """Those made of f, and their learned scales."""
        if self.log_temperature is None:
            return [], []
        at = self.log_temperature.detach()[layer]
        scales = [scale.detach()[layer] for scale in (self.eta, self.correction) if scale is not None]
        return relaxed_controls(model, target, chain, layer, before, at, signs, decoded), scales

    def _residual(self, layer: int) -> ResidualNetwork | None:
        if not self.residuals:
            return None
        residual = self.residuals[layer]
        assert isinstance(residual, ResidualNetwork)
        return residual

    def _train_scalars(self, layers: list[list[Tensor]]) -> None:
        """Add the gradients at eta, the correction's scale and log lambda, one of each for a layer."""
        learned = [p for p in (self.eta, self.correction, self.log_temperature) if p is not None]
        for parameter, gradients in zip(learned, zip(*layers, strict=True), strict=True):
            _add(parameter, torch.stack(gradients))


class ParameterRebar(LayeredEstimator):
    """REBAR as first published in code: scales for each tensor of the encoder, one temperature, an input baseline.

        g = J'(f(b) - baseline(x)) s - eta J'[f(sigma(z~)) s - (df(sigma(z)) - df(sigma(z~)))]

    with J' the pull-back from the logits of all layers to the encoder's parameters and eta = 2 sigmoid(w) for each of
    its tensors, 1 at the start. eta, lambda and the baseline are trained on the sum of g^2 over parameters.

    Args:
        num_tensors: of the encoder.
        baseline: of the image; None for none.
        temperature: lambda at the start; its logarithm is learned.

    Attributes:
        workers: who see one batch together, each a part; the variance is that of the whole batch's gradient.
    """

    def __init__(self, num_tensors: int, baseline: InputBaseline | None, *, temperature: float = 0.5) -> None:
        super().__init__()
        self.baseline = baseline
        self.workers: Workers = ALONE
        self.scale_logits = nn.Parameter(torch.zeros(num_tensors))
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain = model.sample(x, generator)
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
        encoder = self._train(of_plain, of_control, of_tangent)
        return Gradient(loss, value.mean(), encoder=encoder)

    def _train(
        self, of_plain: Sequence[Tensor], of_control: Sequence[Tensor], of_tangent: Sequence[Tensor]
    ) -> list[Tensor]:
        """The gradient at the encoder's tensors; adds that of its square to what is learned.

        Args:
            of_plain: pulled back from the score alone, with the graph to the baseline.
            of_control, of_tangent: pulled back from the control, and how it moves with log lambda.
        """
        whole = [[part.detach() for part in parts] for parts in (of_plain, of_control, of_tangent)]
        if self.workers.count > 1:
            whole = [[part.clone(memory_format=torch.contiguous_format) for part in parts] for parts in whole]
            self.workers.average_(*(part for parts in whole for part in parts))
        scales = 2 * torch.sigmoid(self.scale_logits.detach())
        encoder = [
            torch.addcmul(plain, eta, control, value=-1)
            for plain, eta, control in zip(whole[0], scales, whole[1], strict=True)
        ]
        by_scale = torch.stack([_dot(g, control) for g, control in zip(encoder, whole[1], strict=True)])
        moved = torch.stack([_dot(g, tangent) for g, tangent in zip(encoder, whole[2], strict=True)])
        _add(self.scale_logits, -2 * by_scale * scales * (1 - scales / 2))
        _add(self.log_temperature, -2 * (scales * moved).sum())
        if self.baseline is not None:
            torch.autograd.backward(of_plain, [2 * g for g in encoder], inputs=list(self.baseline.parameters()))
        return encoder


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

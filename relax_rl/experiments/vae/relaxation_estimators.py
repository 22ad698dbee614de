"""Control variates through a relaxation of every layer: RELAX, REBAR and DLAX, one surrogate a layer.

The surrogate of layer l sees the bits of the layers before, z_l, and f relaxed from there on:

    c_l(z) = eta f(b_<l, sigma(z_l / lambda), deeper layers relaxed with the very noise of their bits) + r_l(context, z_l)
    g_l = (f(b) - c_l(z~)) s_l + dc_l(z) - dc_l(z~)

The noise of z~ given b is coupled with that of z (Tucker et al. 2017, appendix): z~ equals z and moves otherwise with
the logits. So c_l is evaluated and differentiated once, and dc_l(z) - dc_l(z~) = c_l'(z) (1 - dz~/dlogits) in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relax_rl.experiments.vae.baselines import InputBaseline
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator, at_logits
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork, draw_noise
from relax_rl.experiments.vae.surrogate import ResidualNetwork

__all__ = ["ParameterRebar", "Relax", "conditional_slope", "relaxed_loss"]


def conditional_slope(logits: Tensor, z: Tensor) -> Tensor:
    """1 - dz~/dlogits at z~ = z, the noise of z~ given the bit held.

    z~ = +-softplus(noise + softplus(+-logits)) with the sign of the bit, so that dz~/dlogits is
    (1 - exp(-|z|)) sigmoid(+-logits).
    """
    return 1 + torch.expm1(-z.abs()) * torch.sigmoid(torch.copysign(logits, logits * z))


def relaxed_loss(
    model: SigmoidBeliefNetwork, target: Tensor, chain: Chain, layer: int, z: Tensor, temperature: Tensor
) -> Tensor:
    """The terms of f from `layer` on, `[B]`, at sigma(z / temperature) and deeper layers relaxed likewise."""
    below = None if layer == 0 else chain.bits[layer - 1]
    logits = chain.logits[layer].detach()
    soft = torch.sigmoid(z / temperature)
    value = model.term(layer, target, below, soft, logits)
    for deeper in range(layer + 1, len(model.layers)):
        below = soft
        logits = model.encode(deeper, below)
        soft = torch.sigmoid((logits + chain.noise[deeper]) / temperature)
        value = value + model.term(deeper, target, below, soft, logits)
    return value


class Relax(LayeredEstimator):
    """RELAX (Grathwohl et al. 2018) with one surrogate, one eta and one temperature a layer; REBAR without r; DLAX.

    Trained on the sum over layers of the mean of g_l^2 over examples and bits.

    Args:
        layers: widths of the layers of bits.
        residuals: r_l of each layer, of the context [input, 2 b_1 - 1, ..., 2 b_{l-1} - 1] and z_l; none for REBAR.
        objective: whether the surrogate holds eta f.
        temperature: lambda at the start; its logarithm is learned.
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
    ) -> None:
        super().__init__()
        self.conditional = conditional
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
            estimate, through_objective = self._layer(model, target, chain, layer, score, loss, before, context)
            estimates.append(estimate)
            trained.append(through_objective)
            before = before + terms[layer].detach()
            context.append(2 * chain.bits[layer] - 1)
        self._train_objective_part(trained)
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
        """g_l `[B, P]`, and the scalar whose gradient at eta and lambda is that of the variance.

        g_l is linear in c and c': its variance moves with phi as `weight` c + `direction` . c' does.
        """
        z, logits = chain.z[layer], chain.logits[layer].detach()
        if self.conditional:
            c_score, slope_factor = score, conditional_slope(logits, z)
        else:
            c_score, slope_factor = torch.tanh(chain.noise[layer] / 2), torch.ones_like(z)  # dlog p(z) at fixed z
        control, slope = torch.zeros_like(loss), torch.zeros_like(z)
        if self.eta is not None and self.log_temperature is not None:
            leaf = z.detach().requires_grad_()
            relaxed = before + relaxed_loss(model, target, chain, layer, leaf, self.log_temperature[layer].exp())
            (relaxed_slope,) = torch.autograd.grad(relaxed.sum(), leaf, create_graph=True)
            eta = self.eta.detach()[layer]
            control, slope = control + eta * relaxed.detach(), slope + eta * relaxed_slope.detach()
        residual = self._residual(layer)
        if residual is not None:
            free, free_slope = residual(torch.cat(context, -1), z)
            control, slope = control + free, slope + free_slope
        estimate = loss.unsqueeze(-1) * score - control.unsqueeze(-1) * c_score + slope_factor * slope
        pull = estimate * (2.0 / estimate.numel())
        weight, direction = -(pull * c_score).sum(-1), pull * slope_factor
        if residual is not None:
            residual.add_gradient(weight, direction)
        if self.eta is None:
            return estimate, None
        return estimate, (weight * relaxed).sum() + (direction * relaxed_slope).sum()

    def _residual(self, layer: int) -> ResidualNetwork | None:
        if not self.residuals:
            return None
        residual = self.residuals[layer]
        assert isinstance(residual, ResidualNetwork)
        return residual

    def _train_objective_part(self, trained: list[Tensor | None]) -> None:
        """Add the gradients at eta and log lambda: S_l is linear in eta_l, and eta_l scales its gradient at lambda."""
        if self.eta is None or self.log_temperature is None:
            return
        each = torch.stack([part for part in trained if part is not None])
        torch.autograd.backward(
            (self.eta * each.detach() + self.eta.detach() * each).sum(), inputs=list(self._scales())
        )

    def _scales(self) -> tuple[nn.Parameter, nn.Parameter]:
        assert self.eta is not None and self.log_temperature is not None
        return self.eta, self.log_temperature


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
        plain, controls = [], []
        for layer, score in enumerate(chain.scores):
            leaf = chain.z[layer].detach().requires_grad_()
            relaxed = before + relaxed_loss(model, target, chain, layer, leaf, self.log_temperature.exp())
            (slope,) = torch.autograd.grad(relaxed.sum(), leaf, create_graph=True)
            factor = conditional_slope(chain.logits[layer].detach(), leaf.detach())
            plain.append(signal.unsqueeze(-1) * score / len(x))
            controls.append((relaxed.unsqueeze(-1) * score - factor * slope) / len(x))
            before = before + terms[layer].detach()
        logits, tensors = list(chain.logits), model.encoder_parameters
        # Both pull-backs keep their graph: through them the variance at the parameters reaches lambda and the baseline.
        of_plain = torch.autograd.grad(logits, tensors, plain, create_graph=True)
        of_control = torch.autograd.grad(logits, tensors, controls, create_graph=True)
        scales = 2 * torch.sigmoid(self.scale_logits)
        encoder = [a - eta * c for a, eta, c in zip(of_plain, scales, of_control, strict=True)]
        variance = torch.stack([g.square().sum() for g in encoder]).sum()
        torch.autograd.backward(variance, inputs=list(self.parameters()), retain_graph=True)
        return Gradient(loss, value.mean(), encoder=[g.detach() for g in encoder])

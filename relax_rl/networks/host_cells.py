"""Recurrent cells on the host: a step has many calls, and for a few sequences NumPy's cost less than torch's.

Arrays have the sequences last, `[units, N]`: gates are whole rows then, and lie together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MOST", "gru_step", "lstm_step", "pays_on_host", "unroll_gru"]

MOST = 2**18
"""Products in a layer above which NumPy's BLAS would take threads of its own, whatever torch is allowed."""


def pays_on_host(cell: Any, num: int) -> bool:
    """Whether steps of that many sequences by a GRU or LSTM of one layer are for NumPy."""
    weight: Tensor = cell.weight_hh_l0
    plain = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    return plain and num * weight.numel() <= MOST


def gru_step(told: np.ndarray, inner: np.ndarray, h: np.ndarray, out: np.ndarray) -> None:
    """One step of a GRU (Cho et al. 2014).

        r, z = sigmoid(told + inner),    n = tanh(told + r inner),    h' = n + z (h - n)

    Args:
        told: `[3 S, N]` W x + b of the input; r, z, n afterwards.
        inner: `[3 S, N]` W h + b.
        h: `[S, N]`.
        out: `[S, N]`, takes h'.
    """
    size = len(h)
    both, r, z, n = told[: 2 * size], told[:size], told[size : 2 * size], told[2 * size :]
    both += inner[: 2 * size]
    _sigmoid(both)
    np.multiply(r, inner[2 * size :], out=out)
    n += out
    np.tanh(n, out=n)
    np.subtract(h, n, out=out)
    out *= z
    out += n


def lstm_step(told: np.ndarray, inner: np.ndarray, state: np.ndarray) -> None:
    """One step of an LSTM (Hochreiter & Schmidhuber 1997), in place.

        i, f, o = sigmoid(told + inner),    g = tanh(told + inner),    c' = f c + i g,    h' = o tanh(c')

    Args:
        told, inner: `[4 S, N]` as of `gru_step`, in the order i, f, g, o.
        state: `[2 S, N]` h, then c.
    """
    size = len(state) // 2
    told += inner
    _sigmoid(told[: 2 * size])
    _sigmoid(told[3 * size :])
    i, f, g, o = (told[k * size : (k + 1) * size] for k in range(4))
    h, c = state[:size], state[size:]
    np.tanh(g, out=g)
    c *= f
    g *= i
    c += g
    np.tanh(c, out=h)
    h *= o


def unroll_gru(cell: nn.GRU, encoded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """What `cell(encoded, state)` gives, for one layer on the CPU; differentiable once, an error the second time.

    Args:
        cell: of one layer.
        encoded: `[T, N, E]`.
        state: `[N, S]`.

    Returns:
        `[T, N, S]` outputs, and the state `[N, S]` after the last step.
    """
    told = F.linear(encoded, cell.weight_ih_l0, cell.bias_ih_l0)  # type: ignore[arg-type]
    outputs: Tensor = _UnrolledGRU.apply(told, state, cell.weight_hh_l0, cell.bias_hh_l0)
    return outputs, outputs[-1]


class _UnrolledGRU(torch.autograd.Function):
    """(W x + b of the inputs `[T, N, 3 S]`, the first state, W, b) -> outputs `[T, N, S]`."""

    @staticmethod
    def forward(ctx: Any, told: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        gates = told.detach().numpy().swapaxes(1, 2).copy()
        w, b = weight.detach().numpy(), bias.detach().numpy()[:, None]
        steps, (rows, size), num = len(gates), w.shape, len(state)
        hidden = np.empty((steps + 1, size, num), gates.dtype)
        inner = np.empty((steps, rows, num), gates.dtype)
        hidden[0] = state.detach().numpy().T
        for given, of_h, h, out in zip(gates, inner, hidden, hidden[1:], strict=False):
            np.matmul(w, h, out=of_h)
            of_h += b
            gru_step(given, of_h, h, out)
        ctx.save_for_backward(weight)
        ctx.known = gates, inner, hidden
        return torch.from_numpy(hidden[1:].swapaxes(1, 2).copy())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a GRU on the host has no second derivatives; call its nn.GRU for create_graph=True")
        (weight,) = ctx.saved_tensors
        gates, inner, hidden = ctx.known
        w = weight.detach().numpy()
        size = w.shape[1]
        r, z, n = gates[:, :size], gates[:, size : 2 * size], gates[:, 2 * size :]
        slopes = np.empty_like(gates)  # of h' at W h + b
        to_n = (1.0 - z) * (1.0 - n * n)
        np.multiply(to_n * inner[:, 2 * size :], r * (1.0 - r), out=slopes[:, :size])
        np.multiply(hidden[:-1] - n, z * (1.0 - z), out=slopes[:, size : 2 * size])
        np.multiply(to_n, r, out=slopes[:, 2 * size :])
        at_output = grad.numpy().swapaxes(1, 2).copy()
        carried = np.zeros_like(at_output[0])
        for slope, at, kept in zip(slopes[::-1], at_output[::-1], z[::-1], strict=True):
            at += carried
            by_unit = slope.reshape(3, size, -1)
            by_unit *= at
            np.matmul(w.T, slope, out=carried)
            carried += at * kept
        at_told = slopes.copy()
        np.multiply(at_output, to_n, out=at_told[:, 2 * size :])
        of_inner = torch.from_numpy(slopes).transpose(0, 1).flatten(1)  # [3 S, T N]
        of_weight = of_inner @ torch.from_numpy(hidden[:-1]).transpose(0, 1).flatten(1).t()
        return torch.from_numpy(at_told).transpose(1, 2), torch.from_numpy(carried.T), of_weight, of_inner.sum(1)


def _sigmoid(x: np.ndarray) -> None:
    x *= 0.5
    np.tanh(x, out=x)
    x *= 0.5
    x += 0.5

"""Networks without a graph, on the host: for a few rows and narrow layers NumPy's calls cost less than torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor, nn

from relax_rl.agents.normalization import ObservationNormalizer
from relax_rl.compute.host import retire_threads
from relax_rl.networks.cnns import NatureCNN, after_last_layer
from relax_rl.networks.host_cells import MOST, gru_step, lstm_step, pays_on_host
from relax_rl.networks.layers import ACTIVATIONS, is_exactly
from relax_rl.networks.memory import MemoryTorso
from relax_rl.networks.policies import Policy
from relax_rl.networks.torsos import MLP, Selection, Torso

__all__ = [
    "HostMemoryNetwork",
    "HostNetwork",
    "HostSampler",
    "ImageSampler",
    "acts_on_host",
    "host_network",
    "host_sampler",
]


def _relu(x: np.ndarray) -> None:
    np.maximum(x, 0.0, out=x)


def _tanh(x: np.ndarray) -> None:
    np.tanh(x, out=x)


_IN_PLACE: dict[Callable[[Tensor], Tensor], Callable[[np.ndarray], None]] = {
    ACTIVATIONS["tanh"]: _tanh,
    ACTIVATIONS["relu"]: _relu,
}


class HostNetwork:
    """A torso and a linear head in NumPy, reading the weights where the modules keep them.

    Args:
        layers: linear, the last of them the head.
        activation: in place, of all but the last.
    """

    def __init__(self, layers: Sequence[nn.Linear], activation: Callable[[np.ndarray], None]) -> None:
        self._weights = [(layer.weight.detach().t(), layer.bias.detach()) for layer in layers]
        self._on_host = [(weight.numpy(), bias.numpy()) for weight, bias in self._weights]
        self._activation = activation
        self._buffers: list[np.ndarray] = []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`[B, D]` -> `[B, outputs]`, in a buffer that the next call writes to."""
        if not self._buffers or len(self._buffers[0]) != len(x):
            self._buffers = [np.empty((len(x), len(bias)), np.float32) for _, bias in self._on_host]
        for number, ((weight, bias), out) in enumerate(zip(self._on_host, self._buffers, strict=True)):
            if number:
                self._activation(x)
            if len(x) * weight.size > MOST:
                torch.addmm(
                    self._weights[number][1], torch.from_numpy(x), self._weights[number][0], out=torch.from_numpy(out)
                )
            else:
                np.matmul(x, weight, out=out)
                out += bias
            x = out
        return x

    def reads(self, head: nn.Linear) -> bool:
        """Whether the head keeps its weights where this network reads them."""
        return self._weights[-1][0].data_ptr() == head.weight.data_ptr()

    def on_tensor(self, x: Tensor) -> Tensor:
        """The same for tensors; what comes back is nobody else's."""
        return torch.from_numpy(self(x.numpy()).copy())


class SelectingHostNetwork(HostNetwork):
    """The same for a torso that sees some `columns` of what there is."""

    def __init__(
        self, layers: Sequence[nn.Linear], activation: Callable[[np.ndarray], None], columns: np.ndarray
    ) -> None:
        super().__init__(layers, activation)
        self._columns = columns

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return super().__call__(np.take(x, self._columns, axis=1))


class HostMemoryNetwork:
    """An MLP, a recurrent cell and a linear head in NumPy, step by step.

    Args:
        torso: the MLP and the cell.
        head: of the policy.
        state: `[N, S]` before the first step.
        starts: says of each environment `[N]` whether an episode begins, and its state is forgotten.
    """

    def __init__(self, torso: MemoryTorso, head: nn.Linear, state: Tensor, starts: Callable[[], np.ndarray]) -> None:
        encoder, cell = torso.encoder, cast(Any, torso.cell)
        self._activate = _IN_PLACE[encoder.activation]
        self._encoder = HostNetwork([*encoder.layers], self._activate) if len(encoder.layers) else None
        self._input, self._inner, self._head = (
            (weight.detach().numpy(), bias.detach().numpy()[:, None])
            for weight, bias in (
                (cell.weight_ih_l0, cell.bias_ih_l0),
                (cell.weight_hh_l0, cell.bias_hh_l0),
                (head.weight, head.bias),
            )
        )
        self._is_gru, self._size, self._starts = torso.kind == "gru", torso.num_features, starts
        self._state = state.numpy().T.copy()

    @property
    def state(self) -> Tensor:
        """`[N, S]` after the last step."""
        return torch.from_numpy(self._state.T.copy())

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`[N, D]` -> `[N, outputs]`."""
        state, begins = self._state, self._starts()
        if begins.any():
            state[:, begins] = 0.0
        if self._encoder is not None:
            x = self._encoder(x)
            self._activate(x)
        told, inner = _affine(self._input, x.T), _affine(self._inner, state[: self._size])
        if self._is_gru:
            self._state = np.empty_like(state)
            gru_step(told, inner, state, self._state)
        else:
            lstm_step(told, inner, state)
        out: np.ndarray = _affine(self._head, self._state[: self._size]).T
        return out


def _affine(layer: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> np.ndarray:
    weight, bias = layer
    out: np.ndarray = weight @ x
    out += bias
    return out


def acts_on_host(torso: Any, num: int) -> TypeGuard[MemoryTorso]:
    """Whether `HostMemoryNetwork` takes a torso for that many environments."""
    if (
        not is_exactly(torso, MemoryTorso)
        or not is_exactly(torso.cell, nn.GRU, nn.LSTM)
        or not _is_plain(torso.encoder)
    ):
        return False
    if not pays_on_host(torso.cell, num) or num * cast(Tensor, torso.cell.weight_ih_l0).numel() > MOST:
        return False
    return torso.cell.weight_hh_l0.dtype == torch.float32


def _is_plain(torso: Any) -> TypeGuard[MLP]:
    """Whether a torso is an MLP of linear layers with an activation that NumPy has."""
    if not is_exactly(torso, MLP) or torso.activation not in _IN_PLACE:
        return False
    return all(is_exactly(layer, nn.Linear) and layer.bias is not None for layer in torso.layers)


def host_network(torso: Torso, head: nn.Linear) -> HostNetwork | None:
    """The network on the host, or None where it is not an MLP with an activation that NumPy has, on the CPU."""
    inner, columns = torso, None
    if is_exactly(torso, Selection):
        inner, columns = torso.torso, np.concatenate([np.arange(*span) for span in torso.spans])
    if not _is_plain(inner) or not is_exactly(head, nn.Linear) or head.weight.device.type != "cpu":
        return None
    layers, activation = [*inner.layers, head], _IN_PLACE[inner.activation]
    return HostNetwork(layers, activation) if columns is None else SelectingHostNetwork(layers, activation, columns)


class HostSampler:
    """Outcomes of a policy as it stands; the update that follows need not repeat what its network says.

    Args:
        network: the policy's torso and head.
        normalizer: of observations.
        std: `[D]` of continuous actions; None for discrete ones.
    """

    def __init__(
        self,
        network: Callable[[np.ndarray], np.ndarray],
        normalizer: ObservationNormalizer | None,
        std: np.ndarray | None,
    ) -> None:
        self._network, self._normalizer, self._std = network, normalizer, std
        self._said: list[np.ndarray] = []

    def __call__(self, obs: np.ndarray, noise: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Outcomes `[N, ...]` for encoded observations `[N, D]`, base noise `[N, ...]` and what is allowed `[N, W]`."""
        out = self._network(obs if self._normalizer is None else self._normalizer.on_host(obs))
        self._said.append(out.copy())
        # Whatever normalises logits leaves the largest where it is.
        z: np.ndarray = out + (noise if self._std is None else self._std * noise)
        if mask is not None:
            z[~mask] = -np.inf
        return z if self._std is not None else z.argmax(-1)

    def recalled(self) -> Tensor:
        """`[T N, outputs]` what the network said on all observations so far, without graph."""
        return torch.from_numpy(np.concatenate(self._said))


def host_sampler(
    policy: Policy, network: Callable[[np.ndarray], np.ndarray] | None, normalizer: ObservationNormalizer | None
) -> HostSampler | None:
    """Acting on the host with the policy as it stands, or None where torch is needed.

    The outcomes are those of `Actor.sample` to rounding.

    Args:
        policy: for discrete actions, or continuous ones with a free standard deviation.
        network: its torso and head.
        normalizer: of observations.
    """
    if network is None or policy.state_dependent_std or policy.kind not in ("categorical", "gaussian"):
        return None
    std = np.exp(policy.log_std.detach().numpy()) if policy.log_std is not None else None
    return HostSampler(network, normalizer, std)


class ImageSampler:
    """Outcomes of a policy on images; the update that follows need not repeat what the torso makes of them.

    Args:
        policy: on a Nature CNN; its parameters must stay as they are meanwhile.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.torso = policy, cast(NatureCNN, policy.torso)
        self._layer = self.torso.last_layer()
        self._convolved: list[Tensor] = []
        self._features: list[Tensor] = []

    def __call__(self, obs: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outcomes `[N, ...]` for images `[N, C, H, W]`, base noise `[N, ...]` and what is allowed `[N, W]`."""
        convolved = self.torso.convolved(obs.to(noise.device))
        with torch.no_grad():
            features = after_last_layer(convolved, self._layer)
            mask = None if mask is None else mask.to(noise.device)
            dist = self.policy.distribution(self.policy.params(features), mask)
            outcome = dist.threshold(dist.relax(noise))
        self._convolved.append(convolved)
        self._features.append(features)
        if torch.get_num_threads() > 1:
            retire_threads()  # environments with threads of their own come next
        return outcome

    def recalled(self) -> Tensor:
        """`[T N, F]` the torso's features of all images so far, with their graph."""
        return self.torso.recalled(torch.cat(self._convolved), self._layer, torch.cat(self._features))

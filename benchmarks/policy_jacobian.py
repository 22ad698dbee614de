"""Products with the Jacobian of a policy's outputs at its weights, row by row or over groups of rows."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn import functional as F

from relax_rl.networks import MLP
from relax_rl.policies import Policy

__all__ = ["gradient_of_groups", "policy_metric"]


def gradient_of_groups(policy: Policy, obs: Tensor, pull: Tensor) -> Tensor:
    """`[G, T, P]` J_t sum_u J_u'x_u in each group, J_t a row's Jacobian of the distribution's parameters.

    Args:
        policy: whose weights J is taken at.
        obs: `[G, T, D]` normalised observations.
        pull: `[G, T, P]` x.
    """
    theta = {name: x.detach() for name, x in policy.named_parameters()}

    def of_group(obs: Tensor, pull: Tensor) -> Tensor:
        def params(theta: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(policy, theta, (obs,))
            return found

        (summed,) = vjp(params, theta)[1](pull)
        return cast(Tensor, jvp(params, (theta,), (summed,))[1])

    return vmap(of_group)(obs, pull)


@torch.no_grad()
def policy_metric(policy: Policy, obs: Tensor) -> Tensor:
    """`[B, P, P]` J J' of the distribution's parameters at every row, J their Jacobian at the policy's weights.

    Args:
        policy: a tanh MLP, with a free standard deviation if it is continuous.
        obs: `[B, D]` normalised observations.
    """
    torso = cast(MLP, policy.torso)
    layers = cast(list[nn.Linear], list(torso.layers))
    inputs = [obs]
    for layer in layers:
        inputs.append(torso.activation(F.linear(inputs[-1], layer.weight, layer.bias)))
    outputs = policy.head.out_features
    slope = torch.eye(outputs).expand(len(obs), outputs, outputs)  # of every output at a layer's result
    metric = torch.zeros(len(obs), policy.num_params, policy.num_params)
    metric[:, outputs:, outputs:] = torch.eye(policy.num_params - outputs)
    for layer, x in zip([policy.head, *reversed(layers)], reversed(inputs), strict=True):
        metric[:, :outputs, :outputs] += (slope @ slope.mT) * (1.0 + x.square().sum(-1))[:, None, None]
        slope = (slope @ layer.weight) * (1.0 - x.square())[:, None, :]
    return metric
